"""Frames come from anywhere but from inside this network, and only real pictures are rendered."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import socketserver
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image, ImageOps

from ltx.cancellation import Halt
from ltx.errors import ToolFailed, Unavailable
from ltx.film.ffmpeg import Media, exif_orientation
from ltx.hosted.frames import is_public
from ltx.hosted.http import Http
from ltx.settings import Settings, Size
from tests.conftest import SIZE, Box, a_stage
from tests.pictures import Array, image_of, likeness, picture, png_chunk, save

SHAPE = Size(128, 96)
TALL = SIZE[::-1]
MIB = 2**20
ALIKE = 4.0  # levels; another picture or another orientation is 20 and more away
GOOD = picture((320, 180), 1)


# Picture files


def png_of_nothing(width: int, height: int) -> bytes:
    """A PNG of black RGB pixels, a thousandth of their size."""
    packer = zlib.compressobj(9)
    rows = [packer.compress(bytes(1 + 3 * width)) for _ in range(height)]
    return png(width, height, b"".join([*rows, packer.flush()]))


def png(width: int, height: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": pixels, b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks.items())


def png_of_16_bits(image: Image.Image) -> bytes:
    command = ["ffmpeg", "-v", "error", "-f", "png_pipe", "-i", "-", "-pix_fmt", "rgb48be"]
    command += ["-f", "image2pipe", "-c:v", "png", "-"]
    return subprocess.run(command, input=save(image), capture_output=True, check=True).stdout


def pixels_of(content: bytes) -> Array:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def cut_to(image: Image.Image, shape: Size) -> Array:
    """What a picture should look like once it fills `shape`."""
    return np.asarray(ImageOps.fit(image.convert("RGB"), shape, Image.Resampling.LANCZOS))


# A worker that serves one bad job after the other


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


@pytest.fixture(scope="module")
def flood() -> Iterator[FloodServer]:
    with FloodServer() as server:
        yield server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, flood: FloodServer) -> Iterator[Box]:
    """A worker that goes on from job to job, on a machine whose netrc knows every host."""
    folder = tmp_path_factory.mktemp("frames")
    netrc = folder / ".netrc"
    netrc.write_text("default login someone password netrc-password\n")
    netrc.chmod(0o600)
    with a_stage(folder) as box:
        hosts = f"127.0.0.1:{port_of(box)}, 127.0.0.1:{flood.port}"
        box.start("run", HOME=str(folder), FRAME_HOSTS=hosts)
        yield box


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


# What hosts do


@pytest.mark.parametrize("status", [404, 403])
def test_a_frame_that_is_gone_or_forbidden_is_not_asked_for_again(
    service: Box, status: int
) -> None:
    name = f"gone-{status}.png"
    url = service.hosted.put_frame(name, GOOD)
    service.hosted.fault(f"GET /frames/{name}", times=-1, status=status)
    code, message = fail(service, url, url)
    assert code == "frame_unavailable"
    assert "stageData.frames[0]" in message
    assert str(status) in message
    assert gets(service, name) == 1


@pytest.mark.parametrize(
    ("name", "action"),
    {
        "down.png": {"status": 503},
        "reset.png": {"reset": True},
        "stops-in-the-middle.png": {"truncate": 5000},
    }.items(),
)
def test_a_host_that_fails_three_times_makes_the_frame_unavailable(
    service: Box, name: str, action: dict[str, Any]
) -> None:
    url = service.hosted.put_frame(name, GOOD)
    service.hosted.fault(f"GET /frames/{name}", times=-1, **action)
    code, message = fail(service, good_frame(service), url)
    assert code == "frame_unavailable"
    assert "stageData.frames[1]" in message
    assert gets(service, name) == 3


@pytest.mark.parametrize(
    "action",
    [{"drip": {"bytes": 1, "every": 0.02}}, {"blackhole": True}, {"delay": 30}],
    ids=["drips", "is silent", "answers late"],
)
def test_the_time_for_a_download_is_limited_as_a_whole_when_the_host(
    service: Box, action: dict[str, Any]
) -> None:
    name = f"slow-{next(iter(action))}.png"
    url = service.hosted.put_frame(name, GOOD)
    service.hosted.fault(f"GET /frames/{name}", **action)
    with pytest.raises(Unavailable):
        Http(proxies=False).exchange("GET", url, seconds=0.3, sink=io.BytesIO())
    assert Http(proxies=False).exchange("GET", url).body == GOOD


def test_a_frame_above_64_mb_is_invalid_and_never_in_memory_as_a_whole(service: Box) -> None:
    url = service.hosted.put_frame("endless.png", GOOD)
    service.hosted.fault("GET /frames/endless.png", times=-1, endless=True)
    process = Path(f"/proc/{service.running[-1].process.pid}")
    service.hosted.wait("pending")
    before = peak_memory(process)
    code, message = fail(service, url, url)
    assert code == "frame_invalid"
    assert "stageData.frames[0]" in message
    assert "above 64 MB" in message
    assert gets(service, "endless.png") == 1
    assert peak_memory(process) - before < 32 * MIB


def test_the_limit_of_a_frame_is_64_mb_and_not_more(service: Box, flood: FloodServer) -> None:
    big = f"http://127.0.0.1:{flood.port}/big.png"
    code, message = fail(service, big, good_frame(service))
    assert code == "frame_invalid"
    assert "above 64 MB" in message


def peak_memory(process: Path) -> int:
    """The most memory a process has had so far, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
    assert found
    return int(found[1]) * 1024


