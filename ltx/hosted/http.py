"""HTTP calls that are bounded as a whole, in bytes and in seconds."""

from __future__ import annotations

import functools
import http.cookiejar
import io
import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple, TypeVar

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from ltx.errors import DiskFull, Unavailable, is_disk_full
from ltx.hosted.answers import name_body
from ltx.hosted.calls import Caller, Wait, wait_uncancelled
from ltx.hosted.edges import is_edge
from ltx.hosted.retry import parse_retry_after
from ltx.settings import VERSION
from ltx.text import MAX_JSON_BYTES, MAX_JSON_PARTS, one_line, prune

T = TypeVar("T")

CONNECT_S, CALL_S = 10.0, 25.0


class TooLarge(OSError):
    """The other side sends more than it may."""


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
    def kind(self) -> str:
        """`edge` for what bears an edge's mark, else a kind of `answers.name_body`."""
        if is_edge(self.status, self.headers, self.body):
            return "edge"
        return name_body(self.body, self.headers.get("content-type", ""))

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


class NoAuth(AuthBase):
    """Nothing to show; that there is an auth object keeps ~/.netrc from being asked."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


# ValueError: what a peer answered may end up in the next request, where it does not fit.
NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError)


# From host, port and seconds.
Connect = Callable[[str, int, float], socket.socket]


class WatchedAdapter(HTTPAdapter):
    """Makes connections whose sockets the caller can shut down; by `connect` if there is one."""

    def __init__(self, caller: Caller, connect: Connect | None) -> None:
        self.caller, self.connect = caller, connect
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self._watch(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        known, manager = proxy in self.proxy_manager, super().proxy_manager_for(proxy, **options)
        if not known:
            self._watch(manager)
        return manager

    def _watch(self, manager: Any) -> None:
        classes = manager.pool_classes_by_scheme.items()
        watched = {scheme: watch_pool(pool, self.caller, self.connect) for scheme, pool in classes}
        manager.pool_classes_by_scheme = watched

    def close(self) -> None:
        # urllib3 leaves a pool's connections to Python's collector; what failed to connect once is
        # in a circle with its error, so that comes late.
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118  (it cannot be iterated)
                if pool := manager.pools.get(key):
                    pool.close()
        super().close()


def watch_pool(pool: Any, caller: Caller, connect: Connect | None) -> Any:
    """A pool class whose connections are known to the caller from their first moment on."""

    class Watched(pool.ConnectionCls):  # type: ignore[misc]
        def _new_conn(self) -> socket.socket:
            made = connect(self.host, self.port, CONNECT_S) if connect else super()._new_conn()
            caller.watch(made, lambda: self.sock is not None)
            return made

    return type("WatchedPool", (pool,), {"ConnectionCls": Watched})


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
        wait: Wait = wait_uncancelled,
        proxies: bool = True,
        connect: Connect | None = None,
    ) -> None:
        """wait: how to wait for an answer; connect: makes the connections in place of urllib3."""
        self.caller = Caller(wait)
        self.session = PlainSession()
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, WatchedAdapter(self.caller, connect))
        self.session.auth = auth or NoAuth()
        self.session.trust_env = proxies
        self.session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        # What arrives packed may be a thousand times as large as it looks.
        headers = {"user-agent": f"ltx-worker/{VERSION}", "accept-encoding": "identity"}
        self.session.headers.update(headers)

    def close(self) -> None:
        """Ends its connections and its thread; another call opens them anew."""
        self.caller.close()
        self.session.close()

    def exchange(
        self, method: str, url: str, *, seconds: float = CALL_S, sink: IO[bytes] | None = None,
        limit: int = MAX_JSON_BYTES, wait: Wait | None = None,
        meanwhile: Callable[[], None] = lambda: None, **options: Any,
    ) -> Reply:  # fmt: skip
        """One request and its whole answer, or Unavailable. No redirect is followed.

        seconds: from the first name lookup to the answer's last byte. `sink` takes a 2xx body,
        however large up to `limit`; any other body is left unread then. wait: other than this
        session's. Raises what ends the wait, and JobError media_failed when the disk is full.
        """
        work = functools.partial(self._send, method, url, sink, limit, seconds, options)
        return self.caller.call(work, seconds, wait=wait, meanwhile=meanwhile)

    def _send(
        self, method: str, url: str, sink: IO[bytes] | None, limit: int, seconds: float,
        options: Mapping[str, Any],
    ) -> Reply:  # fmt: skip
        # The caller's deadline ends a read; a connection that is being made has to end by itself.
        timeout = (min(CONNECT_S, seconds), None)
        try:
            with self.session.request(
                method, url, stream=True, timeout=timeout, **options
            ) as response:
                status, body = response.status_code, io.BytesIO()
                if sink is None or 200 <= status < 300:
                    copy_capped(response.raw, sink or body, limit)
                return Reply(status, response.headers, body.getvalue())
        except NETWORK_ERRORS as error:
            if is_disk_full(error):
                raise DiskFull from error
            detail = f"{type(error).__name__}: {one_line(error)}"
            raise Unavailable(detail, lost=not is_unsent(error)) from error


def is_unsent(error: BaseException) -> bool:
    """Whether there was no connection, so that the other side never heard of the call."""
    cause = getattr(error.args[0], "reason", None) if error.args else None
    unmade = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
    return isinstance(error, requests.ConnectTimeout) or isinstance(cause, unmade)


def copy_capped(raw: Any, target: IO[bytes], limit: int) -> None:
    """Copies an answer's body as it comes. Raises TooLarge past the cap."""
    size = 0
    while block := raw.read(65536, decode_content=False):
        size += len(block)
        if size > limit:
            raise TooLarge(f"the answer is larger than {limit} bytes")
        target.write(block)
