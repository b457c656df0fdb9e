"""One call at a time in a thread beside us, bounded by one deadline that closes its sockets."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import queue
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ltx.errors import Unavailable

T = TypeVar("T")
# Waits for seconds or files and returns the readable files, as Cancellation.wait does.
Wait = Callable[..., list[Any]]
# A blocked read or write ends at once when its socket is shut down; only a name server or a
# connection that is being made can keep a call for longer.
HANG_UP_S = 0.5
WATCH_S = 0.5


def wait_uncancelled(seconds: float, *files: Any) -> list[Any]:
    """The wait of whoever is not to be disturbed: the heartbeat, a worker's last words."""
    return select.select(files, [], [], max(0.0, seconds))[0]


class CallThread(threading.Thread):
    """Makes the calls; `done` is readable when one has ended. It never keeps the process alive."""

    def __init__(self) -> None:
        super().__init__(name="calls", daemon=True)
        self.work = queue.SimpleQueue[Callable[[], None] | None]()
        self.done, self.bell = socket.socketpair()
        self.start()

    def run(self) -> None:
        with self.done, self.bell:
            while work := self.work.get():
                work()
                del work  # as in Caller.call
                with contextlib.suppress(OSError):
                    self.bell.send(b"!")


class Caller:
    """Calls that may block, for somebody who must not.

    A socket's own timeout starts anew with every byte, so headers that drip, a trailer without
    end or an upload that nobody takes would never end. The deadline is for the call as a whole,
    and what ends it is that its sockets are shut down.
    """

    def __init__(self, wait: Wait = wait_uncancelled) -> None:
        self.wait = wait
        self.thread: CallThread | None = None
        # Doubles of the sockets in use, as TLS detaches the one that was connected.
        self.sockets: dict[socket.socket, Callable[[], bool]] = {}

    def watch(self, sock: socket.socket, is_open: Callable[[], bool]) -> None:
        """Takes note of a socket that a call has opened, until `is_open` denies at a call's end."""
        if threading.current_thread() is not self.thread:
            sock.close()
            raise OSError("the call was given up")
        self.sockets[sock.dup()] = is_open

    def call(
        self,
        work: Callable[[], T],
        seconds: float,
        *,
        wait: Wait | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> T:
        """What `work` returns or raises; it is over when this returns.

        meanwhile: called in our own thread about twice a second. Raises Unavailable after
        `seconds`, and whatever ends the wait.
        """
        thread = self.thread = self.thread or CallThread()
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        thread.work.put(functools.partial(self._complete, future, work))
        end = time.monotonic() + seconds
        try:
            while not (wait or self.wait)(min(WATCH_S, end - time.monotonic()), thread.done):
                meanwhile()
                if time.monotonic() >= end:
                    raise Unavailable(f"no answer within {seconds:g} s", lost=True)
        except BaseException:
            self._hang_up(thread)
            raise
        thread.done.recv(1)
        try:
            return future.result()
        finally:
            # It holds the error, whose traceback holds this frame and those above: all that is in
            # them, connections and files too, would live until Python's collector comes by.
            del future

    def _complete(self, future: concurrent.futures.Future[T], work: Callable[[], T]) -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        del future  # as in call
        for double in [double for double, is_open in list(self.sockets.items()) if not is_open()]:
            self.sockets.pop(double, None)
            double.close()

    def _hang_up(self, thread: CallThread) -> None:
        for double in list(self.sockets):
            with contextlib.suppress(OSError):
                double.shutdown(socket.SHUT_RDWR)
        if wait_uncancelled(HANG_UP_S, thread.done):
            thread.done.recv(1)
        else:
            self.close()

    def close(self) -> None:
        """Lets the thread go; it ends with the call that it is in.

        What it holds is closed here and there, not when Python gets round to collecting it: by then
        a worker of some hundred jobs has more descriptors than select() takes.
        """
        for double in list(self.sockets):
            self.sockets.pop(double)
            double.close()
        if self.thread:
            self.thread.work.put(None)
        self.thread = None
