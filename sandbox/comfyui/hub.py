"""The websockets: one per client id, written to from any thread, in the order of the calls."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

PREVIEW_EVENT = 1
JPEG = 1
Message = str | bytes


class Hub:
    def __init__(self) -> None:
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self.refusing = False
        self.loop = asyncio.get_running_loop()
        self.outbox: asyncio.Queue[tuple[Message, str | None]] = asyncio.Queue()

    def send(self, event: str, data: Any, client_id: str | None = None) -> None:
        """To one client, or to all of them."""
        self.send_raw(json.dumps({"type": event, "data": data}), client_id)

    def send_preview(self, jpeg: bytes, client_id: str | None) -> None:
        head = PREVIEW_EVENT.to_bytes(4, "big") + JPEG.to_bytes(4, "big")
        self.send_raw(head + jpeg, client_id)

    def send_raw(self, message: Message, client_id: str | None) -> None:
        self.loop.call_soon_threadsafe(self.outbox.put_nowait, (message, client_id))

    async def publish(self) -> None:
        while True:
            message, client_id = await self.outbox.get()
            if client_id is None:
                receivers = list(self.sockets.values())
            else:
                receivers = [ws for sid, ws in self.sockets.items() if sid == client_id]
            for ws in receivers:
                await self._deliver(ws, message)
            self.outbox.task_done()

    async def _deliver(self, ws: web.WebSocketResponse, message: Message) -> None:
        try:
            if isinstance(message, bytes):
                await ws.send_bytes(message)
            else:
                await ws.send_str(message)
        except (ConnectionError, RuntimeError):
            pass  # gone; its own handler tidies up

    def flush(self) -> None:
        """Wait, in another thread than the loop's, until everything sent so far is out."""
        asyncio.run_coroutine_threadsafe(self.outbox.join(), self.loop).result()

    def drop(self, *, refuse: bool = False) -> None:
        """Close every socket, from any thread; `refuse` turns later ones away as well."""
        self.flush()
        self.refusing = refuse
        asyncio.run_coroutine_threadsafe(self._close_all(), self.loop).result()

    async def _close_all(self) -> None:
        for ws in list(self.sockets.values()):
            await ws.close(code=1011)
