"""The events of one prompt, over a websocket that is bounded in bytes and seconds."""

from __future__ import annotations

import functools
import json
import time
from typing import Any, NamedTuple

import websocket

from ltx.comfyui.workflow import STEPS
from ltx.errors import Unavailable
from ltx.hosted.calls import Caller
from ltx.text import MAX_JSON_BYTES, as_dict

COMFY_CALL_S = 5.0


class BoundedWebSocket(websocket.WebSocket):
    """A websocket whose messages are bounded in bytes and seconds, pings between them included."""

    def receive(self) -> str | bytes:
        self.left, self.end = MAX_JSON_BYTES, time.monotonic() + COMFY_CALL_S
        return self.recv()

    def _recv(self, bufsize: int) -> Any:
        block = super()._recv(bufsize)  # type: ignore[no-untyped-call]
        self.left -= len(block)
        if self.left < 0 or time.monotonic() > self.end:
            raise websocket.WebSocketException("the message is too long")
        return block


class Sign(NamedTuple):
    """What a message told of the prompt."""

    step: int | None = None  # how many are done; 0 as the sampler begins
    ended: bool = False  # or so it seems: the history knows


class PromptEvents:
    """The websocket of one prompt. Losing it costs nothing but progress."""

    def __init__(self, url: str, client_id: str, caller: Caller) -> None:
        self.caller = caller
        self.url = f"{url.replace('http', 'ws', 1)}/ws?clientId={client_id}"
        self.socket: BoundedWebSocket | None = None
        self._connect()

    def _connect(self) -> None:
        # recv() decodes anyway; the library's own check is a Python loop over every byte.
        line = BoundedWebSocket(skip_utf8_validation=True)
        line.settimeout(COMFY_CALL_S)
        options: dict[str, Any] = {"http_no_proxy": ["*"], "redirect_limit": 0}
        connect = functools.partial(line.connect, self.url, **options)
        self.socket = line
        try:
            self.caller.call(connect, COMFY_CALL_S)
        except (websocket.WebSocketException, Unavailable, OSError, ValueError):
            self.close()

    def files(self) -> list[Any]:
        if self.socket is None:
            self._connect()
        return [self.socket.sock] if self.socket else []

    def read(self, prompt_id: str, sampler: str) -> Sign:
        """Reads one message."""
        assert self.socket
        try:
            message = as_dict(json.loads(self.socket.receive()))
        except (websocket.WebSocketException, OSError):
            self.close()
            return Sign(ended=True)
        except (ValueError, RecursionError):
            return Sign()
        data = as_dict(message.get("data"))
        if data.get("prompt_id") != prompt_id:
            return Sign()
        if message.get("type") in ("executing", "progress") and data.get("node") == sampler:
            step = data.get("value")
            return Sign(step if isinstance(step, int) and 0 <= step <= STEPS else 0)
        # The history is written between execution_success and this message.
        return Sign(ended=message.get("type") == "executing" and data.get("node") is None)

    def close(self) -> None:
        if self.socket and self.socket.sock:
            self.socket.sock.close()
        self.socket = None
