"""Faults on demand: what a network, an edge or a server can do to a request, one by one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from aiohttp import web

from sandbox.edges import EDGES

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ACTIONS = frozenset(
    {
        "status",
        "body",
        "headers",
        "delay",
        "reset",
        "blackhole",
        "stopReading",
        "landThenReset",
        "lands",
        "drip",
        "endless",
        "truncate",
        "redirect",
    }
)
CHUNK = b"\0" * 65536


class ConnectionDropped(Exception):
    """The fault ended the connection, so there is nothing left to answer."""


@dataclass
class Fault:
    match: str
    action: dict[str, Any] = field(default_factory=dict)
    times: int = 1
    after: int = 0

    @classmethod
    def parse(cls, given: Any) -> Fault:
        fault = cls(**given)
        if edge := fault.action.pop("edge", ""):
            fault.action = {**EDGES[edge], **fault.action}
        unknown = sorted(set(fault.action) - ACTIONS)
        if unknown:
            raise ValueError(f"unknown actions {unknown}; there are {sorted(ACTIONS)}")
        return fault

    def due(self, line: str) -> bool:
        if not fnmatchcase(line, self.match):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        return self.times != 0


class Faults:
    """The faults waiting for their request; gone when the process is."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []

    def add(self, given: list[Any]) -> None:
        self._waiting.extend([Fault.parse(one) for one in given])

    def clear(self) -> None:
        self._waiting.clear()

    def take(self, line: str) -> Fault | None:
        # Every fault counts every matching request, so `after` means "from the n-th on" for each.
        due = [fault for fault in self._waiting if fault.due(line)]
        if not due:
            return None
        if due[0].times > 0:
            due[0].times -= 1
        return due[0]


async def inflict(
    action: dict[str, Any], request: web.Request, handler: Handler
) -> web.StreamResponse:
    if "delay" in action:
        await asyncio.sleep(action["delay"])
    if action.get("stopReading"):
        await _until_client_leaves(request)
        raise _reset(request)
    if action.get("blackhole"):
        await _discard_body(request)
        await _until_client_leaves(request)
        raise _reset(request)
    if action.get("reset"):
        raise _reset(request)
    if action.get("landThenReset"):
        await handler(request)
        raise _reset(request)
    if action.get("endless"):
        return await _send_endlessly(request, action)
    return await _distort(action, request, await _answer(action, request, handler))


async def _answer(
    action: dict[str, Any], request: web.Request, handler: Handler
) -> web.StreamResponse:
    if action.get("lands") and (real := await handler(request)).status >= 300:
        return real
    if "redirect" in action:
        response: web.StreamResponse = web.Response(status=action.get("status", 302))
        response.headers["Location"] = _name_call(action["redirect"], request)
    elif "status" in action or "body" in action:
        response = _canned(action, request)
    else:
        response = await handler(request)
    response.headers.update(action.get("headers", {}))
    return response


def _name_call(text: str, request: web.Request) -> str:
    return text.replace("{method}", request.method).replace("{path}", request.path)


def _canned(action: dict[str, Any], request: web.Request) -> web.Response:
    body = action.get("body", "")
    if isinstance(body, str):
        kind = "text/html" if body.lstrip().startswith("<") else "text/plain"
    else:
        body, kind = json.dumps(body), "application/json"
    status, text = action.get("status", 200), _name_call(body, request)
    return web.Response(status=status, text=text, content_type=kind)


async def _distort(
    action: dict[str, Any], request: web.Request, answer: web.StreamResponse
) -> web.StreamResponse:
    if "drip" not in action and "truncate" not in action:
        return answer
    body = _body_of(answer)
    sent = body[: action.get("truncate", len(body))]
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    # A truncated answer must promise more than it holds, however short the body was.
    response.content_length = len(body) + ("truncate" in action and sent == body)
    response.force_close()
    await response.prepare(request)
    drip = action.get("drip", {"bytes": max(1, len(sent)), "every": 0})
    with contextlib.suppress(ConnectionError):
        for start in range(0, len(sent), drip["bytes"]):
            await response.write(sent[start : start + drip["bytes"]])
            await asyncio.sleep(drip["every"])
    return response


def _body_of(response: web.StreamResponse) -> bytes:
    body = response.body if isinstance(response, web.Response) else None
    return bytes(body) if isinstance(body, (bytes, bytearray)) else b""


async def _send_endlessly(request: web.Request, action: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers=action.get("headers"))
    response.enable_chunked_encoding()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(CHUNK)
            await asyncio.sleep(0)
    return response


async def _discard_body(request: web.Request) -> None:
    async for _ in request.content.iter_any():
        pass


def _reset(request: web.Request) -> ConnectionDropped:
    transport = request.transport
    if transport is not None:
        sock = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return ConnectionDropped()


async def _until_client_leaves(request: web.Request) -> None:
    # While nothing is read, asyncio does not see the peer hang up; the kernel does.
    while request.transport is not None and not request.transport.is_closing():
        watch = select.poll()
        watch.register(request.transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        if watch.poll(0):
            return
        await asyncio.sleep(0.02)
