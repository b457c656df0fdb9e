"""The table of hostile input: what comes in, and what the worker has to make of it.

`expected` is an error code, or `renders` (a film of it is delivered), `left alone` (no job is made
of the offer), `goes on` (the next call is made) or `delivered` (in spite of it).
"""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sandbox.evil import (
    BINARY,
    CHUNKED,
    GIF,
    NEVER_ENDING,
    OK,
    PAUSE_S,
    PING,
    Act,
    EvilComfy,
    answer,
    done,
    endless,
    frame,
    head_of,
    raw,
    redirect,
    success,
    websocket,
)
from tests.pictures import image_of, picture, png_chunk, save

PAGE = b"<!doctype html><title>Sign in</title><img src=good.png>"
GOOD = picture((320, 180), 1)
MIB = 2**20
STRANGE_IDS = r"""
../../escaped a/b .. . a%2fb a\b /etc/passwd ~ $HOME `id` $(id) ;id a|b a&b * job.json CON: a.b a:b
"""
# Every way to say this machine, this home, and what leads there.
INSIDE = """
localhost LOCALHOST localhost. 127.0.0.1 127.1 127.0.1 127.255.255.254 2130706433 0x7f000001 0x7f.1
0x7F.0x0.0x0.0x1 017700000001 0177.0.0.1 0 0.0.0.0 10.0.0.1 172.16.0.1 192.168.0.1 100.64.0.1
169.254.169.254 2852039166 0xa9fea9fe 255.255.255.255 224.0.0.1 240.0.0.1 198.18.0.1 192.0.2.1
192.0.0.8 192.88.99.1 0.1.2.3 [::1] [::] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1]
[::ffff:169.254.169.254] [::ffff:0:7f00:1] [::127.0.0.1] [::1%25lo] [64:ff9b::7f00:1]
[64:ff9b:1::7f00:1] [2002:7f00:1::] [fe80::1%25lo] [fec0::1] [fd00::1] [fd00:ec2::254] [ff02::1]
[5f00::1] [2001:db8::1] [2001:0:7f00:1::] ｌocalhost 127。0。0。1 ①②⑦.0.0.1
"""  # noqa: RUF001 (that is the point)
OTHER_SCHEMES = "ftp gopher ws dict ldap tftp HTTP+unix"


@dataclass(frozen=True)
class Case:
    group: str
    name: str
    expected: str
    given: Any  # what the group's runner takes, see bench/hostile.py


@dataclass(frozen=True)
class Place:
    """Where the cases find the peers."""

    host: str  # http://127.0.0.1:port, named in FRAME_HOSTS
    bait: int  # the port of a server on this machine that is not and must stay unheard
    folder: Path  # with a film, private.mp4, and a picture, private.png, of the operator's own


Make = Callable[[Place], Any]


def cases(place: Place) -> Iterator[Case]:
    for make in (
        job_data,
        ids,
        addresses,
        redirects,
        hosts,
        no_pictures,
        pictures,
        prompts,
        comfyui,
        comfyui_sockets,
        api,
        heartbeats,
        blob,
        slow,
    ):
        yield from make(place)


def table(group: str, expected: str, rows: dict[str, Any]) -> Iterator[Case]:
    for name, given in rows.items():
        yield Case(group, name, expected, given)


# What a job may say