def test_a_redirect_may_not_bring_more_than_64_mb_either(service: Box, flood: FloodServer) -> None:
    flood.done.clear()
    code, _ = fail(service, f"http://127.0.0.1:{flood.port}/flood.png", good_frame(service))
    assert code in ("frame_invalid", "frame_unavailable")
    assert flood.done.wait(30)
    assert flood.sent["/flood.png"] < 72 * MIB, (
        "the body of a redirect was swallowed without a limit"
    )


# Where frames may come from


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "2130706433",
        "0x7f000001",
        "127.1",
        "0.0.0.0",
        "[::ffff:127.0.0.1]",
        "[::1]",
        "169.254.169.254",
    ],
)
def test_a_private_address_that_frame_hosts_does_not_name_is_refused(
    service: Box, host: str
) -> None:
    before = len(service.hosted.requests("* /frames/*"))
    good = good_frame(service)
    url = f"http://{host}:{port_of(service)}/frames/good.png"
    code, message = fail(service, url, good)
    assert code == "frame_unavailable"
    assert "private address" in message
    assert "FRAME_HOSTS" in message
    assert len(service.hosted.requests("* /frames/*")) == before


def test_a_port_that_frame_hosts_does_not_name_is_refused(service: Box) -> None:
    url = f"http://127.0.0.1:{service.port}/frames/good.png"
    code, message = fail(service, url, good_frame(service))
    assert code == "frame_unavailable"
    assert "private address" in message


@pytest.mark.parametrize("host", ["localhost", "[::ffff:127.0.0.1]"])
def test_an_allowed_host_cannot_redirect_to_a_private_address(service: Box, host: str) -> None:
    name = f"to-{re.sub('[^a-z0-9]', '-', host)}.png"
    target = f"http://{host}:{port_of(service)}/frames/good.png"
    url = service.hosted.put_frame(name, GOOD)
    service.hosted.fault(f"GET /frames/{name}", times=-1, redirect=target)
    before = gets(service, "good.png")
    code, message = fail(service, url, good_frame(service))
    assert code == "frame_unavailable"
    assert "private address" in message
    assert gets(service, name) == 1
    assert gets(service, "good.png") == before


