"""HTTP calls that are bounded as a whole, in bytes and in seconds."""

from __future__ import annotations

import contextlib
import email.utils
import http.cookiejar
import io
import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple, TypeVar

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from ltx.errors import DiskFull, Unavailable, is_disk_full
from ltx.settings import VERSION
from ltx.text import MAX_JSON_BYTES, MAX_JSON_PARTS, one_line, prune

T = TypeVar("T")

CONNECT_S, READ_S = 10.0, 15.0
BACKOFF_CAP_S = 60.0


class TooLarge(OSError):
    """The other side sends more than it may."""


def backoff(tries: int, cap: float = BACKOFF_CAP_S, asked: float | None = None) -> float:
    """Seconds to wait after `tries` failures in a row: 1, 2, 4… up to cap, with jitter.

    asked: what Retry-After said; it is honoured up to the same cap.
    """
    seconds = min(cap, 2.0 ** min(tries - 1, 16)) * random.uniform(0.5, 1.0)  # noqa: S311
    return seconds if asked is None else min(cap, max(seconds, asked))


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds from a Retry-After (or Date) header, as a number or from its date."""
    if not value:
        return None
    if re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - now
    except (ValueError, OverflowError):
        return None


NOT_JSON = object()


class Reply(NamedTuple):
    """An HTTP answer, read whole within its caps."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_page(self) -> bool:
        kind = self.headers.get("content-type", "").lower()
        return "html" in kind or self.body.lstrip().startswith(b"<")

    @property
    def is_opaque(self) -> bool:
        """An edge's answer, not the API's: a page at any status, text as a success or a 404."""
        if self.is_page:
            return True
        is_text = bool(self.body.strip()) and self.json_or(NOT_JSON) is NOT_JSON
        return is_text and (self.ok or self.status == 404)

    def parse(self) -> Any:
        """The body's JSON. Raises ValueError for none, RecursionError for too much."""
        if sum(map(self.body.count, b',"[{')) > MAX_JSON_PARTS:
            raise RecursionError
        return prune(json.loads(self.body))

    def json_or(self, default: T) -> Any | T:
        """The body's JSON, or `default` when it is none or too much."""
        try:
            return self.parse()
        except (ValueError, RecursionError):
            return default

    def retry_after(self) -> float | None:
        return parse_retry_after(self.headers.get("retry-after"), time.time())


class HeaderAuth(AuthBase):
    """A secret in one header. As an auth object it also keeps ~/.netrc from replacing it."""

    def __init__(self, name: str = "", value: str = "") -> None:
        self.name, self.value = name, value

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.name:
            request.headers[self.name] = self.value
        return request


# ValueError: what a peer answered may end up in the next request, where it does not fit.
NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError)


class Clock:
    """Hangs up on a peer after some seconds, unless closed before.

    A socket's own timeout starts anew with every byte: headers that drip, a trailer or
    100-continues without end would never end.
    """

    def __init__(self, line: Callable[[], socket.socket | None], seconds: float) -> None:
        self.line, self.end = line, time.monotonic() + seconds
        # A little later than the socket's own timeout, which has the better words for silence.
        timer = threading.Timer(seconds + 0.2, self._hang_up)
        timer.daemon = True
        timer.start()
        self.close = timer.cancel

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            if sock := self.line():
                # Not SSLSocket's own, which would take the session from the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


# From host, port and seconds.
Connect = Callable[[str, int, float], socket.socket]


class TimedAdapter(HTTPAdapter):
    """Makes connections whose answers are timed as a whole; by `connect` if there is one."""

    def __init__(self, connect: Connect | None = None) -> None:
        self.connect = connect
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self._time(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        known, manager = proxy in self.proxy_manager, super().proxy_manager_for(proxy, **options)
        if not known:
            self._time(manager)
        return manager

    def _time(self, manager: Any) -> None:
        classes = manager.pool_classes_by_scheme.items()
        pools = {scheme: time_pool(pool, self.connect) for scheme, pool in classes}
        manager.pool_classes_by_scheme = pools


def time_pool(pool: Any, connect: Connect | None) -> Any:
    """A pool class whose answers carry the `clock` that hangs up on them."""

    class Timed(pool.ConnectionCls):  # type: ignore[misc]
        def getresponse(self) -> Any:
            sock = self.sock
            clock = Clock(lambda: sock, self.timeout)
            try:
                answer = super().getresponse()
            except BaseException:
                clock.close()
                raise
            answer.clock = clock
            return answer

    def new_conn(self: Any) -> socket.socket:
        assert connect is not None
        return connect(self.host, self.port, CONNECT_S)

    if connect is not None:
        Timed._new_conn = new_conn
    return type("TimedPool", (pool,), {"ConnectionCls": Timed})


class PlainSession(requests.Session):
    """Knows no redirects: even when told not to follow one, requests reads its body whole."""

    def get_redirect_target(self, _response: requests.Response) -> str | None:
        return None


class Http:
    """One requests session: no redirects, no netrc, answers capped in bytes and seconds."""

    def __init__(
        self,
        auth: AuthBase | None = None,
        *,
        proxies: bool = True,
        connect: Connect | None = None,
    ) -> None:
        """connect: makes the connection in place of the usual way."""
        self.session = PlainSession()
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, TimedAdapter(connect))
        self.session.auth = auth or HeaderAuth()
        self.session.trust_env = proxies
        self.session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        # What arrives packed may be a thousand times as large as it looks.
        headers = {"user-agent": f"ltx-worker/{VERSION}", "accept-encoding": "identity"}
        self.session.headers.update(headers)

    def exchange(
        self, method: str, url: str, *, seconds: float = READ_S, sink: IO[bytes] | None = None,
        limit: int = MAX_JSON_BYTES, **options: Any,
    ) -> Reply:  # fmt: skip
        """One request and its whole answer, or Unavailable. No redirect is followed.

        seconds: from the request's last byte to the answer's. `sink` takes a 2xx body, however
        large up to `limit`; any other body is left unread then.
        """
        try:
            timeout = (min(CONNECT_S, seconds), seconds)
            with self.session.request(
                method, url, stream=True, timeout=timeout, **options
            ) as response:
                raw: Any = response.raw
                status, body = response.status_code, io.BytesIO()
                with contextlib.closing(raw.clock):
                    if sink is None or 200 <= status < 300:
                        copy_capped(raw, sink or body, limit, raw.clock.end)
                return Reply(status, response.headers, body.getvalue())
        except NETWORK_ERRORS as error:
            if is_disk_full(error):
                raise DiskFull from error
            raise Unavailable(f"{type(error).__name__}: {one_line(error)}") from error


def copy_capped(raw: Any, target: IO[bytes], limit: int, deadline: float) -> None:
    """Copies an answer's body as it comes. Raises OSError past the cap or the deadline."""
    size = 0
    while block := raw.read1(65536, decode_content=False):
        size += len(block)
        if size > limit:
            raise TooLarge(f"the answer is larger than {limit} bytes")
        if time.monotonic() > deadline:
            break
        target.write(block)
    if time.monotonic() > deadline:
        raise TimeoutError("the answer took too long")
