"""A peer that does its worst, byte by byte: any host, or a ComfyUI that somebody else runs."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

PAUSE_S = 0.02
TEXT, BINARY, PING = 1, 2, 9


@dataclass
class Talk:
    """One request, and the wire to answer it on; `send` raises OSError once the client has left."""

    server: Any
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    send: Callable[[bytes], object]


Act = Callable[[Talk], None]


def answer(body: Any, status: str = "200 OK", *more: str) -> Act:
    """An orderly answer; what is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = [] if isinstance(body, bytes) else ["Content-Type: application/json"]
    lines = [f"HTTP/1.1 {status}", *kind, *more, f"Content-Length: {len(content)}"]
    return raw("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + content)


def raw(content: bytes) -> Act:
    return lambda talk: void(talk.send(content))


def void(_: object) -> None:
    return None


def endless(head: bytes, block: bytes, every: float = 0.0) -> Act:
    """`head`, then `block` again and again until the client has had enough."""

    def act(talk: Talk) -> None:
        talk.send(head)
        while True:
            talk.send(block)
            time.sleep(every)

    return act


def redirect(target: str, status: str = "302 Found") -> Act:
    return answer(b"", status, f"Location: {target}")


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
# Ways to answer for ever; `every` keeps them from costing the machine anything.
NEVER_ENDING: dict[str, Act] = {
    "headers that drip": endless(OK + b"X: ", b"a", PAUSE_S),
    "a status line that drips": endless(b"HTTP/1.1 200 ", b"O", PAUSE_S),
    "100-continues without end": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", PAUSE_S),
    "a chunk size that drips": endless(CHUNKED, b"1", PAUSE_S),
    "chunks of one byte": endless(CHUNKED, b"1\r\n \r\n", PAUSE_S),
    "a trailer without end": endless(CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: y\r\n", PAUSE_S),
    "a body without length that drips": endless(OK + b"\r\n", b" ", PAUSE_S),
    "silence": endless(b"", b"", PAUSE_S),
}


class Evil(socketserver.ThreadingTCPServer):
    """Answers by path; keeps every byte it heard, to be searched for secrets."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes: dict[str, Act] = {}
        self.heard: list[bytes] = []
        self.port = int(self.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def close(self) -> None:
        self.server_close()

    def act(self, talk: Talk) -> None:
        self.routes.get(urlsplit(talk.path).path, answer(b"", "404 Not Found"))(talk)


class Handler(socketserver.StreamRequestHandler):
    server: Evil

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            line = self.rfile.readline(65536).decode("latin-1").split()
            headers: dict[str, str] = {}
            while (field := self.rfile.readline(65536)) not in (b"\r\n", b""):
                name, _, value = field.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            body = self.rfile.read(int(headers.get("content-length", "0")))
            self.server.heard.append(repr((line, headers)).encode() + body)
            self.server.act(
                Talk(self.server, line[0], line[1], headers, body, self.request.sendall)
            )


# A ComfyUI


def frame(content: bytes | str, opcode: int = TEXT, final: bool = True) -> bytes:
    """One websocket frame as a server sends it."""
    data = content.encode() if isinstance(content, str) else content
    return head_of(len(data), opcode, final) + data


def head_of(size: int, opcode: int = TEXT, final: bool = True) -> bytes:
    first = (0x80 if final else 0) | opcode
    if size < 126:
        return struct.pack(">BB", first, size)
    return struct.pack(">BBQ", first, 127, size)


def websocket(frames: Callable[[EvilComfy], Iterable[bytes]]) -> Act:
    """Opens the websocket as it should be, and sends what `frames` makes once there is a prompt."""

    def act(talk: Talk) -> None:
        key = talk.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        talk.send(f"{head}Sec-WebSocket-Accept: {accept}\r\n\r\n".encode())
        talk.server.prompted.wait(20)
        for one in frames(talk.server):
            talk.send(one)
            time.sleep(0.001)
        time.sleep(20)

    return act


GIF = {"filename": "clip.mp4", "subfolder": "", "type": "output"}


def success(*gifs: Any) -> dict[str, Any]:
    """A prompt's record in the history."""
    return {"status": {"status_str": "success"}, "outputs": {"1": {"gifs": list(gifs)}}}


def done(comfy: EvilComfy) -> Iterable[bytes]:
    data = {"node": None, "prompt_id": comfy.prompt_id}
    return [frame(json.dumps({"type": "executing", "data": data}))]


class EvilComfy(Evil):
    """Does all that a ComfyUI does at once, without rendering; `overrule` has it go astray."""

    def __init__(self, film: Callable[[bytes, bytes], bytes], classes: Mapping[str, Any]) -> None:
        """film: makes a clip of its first and its last picture; classes: its /object_info."""
        super().__init__()
        self.make_film, self.classes = film, classes
        self.film = b""
        self.left: dict[str, int] = {}
        self.prompted = threading.Event()
        self.prompt_id, self.sampler = "", ""
        # The pictures by their number, and the texts, that the last job sent.
        self.pictures: dict[int, bytes] = {}
        self.texts: list[str] = []

    def overrule(self, path: str = "", act: Act = void, times: int = 0) -> None:
        """From here on only this path, like /view, is answered in this way, so many times."""
        self.routes, self.left = {path: act}, {path: times}
        self.pictures, self.texts = {}, []

    def act(self, talk: Talk) -> None:
        path = urlsplit(talk.path).path
        name = "/" + path.split("/")[1]
        if self.left.get(name, 0) > 0:
            self.left[name] -= 1
            return self.routes[name](talk)
        return self.behave(name, path)(talk)

    def behave(self, name: str, path: str) -> Act:
        if name == "/object_info":
            asked = path.rpartition("/")[2]
            found = {name: self.classes[name] for name in {asked} & self.classes.keys()}
            return answer(self.classes if asked == "object_info" else found)
        plain: dict[str, Any] = {
            "/system_stats": {"system": {"comfyui_version": "0.27.0", "argv": []}, "devices": []},
            "/history": {self.prompt_id: success(GIF)},
            "/queue": {"queue_running": [self.prompt_id], "queue_pending": []},
            "/view": self.film,
        }
        acts = {"/prompt": self.take_prompt, "/upload": self.take_picture, "/ws": websocket(done)}
        return acts.get(name) or answer(plain.get(name, {}))

    def take_picture(self, talk: Talk) -> None:
        found = re.search(rb'filename="([^"]*-(\d+)\.png)"', talk.body)
        assert found
        start, end = talk.body.index(b"\x89PNG"), talk.body.rindex(b"\r\n--")
        self.pictures[int(found[2])] = talk.body[start:end]
        answer({"name": found[1].decode(), "subfolder": "", "type": "input"})(talk)

    def take_prompt(self, talk: Talk) -> None:
        body = json.loads(talk.body)
        self.prompt_id = body["prompt_id"]
        kinds = {node["class_type"]: key for key, node in body["prompt"].items()}
        self.sampler = kinds["SamplerCustomAdvanced"]
        images = [node["inputs"].get("image") for node in body["prompt"].values()]
        first, last = re.findall(r"-(\d+)\.png", " ".join(map(str, images)))
        self.film = self.make_film(self.pictures[int(first)], self.pictures[int(last)])
        self.texts += [str(node["inputs"].get("text")) for node in body["prompt"].values()]
        answer({"prompt_id": self.prompt_id, "number": 1, "node_errors": {}})(talk)
        self.prompted.set()