def test_a_redirect_to_a_file_of_this_machine_is_not_followed(service: Box) -> None:
    url = service.hosted.put_frame("to-file.png", GOOD)
    target = service.watermark.as_uri()
    service.hosted.fault("GET /frames/to-file.png", times=-1, redirect=target)
    code, message = fail(service, url, good_frame(service))
    assert code == "frame_unavailable"
    assert "stageData.frames[0]" in message


def test_a_fourth_redirect_is_not_followed(service: Box) -> None:
    chain(service, "long", hops=4)
    code, _ = fail(service, f"{service.hosted.url}/frames/long-0.png", good_frame(service))
    assert code == "frame_unavailable"
    assert gets(service, "long-3.png") > 0
    assert gets(service, "long-4.png") == 0


def chain(box: Box, name: str, hops: int, content: bytes = GOOD) -> str:
    """Frames that redirect one to the next, up to a picture; the first one's address."""
    for hop in range(hops):
        target = f"{box.hosted.url}/frames/{name}-{hop + 1}.png"
        box.hosted.put_frame(f"{name}-{hop}.png", GOOD)
        box.hosted.fault(f"GET /frames/{name}-{hop}.png", times=-1, redirect=target)
    box.hosted.put_frame(f"{name}-{hops}.png", content)
    return f"{box.hosted.url}/frames/{name}-0.png"


@pytest.mark.parametrize("who", ["user:password@", "@"])
def test_an_address_with_credentials_is_refused_before_any_download(service: Box, who: str) -> None:
    good = good_frame(service)
    before = len(service.hosted.requests("* /frames/*"))
    code, message = fail(service, good, good.replace("http://", f"http://{who}"))
    assert code == "bad_job"
    assert "without credentials" in message
    assert len(service.hosted.requests("* /frames/*")) == before


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example", "[::zz]"])
def test_a_host_that_cannot_exist_is_the_jobs_fault_and_nothing_unexpected(
    service: Box, host: str
) -> None:
    code, message = fail(service, f"http://{host}/frame.png", good_frame(service))
    assert code in ("frame_unavailable", "bad_job"), message


@pytest.mark.parametrize(
    "address",
    """
    127.0.0.1 127.255.255.254 0.0.0.0 10.1.2.3 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1
    169.254.169.254 192.0.2.1 198.18.0.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255
    ::1 :: ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 fc00::1 fd12:3456::1 fe80::1
    fe80::1%eth0 ff02::1 2001:db8::1
    """.split(),  # noqa: SIM905 (a table is easier to read)
)
def test_addresses_of_this_home_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "172.32.0.1", "::ffff:8.8.8.8", "2606:4700::1"])
def test_addresses_of_the_open_internet_are_public(address: str) -> None:
    assert is_public(address)


# What is no picture


def corrupt(content: bytes) -> bytes:
    middle = len(content) // 2
    flipped = bytes(byte ^ 0xFF for byte in content[middle : middle + 40])
    return content[:middle] + flipped + content[middle + 40 :]


