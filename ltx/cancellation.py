"""Everything that can end a wait: a signal, a cancel, a lease, a deadline."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ltx.errors import JobError, LeaseLost


class Cancellation:
    """Everything that can end a wait: a signal, a cancel, a time limit. Every wait waits on it.

    It is a socket pair and not a threading.Event, because the lock that Event.set takes may be
    held by the very Event.wait that the signal handler interrupts; the trap is described in
    https://github.com/python/cpython/issues/126434.
    """

    TICK_S = 1.0

    def __init__(
        self,
        on_tick: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """on_tick: what the thread that waits does meanwhile, at least every TICK_S seconds."""
        self._ear, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._on_tick, self._clock = on_tick, clock
        self._lock = threading.Lock()
        self._ends: dict[str, tuple[float, JobError]] = {}
        self.job_id = ""
        self.stopping = False

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._bell.send(b"!")

    def _hush(self) -> None:
        """Takes the rings away; what they announced is in the fields that check() reads."""
        with contextlib.suppress(BlockingIOError):
            while self._ear.recv(4096):
                pass

    def stop(self) -> None:
        """Drain and exit. Takes no lock, so it is safe in a signal handler."""
        self.stopping = True
        self._ring()

    def begin(self, job_id: str) -> None:
        """From here on the waits end with this job. What ended the one before is forgotten."""
        with self._lock:
            self.job_id = job_id
            self._ends.pop("cancel", None)
            self._ends.pop("lease", None)

    def end(self) -> None:
        self.begin("")

    def _end_at(self, job_id: str, why: str, moment: float, reason: JobError) -> None:
        """A word about a job that is no longer in hand comes too late to end another."""
        with self._lock:
            if job_id and job_id == self.job_id:
                self._ends[why] = (moment, reason)
        self._ring()

    def cancel(self, job_id: str, reason: JobError) -> None:
        """Ends that job at once. Safe from any thread."""
        self._end_at(job_id, "cancel", 0.0, reason)

    def hold_lease(self, job_id: str, seconds: float) -> None:
        """That job is ours for so long, unless this is called again. Safe from any thread."""
        self._end_at(job_id, "lease", self._clock() + seconds, LeaseLost())

    def lease_left(self) -> float:
        """Seconds that the job in hand is ours for certain; 0 where no lease tells."""
        with self._lock:
            end, _ = self._ends.get("lease", (math.inf, None))
        return 0.0 if end == math.inf else end - self._clock()

    @contextlib.contextmanager
    def deadline(self, name: str, seconds: float, reason: JobError) -> Iterator[None]:
        """Within this block every wait ends with `reason` when `seconds` have passed."""
        with self._lock:
            self._ends[name] = (self._clock() + seconds, reason)
        try:
            yield
        finally:
            with self._lock:
                del self._ends[name]

    def _next_end(self) -> tuple[float, JobError | None]:
        with self._lock:
            return min(self._ends.values(), key=lambda end: end[0], default=(math.inf, None))

    def check(self) -> None:
        """Raises the JobError that ends the work, if there is one."""
        if self.stopping:
            raise JobError("shutdown", "")
        moment, reason = self._next_end()
        if reason and self._clock() >= moment:
            raise reason

    def wait(self, seconds: float = math.inf, *files: Any) -> list[Any]:
        """Waits for time or files; returns the readable files. Raises JobError when halted."""
        end = self._clock() + seconds
        while True:
            self.check()
            self._on_tick()
            left = min(end, self._next_end()[0]) - self._clock()
            left = max(0.0, min(left, self.TICK_S))
            ready = select.select([self._ear, *files], [], [], left)[0]
            if self._ear in ready:
                self._hush()
            if files_ready := [file for file in ready if file is not self._ear]:
                return files_ready
            if self._clock() >= end:
                self.check()
                return []
