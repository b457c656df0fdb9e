"""What no frame can be made of is refused, with a sentence that is true."""

from __future__ import annotations

import gzip
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ltx.errors import JobError
from ltx.film.ffmpeg import Media
from ltx.film.formats import NoPicture
from ltx.film.pictures import read_file, read_layout
from sandbox.launch import worker_command
from tests.conftest import Box
from tests.film.frames import GOOD, MIB, fail, gets, good_frame, prepare
from tests.film.picture_files import (
    OTHER,
    jpeg,
    movie,
    segment,
    veil,
    with_alpha,
    with_chunks,
    with_segments,
)  # fmt: skip
from tests.pictures import image_of, png_chunk, save

PAGE = b"<!doctype html><html><title>Sign in</title><img src=good.png></html>"
BUCKET = b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code><Message>no</Message></Error>'


def png_of_nothing(width: int, height: int) -> bytes:
    """A PNG of black RGB pixels, a thousandth of their size."""
    packer = zlib.compressobj(9)
    rows = [packer.compress(bytes(1 + 3 * width)) for _ in range(height)]
    return png(width, height, b"".join([*rows, packer.flush()]))


def png(width: int, height: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": pixels, b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks.items())


def corrupt(content: bytes) -> bytes:
    middle = len(content) // 2
    flipped = bytes(byte ^ 0xFF for byte in content[middle : middle + 40])
    return content[:middle] + flipped + content[middle + 40 :]


def iso(*brands: bytes) -> bytes:
    """The first bytes of an ISO media file."""
    content = b"ftyp" + brands[0] + bytes(4) + b"".join(brands)
    return struct.pack(">I", 4 + len(content)) + content + bytes(99)


# Whose fault


ANSWERS = {
    "nothing": (b"", "nothing"),
    "a web page": (PAGE, "a web page (Sign in)"),
    "a web page in UTF-16's place": (b"\xef\xbb\xbf \n" + PAGE, "a web page (Sign in)"),
    "a bucket's error": (BUCKET, "an XML error (AccessDenied)"),
    "JSON": (b'{"error": "no such object"}', 'JSON ({"error": "no such object"})'),
    "a text": (b"error code: 1020", "a text (error code: 1020)"),
    "a packed picture": (gzip.compress(GOOD), "a packed answer (gzip)"),
    "a playlist": (b"#EXTM3U\n#EXTINF:1,\n/frames/bait.png\n#EXT-X-ENDLIST\n", "a text (#EXTM3U"),
    "a concat script": (b"ffconcat version 1.0\nfile '/frames/bait.png'\n", "a text (ffconcat"),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_the_host_is_at_fault_when_it_sends(service: Box, what: str) -> None:
    content, told = ANSWERS[what]
    name = f"{what.replace(' ', '-').replace(chr(39), '')}.png"
    url = service.hosted.put_frame(name, content)
    service.hosted.put_frame("bait.png", GOOD)
    code, message = fail(service, good_frame(service), url)
    assert code == "frame_unavailable"
    assert "stageData.frames[1]" in message
    assert f"the host sends {told}" in message
    assert gets(service, name) == 3
    assert gets(service, "bait.png") == 0


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>'
SEND = "send a JPEG, a PNG or a WebP"
NO_PICTURES = {
    "one zero byte": (b"\0", f"of a kind nobody here knows; {SEND}"),
    "a HEIC": (iso(b"heic", b"mif1", b"heic"), f"it is a HEIC picture; {SEND}"),
    "a HEIC by its second brand": (iso(b"mif1", b"heix"), "it is a HEIC picture"),
    "an AVIF": (iso(b"avif", b"mif1", b"miaf"), "it is an AVIF picture"),
    "an AVIF by its second brand": (iso(b"mif1", b"avif"), "it is an AVIF picture"),
    "a raw file": (iso(b"crx ", b"isom"), "a camera's raw file"),
    "a film": (movie(), "it is a video"),
    "a drawing": (SVG, "it is an SVG drawing"),
    "a GIF": (save(image_of(1), "GIF"), "it is a GIF"),
    "a BMP": (save(image_of(1), "BMP"), "it is a BMP"),
    "a TIFF": (save(image_of(1), "TIFF"), "it is a TIFF"),
    "a PDF": (b"%PDF-1.7\n" + GOOD, "it is a PDF"),
    "a ZIP": (b"PK\3\4" + GOOD, "it is a ZIP archive"),
    "half a PNG": (half(GOOD), "it is cut short"),
    "half a JPEG": (half(jpeg()), "it is cut short"),
    "half a JPEG and a whole one": (half(jpeg()) + jpeg(), "it is cut short"),
    "a corrupt PNG": (corrupt(GOOD), "it is damaged, or made in a way that ffmpeg"),
    "a page in a JPEG's clothes": (b"\xff\xd8\xff\xe0" + PAGE, "it is cut short"),
    "a PNG of 100000 x 100000": (
        png(100_000, 100_000, zlib.compress(bytes(99))),
        "it claims 100000 x 100000 pixels",
    ),
}


@pytest.mark.parametrize("what", NO_PICTURES)
def test_the_customer_is_told_when_the_file_is(service: Box, what: str) -> None:
    content, told = NO_PICTURES[what]
    name = f"{what.replace(' ', '-').replace(chr(39), '')}.png"
    url = service.hosted.put_frame(name, content)
    place = len(what) % 2
    frames = [url, good_frame(service)] if place == 0 else [good_frame(service), url]
    code, message = fail(service, *frames)
    assert code == "frame_invalid"
    assert f"stageData.frames[{place}]: " in message
    assert told in message
    assert "exit code" not in message
    assert gets(service, name) == 1


# Whole or not

NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (48, 64, 3)).astype(np.uint8))
WHOLE = {
    "PNG": save(NOISE),
    "PNG, animated": save(NOISE, save_all=True, append_images=[OTHER.resize(NOISE.size)]),
    "JPEG": save(NOISE, "JPEG"),
    "JPEG, restarts": save(NOISE, "JPEG", restart_marker_rows=1),
    "JPEG, progressive": save(NOISE, "JPEG", progressive=True),
    "JPEG with a thumbnail": save(NOISE, "JPEG", exif=b"Exif\0\0" + jpeg(OTHER.resize((64, 40)))),
    "WebP, lossless": save(NOISE, "WEBP", lossless=True),
    "WebP, lossy, alpha": save(
        with_alpha(NOISE, veil()[:48, :64]), "WEBP", lossless=False, exif=b"Exif\0\0II*\0"
    ),
    "WebP, animated": save(NOISE, "WEBP", save_all=True, append_images=[OTHER.resize(NOISE.size)]),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_picture_is_refused_wherever_it_is_cut(name: str) -> None:
    content = WHOLE[name]
    assert read_layout(content).size == NOISE.size

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(st.integers(1, len(content) - 1))
    def check(place: int) -> None:
        with pytest.raises(NoPicture):
            read_layout(content[:place])

    check()
    for place in [*range(1, 64), *range(len(content) - 64, len(content))]:
        with pytest.raises(NoPicture):
            read_layout(content[:place])


@pytest.mark.parametrize("name", WHOLE)
def test_no_bytes_make_a_walk_stumble(name: str) -> None:
    content = WHOLE[name]

    @settings(
        max_examples=200, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(st.integers(2, len(content)), st.binary(max_size=12), st.integers(0, 40))
    def check(place: int, other: bytes, lost: int) -> None:
        try:
            layout = read_layout(content[:place] + other + content[place + lost :])
        except NoPicture:
            return
        assert 1 <= layout.orientation <= 8
        assert layout.size.width * layout.size.height <= 64_000_000

    check()


def patched(content: bytes, share: float, end: bytes) -> bytes:
    """A file that lost what was in it, and was given an end all the same."""
    return content[: int(len(content) * share)] + end


def png_with_pixels(share: float) -> bytes:
    rows = zlib.compress(b"".join(b"\0" + bytes(row) for row in np.asarray(NOISE).reshape(48, -1)))
    return png(*NOISE.size, rows[: int(len(rows) * share)])


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "JPEG, progressive"])
def test_a_picture_that_lacks_lines_inside_is_refused(
    media: Media, tmp_path: Path, kind: str, share: float
) -> None:
    content = png_with_pixels(share)
    if kind != "PNG":
        content = patched(WHOLE[kind], share, b"\xff\xd9")
    with pytest.raises(JobError) as told:
        prepare(media, tmp_path, content)
    assert told.value.code == "frame_invalid"
    # What is left of a progressive picture may end within a table.
    assert re.match(r"frames\[7\]: it is (damaged|cut short)", told.value.detail)
    assert "@ 0x" not in told.value.detail
    assert not (tmp_path / "target.png").exists()


