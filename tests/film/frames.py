"""What tests of frames share: a worker that serves jobs, and what became of them."""

from __future__ import annotations

import contextlib
import io
import socketserver
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image, ImageOps

from ltx.cancellation import Cancellation
from ltx.film.ffmpeg import Media
from ltx.film.pictures import check_picture, prepare_frames
from ltx.settings import Settings, Size
from tests.conftest import Box
from tests.pictures import Array, picture

SHAPE = Size(128, 96)
MIB = 2**20
# Levels; another picture or another orientation is 20 and more away.
ALIKE = 2.0
GOOD = picture((320, 180), 1)


def port_of(box: Box) -> int:
    port = urlsplit(box.hosted.url).port
    assert port
    return port


def fail(box: Box, *frames: str) -> tuple[str, str]:
    """Code and message of a job that cannot be done; nothing is rendered for it, nothing kept."""
    before = box.hosted.now()
    job = box.hosted.add_job(frames, ["walk on"] * (len(frames) - 1))
    event = box.hosted.wait("fail", job=job)
    box.hosted.wait("pending", after=event["seq"])
    assert not (box.state / "jobs" / job).exists()
    assert not box.hosted.events("comfyui.prompt", after=before)
    error = event["data"]["error"]
    return error["code"], error["message"]


def gets(box: Box, name: str) -> int:
    return len(box.hosted.requests(f"GET /frames/{name}"))


def good_frame(box: Box) -> str:
    return box.hosted.put_frame("good.png", GOOD)


def chain(box: Box, name: str, hops: int, content: bytes = GOOD) -> str:
    """Frames that redirect one to the next, up to a picture; the first one's address."""
    for hop in range(hops):
        target = f"{box.hosted.url}/frames/{name}-{hop + 1}.png"
        box.hosted.put_frame(f"{name}-{hop}.png", GOOD)
        box.hosted.fault(f"GET /frames/{name}-{hop}.png", times=-1, redirect=target)
    box.hosted.put_frame(f"{name}-{hops}.png", content)
    return f"{box.hosted.url}/frames/{name}-0.png"


class Flood(socketserver.StreamRequestHandler):
    """100 MB of nothing as a frame, /big.png, or as the body of a redirect, /flood.png."""

    def handle(self) -> None:
        assert isinstance(self.server, FloodServer)
        path = self.rfile.readline().split()[1].decode()
        status = {"/flood.png": "302 Found", "/big.png": "200 OK"}.get(path)
        if status is None:
            self.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        head = f"HTTP/1.1 {status}\r\nLocation: /again\r\nConnection: close\r\n\r\n"
        sent = 0
        # An error means that the worker has had enough, as it should.
        with contextlib.suppress(OSError):
            self.wfile.write(head.encode())
            while sent < 100 * MIB:
                sent += self.wfile.write(bytes(MIB))
        self.server.sent[path] = sent
        self.server.done.set()


class FloodServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Flood)
        self.sent, self.done = dict[str, int](), threading.Event()
        self.port = self.server_address[1]

    def __enter__(self) -> FloodServer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def chunks(content: bytes) -> Iterator[bytes]:
    place = 8
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        yield content[place + 4 : place + 8]
        place += 12 + length


def pixels_of(content: bytes) -> Array:
    """A picture's pixels as a program shows them that honours tags."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


def cut_to(image: Image.Image, shape: Size) -> Array:
    """What a picture should look like once it fills `shape`."""
    return np.asarray(ImageOps.fit(image.convert("RGB"), shape, Image.Resampling.LANCZOS))


def media_on(path: str, folder: Path) -> Media:
    """With the programs that are found on this PATH."""
    return Media(Settings.load({"PATH": path, "STATE_DIR": str(folder)}, needed=()), Cancellation())


def prepare(media: Media, folder: Path, content: bytes, shape: Size = SHAPE) -> bytes:
    """The file that would be uploaded to ComfyUI for this one; nothing else is left behind."""
    source, target = folder / "source", folder / "target.png"
    source.write_bytes(content)
    prepare_frames(media, [(check_picture(source, "frames[7]"), target)], shape, at_once=1)
    assert set(folder.iterdir()) == {source, target}
    with Image.open(target) as image:
        assert (image.size, image.mode) == (tuple(shape), "RGB")
    return target.read_bytes()
