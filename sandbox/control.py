"""The control endpoint: what a test, the demo or a bench tells the sandbox and asks of it."""

from __future__ import annotations

import ipaddress
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiohttp import web

from sandbox.blob_store import BlobStore
from sandbox.faults import Faults
from sandbox.frame_host import FrameHost
from sandbox.journal import Journal, Options
from sandbox.queue_api import QueueApi

# Events of a look-alike that are answered with the next fault.
SCRIPTED = ("boot", "prompt", "text", "hold")
Act = Callable[[web.Request], Awaitable[Any]]


class Control:
    def __init__(
        self,
        journal: Journal,
        options: Options,
        faults: Faults,
        queue: QueueApi,
        store: BlobStore,
        frames: FrameHost,
    ) -> None:
        self._journal = journal
        self._options = options
        self._faults = faults
        self._queue = queue
        self._store = store
        self._frames = frames
        self._script: dict[str, deque[dict[str, Any]]] = {event: deque() for event in SCRIPTED}

    def routes(self) -> list[web.RouteDef]:
        table: list[tuple[str, str, Act]] = [
            ("POST", "jobs", self._add_job),
            ("GET", "jobs", self._list_jobs),
            ("GET", "jobs/{id}", self._show_job),
            ("POST", "jobs/{id}/cancel", self._cancel_job),
            ("GET", "blobs", self._list_blobs),
            ("PUT", "frames/{name}", self._put_frame),
            ("GET", "requests", self._list_requests),
            ("GET", "events", self._poll_events),
            ("POST", "faults", self._add_faults),
            ("DELETE", "faults", self._clear_faults),
            ("GET", "options", self._show_options),
            ("POST", "options", self._set_options),
            ("POST", "comfyui", self._hear_comfyui),
            ("POST", "comfyui/script", self._extend_script),
            ("DELETE", "comfyui/script", self._clear_script),
        ]
        return [
            web.route(method, f"/control/{path}", partial(self._serve, act))
            for method, path, act in table
        ]

    async def _serve(self, act: Act, request: web.Request) -> web.Response:
        if not ipaddress.ip_address(request.remote or "0.0.0.0").is_loopback:
            raise web.HTTPForbidden
        try:
            return web.json_response(await act(request))
        except (ValueError, TypeError, KeyError, AttributeError, sqlite3.Error) as error:
            message = f"{type(error).__name__}: {error}"
            return web.json_response({"error": {"message": message}}, status=400)

    async def _add_job(self, request: web.Request) -> Any:
        return {"id": self._queue.add(await request.json())}

    async def _list_jobs(self, _request: web.Request) -> Any:
        return {"jobs": self._queue.jobs()}

    async def _show_job(self, request: web.Request) -> Any:
        found = self._queue.jobs(request.match_info["id"])
        if not found:
            raise web.HTTPNotFound
        return found[0]

    async def _cancel_job(self, request: web.Request) -> Any:
        return {"cancelled": self._queue.cancel(request.match_info["id"])}

    async def _list_blobs(self, _request: web.Request) -> Any:
        return {"blobs": self._store.everything()}

    async def _put_frame(self, request: web.Request) -> Any:
        name = request.match_info["name"]
        kind = request.headers.get("content-type", "application/octet-stream")
        self._frames.put(name, await request.read(), kind)
        return {"path": f"/frames/{name}"}

    async def _list_requests(self, request: web.Request) -> Any:
        query = request.query
        after = int(query.get("after", "0"))
        return {"requests": self._journal.requests(query.get("match", "*"), after)}

    async def _poll_events(self, request: web.Request) -> Any:
        query = request.query
        events = await self._journal.wait_events(
            int(query.get("after", "0")),
            query.get("kind", "*"),
            query.get("job"),
            float(query.get("timeout", "0")),
        )
        return {"events": events, "last": self._journal.last_event()}

    async def _add_faults(self, request: web.Request) -> Any:
        self._faults.add(await request.json())
        return {"ok": True}

    async def _clear_faults(self, _request: web.Request) -> Any:
        self._faults.clear()
        return {"ok": True}

    async def _show_options(self, _request: web.Request) -> Any:
        return self._options.all()

    async def _set_options(self, request: web.Request) -> Any:
        self._options.update(await request.json())
        return self._options.all()

    async def _hear_comfyui(self, request: web.Request) -> Any:
        data = await request.json()
        event = data.pop("event")
        self._journal.emit_data(f"comfyui.{event}", None, data)
        script = self._script.get(event)
        return {"fault": script.popleft() if script else None}

    async def _extend_script(self, request: web.Request) -> Any:
        steps = await request.json()
        unknown = [step for step in steps if step["on"] not in self._script or "kind" not in step]
        if unknown:
            raise ValueError(f'a step has "on", one of {SCRIPTED}, and a "kind": {unknown}')
        for step in steps:
            self._script[step["on"]].append(step)
        return {"ok": True}

    async def _clear_script(self, _request: web.Request) -> Any:
        for queue in self._script.values():
            queue.clear()
        return {"ok": True}