@pytest.mark.parametrize("what", ["PNG", "JPEG", "FF"])
def test_what_is_made_to_fill_the_memory_does_not(tmp_path: Path, what: str) -> None:
    part = segment(0xE2, b"ICC_PROFILE\0\1\1".ljust(65_533, b"\0"))
    content = {
        "PNG": with_chunks(GOOD, png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(100 * MIB)))),
        "JPEG": with_segments(jpeg(), *([part] * 250)),
        "FF": jpeg()[:-2] + b"\xff" * 16 * MIB + b"\xff\xd9",
    }[what]
    (tmp_path / "picture").write_bytes(content)
    tracemalloc.start()
    try:
        assert read_file(tmp_path / "picture").profile == b""
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * MIB


PEAK = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def test_a_bomb_is_refused_before_its_pixels_are_unpacked(box: Box) -> None:
    bomb, good = box.folder / "bomb.png", box.folder / "good.png"
    bomb.write_bytes(png_of_nothing(9000, 9000))
    assert bomb.stat().st_size < MIB, "it is small to download"
    good.write_bytes(GOOD)
    out = box.folder / "out.mp4"
    # From a small process, as Linux counts what a parent held when it forked as the child's.
    render = worker_command("render", str(bomb), str(good), "--prompt", "walk on", "-o", str(out))
    ended = subprocess.run(
        [sys.executable, "-c", PEAK, *render], env=box.environ(), capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "frame_invalid" in ended.stderr
    assert "stageData.frames[0]" in ended.stderr
    assert not out.exists()
    # The worker and all its children; the unpacked pixels alone would be 243 MB.
    assert int(ended.stdout) * 1024 < 200 * MIB, "a program unpacked what was to be refused"