def no_pictures() -> dict[str, Callable[[Box], bytes]]:
    """Each one made with the box at hand, because playlists name files that do exist."""
    page = b"<!doctype html><title>Sign in</title><img src=good.png>"
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>'
    jpeg = picture((320, 180), 2, format="JPEG")

    def fixed(content: bytes) -> Callable[[Box], bytes]:
        return lambda box: content

    def m3u8(box: Box) -> bytes:
        url = f"{box.hosted.url}/frames/bait.png"
        return f"#EXTM3U\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n".encode()

    def concat(box: Box) -> bytes:
        return f"ffconcat version 1.0\nfile '{box.watermark}'\n".encode()

    return {
        "nothing": fixed(b""),
        "one zero byte": fixed(b"\0"),
        "a page": fixed(page),
        "a drawing": fixed(drawing),
        "a GIF": fixed(save(image_of(1), "GIF")),
        "a BMP": fixed(save(image_of(1), "BMP")),
        "text": fixed(b"a picture of a room"),
        "a playlist": m3u8,
        "a concat script": concat,
        "half a PNG": fixed(GOOD[: len(GOOD) // 2]),
        "half a JPEG": fixed(jpeg[: len(jpeg) // 2]),
        "a corrupt PNG": fixed(corrupt(GOOD)),
        "a page behind a JPEG's first bytes": fixed(b"\xff\xd8\xff\xe0" + page),
        "a PNG of 100000 x 100000": fixed(png(100_000, 100_000, zlib.compress(bytes(99)))),
    }


@pytest.mark.parametrize("what", no_pictures())
def test_a_frame_is_invalid_when_it_is(service: Box, what: str) -> None:
    content = no_pictures()[what](service)
    name = f"{what.replace(' ', '-').replace(chr(39), '')}.png"
    url = service.hosted.put_frame(name, content)
    place = len(what) % 2
    service.hosted.put_frame("bait.png", GOOD)
    frames = [url, good_frame(service)] if place == 0 else [good_frame(service), url]
    code, message = fail(service, *frames)
    assert code == "frame_invalid"
    assert f"stageData.frames[{place}]" in message
    assert gets(service, name) == 1
    assert gets(service, "bait.png") == 0


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    folder = tmp_path_factory.mktemp("media")
    environ = {"PATH": os.environ["PATH"], "STATE_DIR": str(folder)}
    return Media(Settings.load(environ, needed=()), Halt())


def prepare(media: Media, folder: Path, content: bytes, shape: Size = SHAPE) -> Array:
    """The picture that would be uploaded to ComfyUI for this file."""
    source, target = folder / "source", folder / "target.png"
    source.write_bytes(content)
    media.prepare_frame(media.check_picture(source), target, shape)
    with Image.open(target) as image:
        assert image.size == tuple(shape)
        assert image.mode == "RGB"
    return pixels_of(target.read_bytes())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize(
    ("format", "options"),
    [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {})],
    ids=["PNG", "JPEG", "progressive JPEG", "WebP"],
)
def test_a_file_cut_short_is_no_picture(
    media: Media, tmp_path: Path, format: str, options: dict[str, Any], share: float
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (90, 160, 3)).astype(np.uint8)
    whole = save(Image.fromarray(noise), format, **options)
    with pytest.raises(ToolFailed):
        prepare(media, tmp_path, whole[: int(len(whole) * share)])
    assert not (tmp_path / "target.png").exists()


def test_a_bomb_is_refused_before_its_pixels_are_unpacked(box: Box) -> None:
    bomb, good = box.folder / "bomb.png", box.folder / "good.png"
    bomb.write_bytes(png_of_nothing(9000, 9000))
    assert bomb.stat().st_size < MIB, "it is small to download"
    good.write_bytes(GOOD)
    out = box.folder / "out.mp4"
    worker = box.start("render", str(bomb), str(good), "--prompt", "walk on", "-o", str(out))
    _, status, usage = os.wait4(worker.process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    assert "frame_invalid" in worker.log
    assert "stageData.frames[0]" in worker.log
    assert not out.exists()
    # The worker and all its children; the unpacked pixels alone would be 243 MB.
    assert usage.ru_maxrss * 1024 < 200 * MIB, "a program unpacked what was to be refused"


# What is a picture


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(60)
    return image


PICTURES: dict[str, tuple[bytes, Image.Image]] = {
    "16-bit PNG": (png_of_16_bits(image_of(3)), image_of(3)),
    "16-bit grey PNG": (
        save(Image.fromarray(np.asarray(image_of(3).convert("L")).astype(np.uint16) * 257)),
        image_of(3).convert("L"),
    ),
    "palette PNG": (save(image_of(3).quantize(64)), image_of(3).quantize(64)),
    "transparent palette PNG": (
        save(image_of(3).quantize(64), transparency=3),
        image_of(3).quantize(64),
    ),
    "grey PNG": (save(image_of(3).convert("L")), image_of(3).convert("L")),
    "RGBA PNG": (save(with_alpha(image_of(3))), image_of(3)),
    "CMYK JPEG": (save(image_of(3).convert("CMYK"), "JPEG", quality=95), image_of(3)),
    "progressive JPEG": (save(image_of(3), "JPEG", progressive=True), image_of(3)),
    "WebP": (save(image_of(3), "WEBP", quality=90), image_of(3)),
    "lossless WebP": (save(image_of(3), "WEBP", lossless=True), image_of(3)),
    "WebP with alpha": (
        save(with_alpha(image_of(3)), "WEBP", lossless=True, exact=True),
        image_of(3),
    ),
    "1x1": (save(Image.new("RGB", (1, 1), (200, 90, 30))), Image.new("RGB", (1, 1), (200, 90, 30))),
    "4000x8": (save(image_of(3, (4000, 8))), image_of(3, (4000, 8))),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_frame_may_be_a(media: Media, tmp_path: Path, name: str) -> None:
    content, image = PICTURES[name]
    assert likeness(prepare(media, tmp_path, content), cut_to(image, SHAPE)) < ALIKE


@pytest.mark.parametrize("shape", [Size(128, 96), Size(96, 128)], ids=["landscape", "portrait"])
def test_a_frame_is_cut_around_its_middle(media: Media, tmp_path: Path, shape: Size) -> None:
    image = image_of("wide", (500, 120))
    got = prepare(media, tmp_path, save(image), shape)
    assert likeness(got, cut_to(image, shape)) < ALIKE


# Which side is up

# What a camera did to the upright picture, by the orientation it then wrote down.
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned(upright: Image.Image, orientation: int) -> Image.Image:
    return upright.transpose(TURNED[orientation]) if orientation in TURNED else upright


FORMATS = ("JPEG", "PNG", "WEBP")


def exif(orientation: int, order: str = "<", *, tags: int = 3) -> bytes:
    """An EXIF block whose orientation stands behind some other tags."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    others = b"".join(struct.pack(f"{order}HHIHH", 0x8000 + tag, 3, 1, 6, 0) for tag in range(tags))
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    table = struct.pack(f"{order}H", tags + 1) + others + entry + bytes(4)
    return b"Exif\0\0" + head + struct.pack(f"{order}I", 8) + table


UNUSABLE = {
    "0": exif(0),
    "9": exif(9),
    "65535": exif(65535),
    "head only": exif(6)[:14],
    "cut in a tag": exif(6)[:20],
    "garbage": exif(6)[:18] + b"\xff" * 9,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", FORMATS)
def test_a_turned_frame_is_set_upright(
    media: Media, tmp_path: Path, format: str, orientation: int
) -> None:
    upright = image_of("upright", (320, 200))
    order = "<>"[orientation % 2]
    content = save(turned(upright, orientation), format, exif=exif(orientation, order))
    # Pillow is the second opinion on what the file says.
    agreed = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert likeness(cut_to(agreed, SHAPE), cut_to(upright, SHAPE)) < ALIKE
    assert likeness(prepare(media, tmp_path, content), cut_to(upright, SHAPE)) < ALIKE


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", FORMATS)
def test_every_orientation_is_read_in_both_byte_orders_behind_other_tags(
    format: str, orientation: int, order: str
) -> None:
    content = save(Image.new("RGB", (8, 8)), format, exif=exif(orientation, order, tags=40))
    assert exif_orientation(content) == orientation


@pytest.mark.parametrize("block", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("format", FORMATS)
def test_an_orientation_that_says_nothing_usable_counts_as_upright(
    format: str, block: bytes
) -> None:
    content = save(Image.new("RGB", (8, 8)), format, exif=block)
    assert exif_orientation(content) == 1


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_with_damaged_exif_is_still_a_picture(
    media: Media, tmp_path: Path, format: str
) -> None:
    upright = image_of("upright", (320, 200))
    content = save(upright, format, exif=UNUSABLE["garbage"])
    assert likeness(prepare(media, tmp_path, content), cut_to(upright, SHAPE)) < ALIKE


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_without_exif_is_upright(format: str) -> None:
    assert exif_orientation(save(image_of(1), format)) == 1


# Through the worker


def film_of(box: Box, frames: list[str], size: tuple[int, int]) -> Array:
    """Every frame of the film that is made of these."""
    job = box.hosted.add_job(frames, ["walk on"] * (len(frames) - 1))
    worker = box.run_once()
    assert box.hosted.job(job)["state"] == "completed", worker.log[-3000:]
    command = ["ffmpeg", "-v", "error", "-i", str(box.hosted.blob_path(job)), "-vf"]
    command += ["scale=in_color_matrix=bt709:in_range=tv:out_range=pc"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, size[1], size[0], 3)


def shown(image: Image.Image, film: tuple[int, int]) -> Array:
    """An upright picture as the film shows it: filled to the rendered size, then cut."""
    rendered = Size(*(-(-side // 32) * 32 for side in film))
    x, y = ((big - small) // 2 for big, small in zip(rendered, film, strict=True))
    return cut_to(image, rendered)[y : y + film[1], x : x + film[0]]


def test_every_clip_of_a_portrait_film_opens_on_its_picture_upright(box: Box) -> None:
    uprights = [image_of(f"room {n}", (180, 320)) for n in range(4)]
    files = [
        save(turned(uprights[0], 6), "JPEG", exif=exif(6), quality=90),
        save(turned(uprights[1], 8), "PNG", exif=exif(8, ">")),
        save(turned(uprights[2], 5), "WEBP", exif=exif(5), quality=90),
        save(uprights[3].convert("CMYK"), "JPEG", quality=95),
    ]
    urls = [box.hosted.put_frame(f"turned-{n}", file) for n, file in enumerate(files)]
    frames = film_of(box, urls, TALL)
    assert len(frames) == 360
    for clip, upright in enumerate(uprights[:3]):
        assert likeness(frames[120 * clip], shown(upright, TALL)) < 8
    # The last picture itself is trimmed away; one frame before it, hardly anything is missing.
    assert likeness(frames[-1], shown(uprights[3], TALL)) < 8


def test_hosts_that_stumble_or_redirect_three_times_are_served_without_our_secrets(
    box: Box,
) -> None:
    home = box.folder / "home"
    home.mkdir()
    (home / ".netrc").write_text("default login someone password netrc-password\n")
    (home / ".netrc").chmod(0o600)
    box.settings["HOME"] = str(home)
    wide, dot = image_of("wide", (4000, 8)), Image.new("RGB", (1, 1), (200, 90, 30))
    first = box.hosted.put_frame("stumbles.png", save(wide))
    match = "GET /frames/stumbles.png"
    box.hosted.fault(match, status=503, headers={"Set-Cookie": "a=b", "Retry-After": "1"})
    box.hosted.fault(match, truncate=100)
    last = chain(box, "hop", hops=3, content=save(dot))
    frames = film_of(box, [first, last], SIZE)
    assert likeness(frames[0], shown(wide, SIZE)) < 8
    assert likeness(frames[-1], shown(dot, SIZE)) < 8

    requests = box.hosted.requests("* /frames/*")
    assert gets(box, "stumbles.png") == 3
    assert len(requests) == 3 + 4
    secrets = [box.hosted.secret, box.hosted.blob_token, "netrc-password", "test-worker"]
    secrets += [base64.b64encode(f"someone:{secrets[2]}".encode()).decode()]
    for request in requests:
        told = repr(request)
        assert not [secret for secret in secrets if secret in told]
        assert set(request["headers"]) <= {
            *("host", "user-agent", "accept", "accept-encoding", "connection"),
            "cookie",  # the host's own, from its first answer
        }
        assert not request["query"]
