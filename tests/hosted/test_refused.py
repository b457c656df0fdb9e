"""Whether nothing listens at an address is known by the error itself, not by its words."""

from __future__ import annotations

import socketserver
import threading

import pytest

from ltx.errors import Unavailable, is_refused
from ltx.hosted.http import Http
from sandbox.client import free_port


class SaysRefused(socketserver.BaseRequestHandler):
    """A live server whose answer is no HTTP and happens to hold the word."""

    def handle(self) -> None:
        self.request.recv(65536)
        self.request.sendall(b"Connection refused\r\n\r\n")


def failure(url: str) -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        Http(proxies=False).exchange("GET", url, seconds=10)
    return caught.value


@pytest.mark.parametrize("path", ["", "x" * 400], ids=["short", "longer than its message"])
def test_a_port_where_nothing_listens_is_told_apart_however_long_the_address(path: str) -> None:
    assert is_refused(failure(f"http://127.0.0.1:{free_port()}/{path}"))


def test_a_server_that_only_says_the_word_has_not_refused_the_connection() -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), SaysRefused) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            error = failure(f"http://127.0.0.1:{server.server_address[1]}/")
        finally:
            server.shutdown()
    assert "refused" in str(error)
    assert not is_refused(error)