def job_data(place: Place) -> Iterator[Case]:
    url = f"{place.host}/good.png"

    def new(**changes: Any) -> dict[str, Any]:
        return {"frames": [url, url], "clipPrompts": ["walk"], "watermark": False, **changes}

    def old(**changes: Any) -> dict[str, Any]:
        return {"imageUrl": url, "endImageUrl": url, "klingPrompt": "walk", **changes}

    wrong: dict[str, Any] = {
        "null": None,
        "a text": "x",
        "a number": 7,
        "a list": [1],
        "true": True,
        "empty": {},
    }
    yield from table("job data", "bad_job", {f"stage data is {k}": v for k, v in wrong.items()})
    values: dict[str, Any] = {
        "null": None,
        "a number": 1,
        "a list of lists": [[]],
        "an object": {"a": 1},
    }
    for field in ("frames", "clipPrompts"):
        rows = {f"{field} is {name}": new(**{field: value}) for name, value in values.items()}
        yield from table("job data", "bad_job", rows)
    marks: list[Any] = [None, 1, "yes", [], {}]
    rows = {f"watermark is {mark!r}": new(watermark=mark) for mark in marks}
    yield from table("job data", "bad_job", rows)
    rows = {f"{n} is a number": old(**{n: 5}) for n in ("imageUrl", "endImageUrl", "klingPrompt")}
    yield from table("job data", "bad_job", rows)
    deep: Any = []
    for _ in range(800):
        deep = [deep]
    half = new(frames=[url, f"{place.host}/\ud83c"])
    yield Case("job data", "an address of half a character", "frame_unavailable", half)
    yield from table(
        "job data",
        "bad_job",
        {
            "one frame": new(frames=[url], clipPrompts=[]),
            "seven frames": new(frames=[url] * 7, clipPrompts=["walk"] * 6),
            "a thousand frames": new(frames=[url] * 1000, clipPrompts=["walk"] * 999),
            "more prompts than pairs": new(clipPrompts=["walk", "on"]),
            "no prompts": new(clipPrompts=[]),
            "an address of 5 kB": new(frames=[url, url + "?" + "x" * 5000]),
            "frames nested 800 deep": new(frames=deep),
            "stage data nested 800 deep": deep,
            "a prompt of 1 MB of braces": new(clipPrompts=['{"[,' * (MIB // 4)]),
            "a prompt nested 800 deep": new(clipPrompts=[deep]),
            "a prompt of 100 kB": new(clipPrompts=["{walk} " * 15_000]),
            "a prompt of 10 MB": new(clipPrompts=["walk on " * (10 * MIB // 8)]),
            "a prompt of 10 MB of emoji": new(clipPrompts=["🏠" * (10 * MIB // 12)]),
            "an address of 10 MB": new(frames=[url, url + "x" * 10 * MIB]),
            "10 MB of empty lists": new(frames=[[]] * (10 * MIB // 4)),
            "a prompt with NUL": new(clipPrompts=["walk\0on"]),
            "a prompt of half a character": new(clipPrompts=["\ud83c walk"]),
            "a forged log line as a frame": new(frames=[url, "\n2099-01-01 INFO delivered"]),
            "escapes and bidi controls as a frame": new(frames=[url, "\x1b[2J\u202e\u2028x"]),
        },
    )


def ids(place: Place) -> Iterator[Case]:
    names = STRANGE_IDS.split()
    wrong: list[Any] = [
        "",
        " ",
        "a b",
        "line\n",
        "\n",
        "nul\0",
        "a\r\nX-Forged: yes",
        "a?b=c",
        "a#b",
    ]
    wrong += [
        "j\u043eb-1",
        "\uff4a\uff4f\uff42",
        "é",
        "e\u0301",
        "\u202ejob",
        "job\u200b",
        "١٢٣",
        "x" * 129,
        "x" * 10_240,
    ]
    wrong += ["\ud83c", 7, 0, 1.5, None, True, ["a"], {"a": "b"}]
    for value in [*names, *wrong]:
        given = {"id": value, "stageData": {"frames": []}}
        yield Case("job ids", f"{value!r:.40}", "left alone", given)
    offers: list[Any] = ["text", ["list"], 5, True, {"stageData": {}}, {"ID": "a"}]
    for offer in offers:
        yield Case("job ids", f"an offer is {offer!r:.40}", "left alone", offer)
    for value in ("-rf", "--help", "-", "_", "x" * 128, "con"):
        yield Case("job ids", f"{value!r:.40}", "bad_job", {"id": value, "stageData": None})


# Where pictures may come from


def addresses(place: Place) -> Iterator[Case]:
    names = INSIDE.split()
    for name in names:
        url = f"http://{name}:{place.bait}/bait.png"
        yield Case("frame addresses", f"http://{name}", "frame_unavailable", url)
    port = place.bait
    strange = {
        f"http://127.0.0.1:{port}\\@192.0.2.1/": "bad_job",
        f"http://192.0.2.1#@127.0.0.1:{port}/": "frame_unavailable",
        f"http://127.0.0.1:{port}?@192.0.2.1/": "frame_unavailable",
        f"https://127.0.0.1:{port}/": "frame_unavailable",
        f"http://127.0.0.1\t:{port}/": "frame_unavailable",
        f"http://127.0.0.1:{port}/\r\nX-Forged: yes": "frame_unavailable",
        f"http://user:password@127.0.0.1:{port}/": "bad_job",
        f"http://user@127.0.0.1:{port}/": "bad_job",
        f"http://@127.0.0.1:{port}/": "bad_job",
        f"http://192.0.2.1@127.0.0.1:{port}/": "bad_job",
        "http://127.0.0.1:0/": "bad_job",
        "http://127.0.0.1:99999/": "bad_job",
        "http://127.0.0.1:-1/": "bad_job",
        "http://127.0.0.1:abc/": "bad_job",
        "http:///bait.png": "bad_job",
        "http://:80/": "bad_job",
        "http:bait.png": "bad_job",
        "http://[::1/": "bad_job",
        "http://[::zz]/": "bad_job",
        "http://a..b/": "frame_unavailable",
        f"http://{'a' * 64}.example/": "frame_unavailable",
        "//127.0.0.1/bait.png": "bad_job",
        "bait.png": "bad_job",
        "": "bad_job",
        "\0": "bad_job",
    }
    for url, code in strange.items():
        yield Case("frame addresses", f"{url.replace(str(port), 'PORT')!r:.60}", code, url)
    rest = f"//127.0.0.1:{port}/bait.png"
    file = place.folder / "private.png"
    schemes = [
        f"{scheme}:{rest}"
        for scheme in ["ftp", "gopher", "ws", "dict", "ldap", "tftp", "HTTP+unix"]
    ]
    schemes += [file.as_uri(), str(file), f"concat:{file}", f"subfile,,start,0,end,9,,:{file}"]
    schemes += ["data:image/png;base64,AAAA", "javascript:alert(1)", "jar:http://a/!/b", "pipe:0"]
    for url in schemes:
        yield Case("frame addresses", url.partition(":")[0][:12] + ":", "bad_job", url)


def redirects(place: Place) -> Iterator[Case]:
    """A host that may be asked sends on to one that may not."""
    bait = f"{place.bait}/bait.png"
    targets = [f"http://localhost:{bait}", f"//localhost:{bait}", f"http://127.1:{bait}"]
    targets += [f"http://[::ffff:127.0.0.1]:{bait}", f"http://2130706433:{bait}"]
    targets += ["http://169.254.169.254/latest/meta-data/", f"http://127.0.0.1:{bait}"]
    targets += [f"http://user:password@127.0.0.1:{bait}", (place.folder / "private.png").as_uri()]
    targets += ["ftp://127.0.0.1/", "data:image/png;base64,AAAA", "http://[", "", "/loop"]
    targets += ["http://\xff\xfe/", "http://localhost/" + "x" * 60_000]
    for target in targets:
        name = f"to {target.replace(str(place.bait), 'PORT')!r:.50}"
        yield Case("frame redirects", name, "frame_unavailable", redirect(target))
    for status in (301, 303, 307, 308):
        act = redirect(f"http://localhost:{bait}", f"{status} Moved")
        yield Case("frame redirects", f"{status} to this machine", "frame_unavailable", act)


def hosts(place: Place) -> Iterator[Case]:
    """What the host of a picture may answer."""
    yield from table(
        "frame hosts",
        "frame_unavailable",
        {
            "401": answer(PAGE, "401 Unauthorized", 'WWW-Authenticate: Basic realm="x"'),
            "404": answer(PAGE, "404 Not Found"),
            "407": answer(PAGE, "407 Proxy Authentication Required"),
            "503 with a Retry-After of years": answer(b"", "503 x", "Retry-After: 0"),
            "a body shorter than promised": raw(OK + b"Content-Length: 999999999999\r\n\r\nx"),
            "500 header lines": raw(OK + b"X: y\r\n" * 500 + b"\r\n" + GOOD),
            "a header line of 1 MB": raw(OK + b"X: " + b"y" * MIB + b"\r\n\r\n" + GOOD),
            "no HTTP at all": raw(b"\0\1\2\3" * 100),
            "a chunk of -1 bytes": raw(CHUNKED + b"-1\r\n" + GOOD),
        },
    )
    packed = zeros(200 * MIB)
    yield from table(
        "frame hosts",
        "frame_unavailable",
        {
            "204": answer(b"", "204 No Content"),
            "an empty body": answer(b""),
            "a page as a picture": answer(PAGE, "200 OK", "Content-Type: image/png"),
            "200 MB packed into 200 kB": answer(packed, "200 OK", "Content-Encoding: deflate"),
            "a picture packed": answer(gzip.compress(GOOD), "200 OK", "Content-Encoding: gzip"),
        },
    )
    yield from table(
        "frame hosts",
        "frame_invalid",
        {
            "a body without end": endless(OK + b"\r\n", bytes(MIB)),
            "chunks without end": endless(CHUNKED, b"100000\r\n" + bytes(MIB) + b"\r\n"),
        },
    )


# What is a picture, and what is none


def png(width: int, height: int, *chunks: bytes, pixels: bytes | None = None) -> bytes:
    """A black PNG of 8-bit grey, with more chunks before the pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = zeros(height * (1 + width)) if pixels is None else pixels
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(chunks)
        + png_chunk(b"IDAT", body)
        + png_chunk(b"IEND", b"")
    )


def zeros(size: int) -> bytes:
    """So many zero bytes, packed to a thousandth, without going through them all."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(9, wbits=-15)
    rest = last.compress(bytes(size % MIB)) + last.flush()
    # Adler-32 of zeros: the first half stays 1, the second counts them.
    return b"\x78\xda" + block * (size // MIB) + rest + struct.pack(">HH", size % 65_521, 1)


def with_size(content: bytes, marker: bytes, at: int, size: bytes) -> bytes:
    """A picture that claims another size."""
    start = content.index(marker) + at
    return content[:start] + size + content[start + len(size) :]


def corrupt(content: bytes) -> bytes:
    middle = len(content) // 2
    return (
        content[:middle]
        + bytes(b ^ 0xFF for b in content[middle : middle + 40])
        + content[middle + 40 :]
    )


def zip_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.txt", content)
    return buffer.getvalue()


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 160, 3)).astype(np.uint8))


def no_pictures(place: Place) -> Iterator[Case]:
    jpeg, webp = save(noise(), "JPEG"), save(noise(), "WEBP")
    file, film = place.folder / "private.png", place.folder / "private.mp4"
    two = [image_of(1), image_of(2)]
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{film.as_uri()}\n#EXT-X-ENDLIST\n"
    bait = f"http://127.0.0.1:{place.bait}/bait.png"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{bait}"/></svg>'
    bomb = with_size(jpeg, b"\xff\xc0", 5, struct.pack(">HH", 65_000, 65_000))
    rows = {
        "one zero byte": b"\0",
        "a GIF": save(image_of(1), "GIF"),
        "an animated GIF": save(two[0], "GIF", save_all=True, append_images=two[1:]),
        "a BMP": save(image_of(1), "BMP"),
        "a TIFF": save(image_of(1), "TIFF"),
        "an ICO": save(image_of(1), "ICO"),
        "a PPM": save(image_of(1), "PPM"),
        "an MP4": film.read_bytes(),
        "a ZIP": zip_of(GOOD),
        "a PDF": b"%PDF-1.7\n" + GOOD,
        "a picture behind a space": b" " + GOOD,
        "an SVG that names an address": svg.encode(),
        "a PNG's first bytes": GOOD[:8],
        "half a PNG": GOOD[: len(GOOD) // 2],
        "a corrupt PNG": corrupt(GOOD),
        "a PNG without pixels": png(64, 64, pixels=b""),
        "a PNG with a page for pixels": png(64, 64, pixels=PAGE),
        "a PNG of 0 x 0": png(0, 0),
        "half a JPEG": jpeg[: len(jpeg) // 2],
        "a JPEG but for its last byte": jpeg[:-1],
        "a JPEG of 30 MB of FF": jpeg[:2] + b"\xff" * (30 * MIB),
        "a JPEG with 30 MB of noise for a scan": jpeg[:-2] + random.Random(1).randbytes(30 * MIB),
        "a JPEG of a million segments": jpeg[:2] + app1(b"") * 1_000_000 + jpeg[2:],
        "a PNG of a million chunks": GOOD[:33] + png_chunk(b"tEXt", b"") * 1_000_000 + GOOD[33:],
        "a WebP of a million chunks": riff(b"JUNK\0\0\0\0" * 1_000_000),
        "a page behind a JPEG's first bytes": b"\xff\xd8\xff\xe0" + PAGE,
        "half a WebP": webp[: len(webp) // 2],
        "a playlist behind a WebP's first bytes": b"RIFF\0\0\0\0WEBP" + playlist.encode(),
        "a PNG bomb of 81 MP in 80 kB": png(9000, 9000),
        "a PNG that claims 2^31 x 2^31": png(2**31 - 1, 2**31 - 1, pixels=zeros(99)),
        "a PNG that claims 100000 x 1": png(100_000, 800, pixels=zeros(99)),
        "a JPEG bomb of 4225 MP": bomb,
        "a WebP that claims 16383 x 16383": webp_claiming(16383),
    }
    yield from table("no pictures", "frame_invalid", rows)
    texts = {
        "a page": PAGE,
        "text": b"a picture of a room",
        "an HLS playlist of a film here": playlist.encode(),
        "an ffconcat script of a file here": f"ffconcat version 1.0\nfile '{file}'\n".encode(),
        "an ffconcat script of an address": f"ffconcat version 1.0\nfile '{bait}'\n".encode(),
        "an MPEG-DASH list": f"<MPD><BaseURL>{bait}</BaseURL></MPD>".encode(),
        "an SDP": b"v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        "an Image Magick script": f"push graphic-context\nimage over 0,0 9,9 '{bait}'".encode(),
    }
    yield from table("no pictures", "frame_unavailable", texts)


def riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def webp_claiming(side: int) -> bytes:
    """A lossless WebP whose header claims another size."""
    content = save(image_of(1), "WEBP", lossless=True)
    start = content.index(b"VP8L") + 9
    bits = struct.unpack_from("<I", content, start)[0] & 0xF0000000 | (side - 1) << 14 | (side - 1)
    return content[:start] + struct.pack("<I", bits) + content[start + 4 :]


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


def turned(upright: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = upright.transpose(TURNED[orientation]) if orientation in TURNED else upright
    return save(image, "JPEG", exif=exif, quality=95)


def png_of_16_bits(image: Image.Image) -> bytes:
    command = ["ffmpeg", "-v", "error", "-f", "png_pipe", "-i", "-", "-pix_fmt", "rgba64be"]
    command += ["-f", "image2pipe", "-c:v", "png", "-"]
    return subprocess.run(command, input=save(image), capture_output=True, check=True).stdout


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(60)
    return image


def on_white(image: Image.Image) -> Image.Image:
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def pictures(place: Place) -> Iterator[Case]:
    """Odd, but pictures; each with what it shows."""
    image, two = image_of(3), [image_of(3), image_of(4)]
    grey = image.convert("L")
    jpeg = save(image, "JPEG", quality=95)
    dot = Image.new("RGB", (1, 1), (200, 90, 30))
    line, column, thin = image_of(3, (5000, 1)), image_of(3, (1, 5000)), image_of(3, (10_000, 10))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    broken = turned(image, 1).replace(b"Exif\0\0MM\0*\0\0\0\x08", b"Exif\0\0MM\0*\xff\xff\xff\xff")
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 99
    rows: dict[str, tuple[bytes, Image.Image]] = {
        "a 16-bit PNG with alpha": (png_of_16_bits(with_alpha(image)), on_white(with_alpha(image))),
        "a 16-bit grey PNG": (save(deep), grey),
        "a palette PNG": (save(image.quantize(64)), image.quantize(64)),
        "a transparent palette PNG": (save(image.quantize(64), transparency=3), image.quantize(64)),
        "a 1-bit PNG": (save(grey.convert("1")), grey.convert("1")),
        "a grey PNG with alpha": (
            save(with_alpha(image).convert("LA")),
            on_white(with_alpha(grey)),
        ),
        "an RGBA PNG": (save(with_alpha(image)), on_white(with_alpha(image))),
        "an animated PNG": (save(two[0], save_all=True, append_images=two[1:]), image),
        "a PNG with 30 MB of text unpacked": (padded(image), image),
        "a CMYK JPEG": (save(image.convert("CMYK"), "JPEG", quality=95), image),
        "a grey JPEG": (save(grey, "JPEG", quality=95), grey),
        "a progressive JPEG": (save(image, "JPEG", progressive=True, quality=95), image),
        "a JPEG 4:4:4": (save(image, "JPEG", subsampling=0, quality=95), image),
        "a JPEG that is a ZIP too": (jpeg + zip_of(PAGE), image),
        "a JPEG that is a page too": (jpeg + PAGE, image),
        "a JPEG with broken EXIF": (broken, image),
        "an animated WebP": (save(two[0], "WEBP", save_all=True, append_images=two[1:]), image),
        "a PNG with a profile of 900 MB in 900 kB": (profiled(900), Image.new("L", (64, 64))),
        "a PNG with a profile of 2 GB in 2 MB": (profiled(2048), Image.new("L", (64, 64))),
        "a JPEG with 30 MB of film behind": (jpeg + b"\xff\xda\xff\xd9" * (30 * MIB // 4), image),
        "a JPEG with 16 MB of profile": (jpeg[:2] + app2() * 250 + jpeg[2:], image),
        "a JPEG with endless EXIF": (jpeg[:2] + app1(exif) + jpeg[2:], image),
        "a PNG that is an HLS playlist too": (GOOD + b"\n#EXTM3U\n", image_of(1)),
        "a WebP": (save(image, "WEBP", quality=95), image),
        "a WebP with alpha": (
            save(with_alpha(image), "WEBP", lossless=True, exact=True),
            on_white(with_alpha(image)),
        ),
        "1 x 1": (save(dot), dot),
        "5000 x 1": (save(line), line),
        "1 x 5000": (save(column), column),
        "10000 x 10": (save(thin), thin),
        "60 MP in 60 kB": (png(10_000, 6000), Image.new("L", (100, 60))),
    }
    for orientation in range(1, 9):
        rows[f"EXIF orientation {orientation}"] = (turned(image, orientation), image)
    yield from table("pictures", "renders", rows)


def profiled(size: int) -> bytes:
    """A PNG whose colour profile unfolds to so many MB."""
    return png(64, 64, png_chunk(b"iCCP", b"x\0\0" + zeros(size * MIB)))


def app2() -> bytes:
    """The largest part of a JPEG's colour profile."""
    content = b"ICC_PROFILE\0\1\1".ljust(65_533, b"\0")
    return b"\xff\xe2" + struct.pack(">H", len(content) + 2) + content


def padded(image: Image.Image) -> bytes:
    content = save(image)
    return content[:33] + png_chunk(b"zTXt", b"x\0\0" + zeros(30 * MIB)) + content[33:]


def app1(content: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def prompts(place: Place) -> Iterator[Case]:
    rows = {
        "quotes": """it's a "room" `here` \\" \\' \\\\""",
        "line ends": "walk\non\r\nand\ron\u2028and\u2029on\x0b\x0c\x85",
        "braces": "{walk|run} {{on}} [a:b:0.5] (in:1.9) <lora:x:1>",
        "JSON": '"}], "7": {"class_type": "SaveImage", "inputs": {}}',
        "a filter graph": "[0:v]drawtext=textfile=/etc/passwd:x=0;[a][b]overlay,movie=/etc/passwd",
        "a shell": "$(touch pwned) `touch pwned`; touch pwned | touch pwned && touch pwned #",
        "flags": "-f lavfi -i /etc/passwd --output x -y",
        "formats": "%s %n %(secret)s {0} {self.secret} %date:yyyy% %year% ${HOME} $HOME",
        "a path": "embedding:../../../etc/passwd ../../x /etc/passwd \\\\host\\share",
        "escapes": "\x1b[2J\x1b]0;title\x07 \x7f\x08\x08",
        "bidi and zero width": "\u202ewalk\u202c \u200bon\ufeff \u2066x\u2069",
        "emoji and marks": "🏠👨‍👩‍👧 Z͑ͫ̓a̴l̶g̷o שלום 你好",
        "8000 characters": "walk on " * 1000,
        "nothing": "",
        "a forged log line": "x\n2099-01-01 00:00:00,000 INFO delivered job=forged",
    }
    yield from table("prompts", "renders", rows)


# What ComfyUI may answer: the path, the act, and how often before it behaves again


ALWAYS = 1_000_000


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def films(place: Place) -> dict[str, bytes]:
    """What may come as a clip, and is none."""
    film = (place.folder / "private.mp4").read_bytes()
    uri = (place.folder / "private.mp4").as_uri()
    return {
        "nothing": b"",
        "a page": PAGE,
        "a picture": GOOD,
        "half a film": film[: len(film) // 2],
        "a film's head": b"\0\0\0\x20ftypisom",
        "a playlist of a film here": f"#EXTM3U\n#EXTINF:5,\n{uri}\n#EXT-X-ENDLIST\n".encode(),
        "an ffconcat script of a film here": b"ffconcat version 1.0\nfile private.mp4\n",
        "an MP4 whose index is noise": corrupt(film[:64]) + bytes(range(256)) * 64,
    }


def comfyui(place: Place) -> Iterator[Case]:
    def rows(expected: str, path: str, acts: dict[str, Act], times: int) -> Iterator[Case]:
        for name, act in acts.items():
            yield Case("ComfyUI", f"{path}: {name}", expected, (path, act, times))

    clips = {name: answer(content) for name, content in films(place).items()}
    yield from rows("bad_clip", "/view", clips, ALWAYS)
    gone = {"404": answer(b"", "404 x"), "a redirect": redirect(f"http://localhost:{place.bait}/x")}
    gone["a film cut short"] = raw(OK + b"Content-Length: 99999\r\n\r\n\0\0\0 ftyp")
    yield from rows("comfyui_failed", "/view", gone, ALWAYS)
    yield from rows("renders", "/view", {"404 once": answer(b"", "404 x")}, 1)

    odd: dict[str, Any] = {
        "a path outside": success(GIF | {"filename": "../../x.txt"}),
        "no film": success(),
        "numbers for names": success({"filename": 1, "subfolder": 2, "type": 3}),
        "texts for films": success("a", 1, None),
        "a list for outputs": {"status": {"status_str": "success"}, "outputs": []},
        "no status": {"outputs": {"1": {"gifs": [GIF]}}},
        "an error of 1 MB": error("x" * MIB),
        "an error of log lines": error("x\n2099-01-01 00:00:00,000 INFO delivered\r\x1b[2J\u202e"),
        "an error of numbers": {"status": {"status_str": "error", "messages": [[1, 2]]}},
        "messages nested": {"status": {"status_str": "error", "messages": [[[[[]]]]]}},
    }
    for name, record in odd.items():
        yield Case("ComfyUI", f"/history: {name}", "comfyui_failed", ("/history", record, ALWAYS))
    memory = error("CUDA out of memory " + "x" * 9999)
    yield Case("ComfyUI", "/history: memory", "gpu_out_of_memory", ("/history", memory, ALWAYS))
    garbage: dict[str, Act] = {
        "a page": answer(PAGE),
        "a list": answer([]),
        "text": answer(b"{"),
        "nested 900 deep": answer(nested(900)),
        "nested 100000 deep": answer(nested(100_000)),
        "a gigabyte": endless(OK + b"\r\n", b"{" + b" " * MIB),
        "a megabyte packed": answer(zeros(MIB), "200 OK", "Content-Encoding: deflate"),
        "500": answer(b"", "500 x"),
        "a reset": raw(b""),
        "a redirect": redirect(f"http://localhost:{place.bait}/x"),
    }
    yield from rows("renders", "/history", garbage, 1)
    yield from rows("renders", "/queue", {k: garbage[k] for k in ("a page", "a gigabyte")}, 1)
    yield from rows("comfyui_failed", "/upload", garbage, ALWAYS)
    names = {"an object": {"name": {}}, "a number": {"name": 5}, "nothing": {}}
    acts = {f"a name that is {name}": answer(body) for name, body in names.items()}
    yield from rows("comfyui_failed", "/upload", acts, ALWAYS)
    refusals: dict[str, Any] = {
        "texts for errors": {"error": "no", "node_errors": {"1": "no"}},
        "lists for errors": {"error": [], "node_errors": {"1": {"errors": [1, None, "x"]}}},
        "an error nested 900 deep": json.loads(nested(900)),
        "a message of 1 MB": {"error": {"message": "x\n" * MIB}},
    }
    acts = {name: answer(body, "400 Bad Request") for name, body in refusals.items()}
    acts["a page"] = answer(PAGE, "403 Forbidden")
    yield from rows("comfyui_rejected", "/prompt", acts, ALWAYS)
    node: dict[str, Any] = {"type": "missing_node_type", "extra_info": {"class_type": "x\n\x1b[2J"}}
    yield from rows(
        "comfyui_missing_node", "/prompt", {"a node": answer({"error": node}, "400 x")}, ALWAYS
    )


def error(message: str) -> dict[str, Any]:
    told = {"exception_type": message, "exception_message": message, "node_type": message}
    return {"status": {"status_str": "error", "messages": [["execution_error", told]]}}


def comfyui_sockets(place: Place) -> Iterator[Case]:
    def steps(comfy: EvilComfy) -> list[bytes]:
        data = {"max": 1, "prompt_id": comfy.prompt_id, "node": comfy.sampler}
        values: list[Any] = [10**400, -(10**400), -1, 1e308, "x", None, []]
        told = [{"type": "progress", "data": {**data, "value": value}} for value in values]
        return [*(frame(json.dumps(one)) for one in told), *done(comfy)]

    texts = [b"", b"not json {", b"\xff\xfe", b"null", b"[]", b'{"type":3}', b'{"data":[]}']
    rows: dict[str, Act] = {
        "garbage": websocket(lambda _: [frame(one) for one in texts] + [frame(b"\0\1", BINARY)]),
        "a message of 8 MB": websocket(lambda _: [frame("x" * 8 * MIB)]),
        "a frame of 2^60 bytes": websocket(lambda _: [head_of(2**60), *[bytes(MIB)] * 9]),
        "a frame of 2^64 - 1 bytes": websocket(lambda _: [head_of(2**64 - 1), bytes(MIB)]),
        "fragments without end": websocket(lambda _: fragments()),
        "pings without end": websocket(lambda _: [frame(b"x" * 125, PING)] * 3000),
        "a long ping": websocket(lambda _: [frame(b"x" * 9000, PING)]),
        "unknown opcodes": websocket(lambda _: [frame(b"x", 5), frame(b"x", 11)]),
        "reserved bits": websocket(lambda _: [b"\xf1\x01x"]),
        "a message nested 100000 deep": websocket(lambda _: [frame(nested(100_000))]),
        "steps of 10^400": websocket(steps),
        "a frame that drips": websocket(lambda _: drip()),
        "a page": answer(PAGE),
        "a wrong key": raw(b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
        "a redirect": redirect(f"ws://localhost:{place.bait}/x"),
        "headers without end": endless(b"HTTP/1.1 101 x\r\n", b"X: y\r\n", PAUSE_S),
        "no answer": raw(b""),
    }
    for name, act in rows.items():
        yield Case("ComfyUI", f"websocket: {name}", "renders", ("/ws", act, ALWAYS))


def fragments() -> Iterator[bytes]:
    yield frame(b"x", final=False)
    for _ in range(50):
        yield frame(b"x" * MIB, 0, final=False)


# What the API and Blob may answer


def api(place: Place) -> Iterator[Case]:
    acts: dict[str, Act] = {
        "a page": answer(PAGE),
        "a page as 401": answer(PAGE, "401 Unauthorized"),
        "text": answer(b"not json"),
        "a list": answer(["a"]),
        "a number": answer(7),
        "no job in it": answer({"no": "job"}),
        "cut short": raw(OK + b'Content-Length: 99\r\n\r\n{"job": '),
        "nested 100000 deep": answer(nested(100_000)),
        "an answer of 20 MB": answer({"job": None, "x": "x" * 20 * MIB}),
        "an answer without end": endless(OK + b"\r\n", b" " * MIB),
        "200 MB packed": answer(zeros(200 * MIB), "200 OK", "Content-Encoding: deflate"),
        "a redirect": redirect(f"http://localhost:{place.bait}/x", "307 Temporary"),
        "a redirect to a file": redirect("file:///etc/passwd"),
        "500 header lines": raw(OK + b"X: y\r\n" * 500 + b'\r\n{"job": null}'),
        "a reset": raw(b""),
        "no HTTP at all": raw(b"\0\1\2\3" * 100),
        "429 with a Retry-After of text": answer({}, "429 x", "Retry-After: \xff\xfe soon"),
        "a wrong Date": answer({"job": None}, "200 OK", "Date: Wed, 99 Foo 99999 99:99:99 GMT"),
        "a poll at once, please": answer({"job": None, "nextPollSec": 1e-9}),
        "NaN and huge numbers": answer(b'{"job": null, "nextPollSec": NaN, "x": 1e999}'),
    }
    for name, act in acts.items():
        yield Case("API", f"pending: {name}", "goes on", ("/pending", act))
    claims = {
        "a list": answer([]),
        "a lease nested": answer({"leaseUntil": json.loads(nested(900))}),
        "a lease of text": answer({"leaseUntil": "x" * MIB}),
        "a lease of year 9999": answer({"leaseUntil": "9999-12-31T23:59:59+00:00"}),
        "a page": answer(PAGE),
        "404 without a body": answer(b"", "404 Not Found"),
    }
    for name, act in claims.items():
        yield Case("API", f"claim: {name}", "goes on", ("/claim", act))
    for name in ("a page", "cut short", "a redirect", "an answer without end", "no HTTP at all"):
        yield Case("API", f"fail: {name}", "goes on", ("/fail", acts[name]))


def heartbeats(place: Place) -> Iterator[Case]:
    rows: dict[str, Act] = {
        "cancels of everything": answer({"cancel": [None, 1, [], {}, "*", "../.."]}),
        "cancels nested": answer({"cancel": json.loads(nested(900))}),
        "401": answer({}, "401 Unauthorized"),
        "a page": answer(PAGE),
        **dict(NEVER_ENDING.items()),
    }
    yield from table("heartbeats", "goes on", rows)


def blob(place: Place) -> Iterator[Case]:
    rows: dict[str, Act] = {
        "a page": answer(PAGE),
        "a list": answer([]),
        "no url": answer({"pathname": "x"}),
        "a number for the url": answer({"url": 5}),
        "nested 100000 deep": answer(nested(100_000)),
        "an answer without end": endless(OK + b"\r\n", b" " * MIB),
        "a redirect": redirect(f"http://localhost:{place.bait}/x", "307 Temporary"),
        "a page as 500": answer(PAGE, "500 x"),
        "an error of numbers": answer({"error": {"code": 7, "message": []}}, "503 x"),
    }
    rows["an error of numbers"] = answer(
        {"error": {"code": "unknown_error", "message": []}}, "400 x"
    )
    yield from table("Blob", "delivered", rows)
    refusal = {"error": {"code": "forbidden", "message": "x\n2099-01-01 INFO delivered" * 9999}}
    yield Case("Blob", "a refusal of 240 kB", "upload_failed", answer(refusal, "403 Forbidden"))


def slow(place: Place) -> Iterator[Case]:
    for name, act in NEVER_ENDING.items():
        yield Case("slow peers", f"a frame host: {name}", "job_timeout", act)
    for path in ("/history", "/view", "/prompt"):
        for name in ("headers that drip", "a trailer without end", "silence"):
            given = (path, NEVER_ENDING[name], ALWAYS)
            yield Case("slow peers", f"ComfyUI {path}: {name}", "clip_timeout", given)


def drip() -> Iterator[bytes]:
    yield head_of(9_000_000)
    for _ in range(9000):
        yield b"x"
