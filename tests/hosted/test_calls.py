"""A call is bounded as a whole, ends when it is cancelled, and leaves nothing behind."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ltx.cancellation import Cancellation
from ltx.errors import JobError, Unavailable
from ltx.hosted.calls import Caller
from ltx.hosted.http import Http
from sandbox.evil import Evil, answer, endless

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def evil() -> Iterator[Evil]:
    with Evil() as evil:
        yield evil


DRIPS = {
    "headers": (OK, b"X: y\r\n"),
    "100-continues": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body": (OK + b"Content-Length: 99999\r\n\r\n", b"x"),
    "a body until the connection ends": (OK + b"Connection: close\r\n\r\n", b"x"),
    "a trailer": (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
}


@pytest.mark.parametrize(("head", "drop"), DRIPS.values(), ids=DRIPS)
def test_an_answer_that_drips_is_ended_by_its_deadline(
    evil: Evil, head: bytes, drop: bytes
) -> None:
    evil.routes["/drip"], evil.routes["/good"] = endless(head, drop, 0.02), answer(b"{}")
    http = Http(proxies=False)
    with pytest.raises(Unavailable, match=r"no answer within 0\.3 s"):
        http.exchange("GET", f"{evil.url}/drip", seconds=0.3)
    # The thread that was held up has come back and makes the next call.
    thread = http.caller.thread
    assert http.exchange("GET", f"{evil.url}/good").ok
    assert thread is not None
    assert http.caller.thread is thread
    assert len(http.caller.sockets) <= 1


def test_a_cancelled_call_ends_at_once_and_is_over(evil: Evil) -> None:
    evil.routes["/drip"] = endless(OK, b"X: y\r\n", 0.02)
    cancellation = Cancellation()
    http = Http(wait=cancellation.wait, proxies=False)
    cancellation.begin("job")
    timer = threading.Timer(0.2, cancellation.cancel, ("job", JobError("cancelled", "by a test")))
    timer.start()
    with pytest.raises(JobError, match="by a test"):
        http.exchange("GET", f"{evil.url}/drip", seconds=60)
    assert not http.caller.sockets


def test_a_call_that_cannot_be_ended_is_left_behind_and_opens_nothing_later() -> None:
    caller, release = Caller(), threading.Event()
    late: list[object] = []
    before = set(threading.enumerate())
    ours, theirs = socket.socketpair()

    def stuck() -> None:
        release.wait()
        try:
            caller.watch(ours, lambda: True)
        except OSError as error:
            late.append(error)

    with pytest.raises(Unavailable):
        caller.call(stuck, 0.1)
    [left] = set(threading.enumerate()) - before
    release.set()
    left.join(10)
    assert str(late[0]) == "the call was given up"
    assert theirs.recv(1) == b""
    assert caller.call(lambda: 7, 1.0) == 7


def test_many_calls_need_one_thread(evil: Evil) -> None:
    evil.routes["/good"] = answer(b"{}")
    before = set(threading.enumerate())
    http = Http(proxies=False)
    for _ in range(20):
        http.exchange("GET", f"{evil.url}/good")
    made = [thread.name for thread in set(threading.enumerate()) - before]
    # The server beside it has a thread for a connection.
    assert [name for name in made if "process_request" not in name] == ["calls"]


def test_who_waits_can_watch_a_call(evil: Evil) -> None:
    evil.routes["/drip"] = endless(OK, b"X: y\r\n", 0.02)
    seen: list[float] = []
    with pytest.raises(Unavailable):
        Http(proxies=False).exchange(
            "GET", f"{evil.url}/drip", seconds=1.2, meanwhile=lambda: seen.append(time.monotonic())
        )
    assert len(seen) >= 2
