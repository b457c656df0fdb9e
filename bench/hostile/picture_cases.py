"""What is no picture, what is an odd one, and what stands in prompts."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import zipfile
from collections.abc import Iterator

import numpy as np
from PIL import Image

from bench.hostile.case import GOOD, MIB, PAGE, Case, Place, corrupt, table, zeros
from tests.pictures import TURNED, image_of, png_chunk, save

PROMPTS = {
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


def no_pictures(place: Place) -> Iterator[Case]:
    noise = np.random.default_rng(1).integers(0, 256, (90, 160, 3)).astype(np.uint8)
    jpeg, webp = (save(Image.fromarray(noise), kind) for kind in ("JPEG", "WEBP"))
    file, film = place.folder / "private.png", place.folder / "private.mp4"
    one, two = image_of(1), image_of(2)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{film.as_uri()}\n#EXT-X-ENDLIST\n"
    bait = f"http://127.0.0.1:{place.bait}/bait.png"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{bait}"/></svg>'
    rows = {
        "one zero byte": b"\0",
        "a GIF": save(one, "GIF"),
        "an animated GIF": save(one, "GIF", save_all=True, append_images=[two]),
        "a BMP": save(one, "BMP"),
        "a TIFF": save(one, "TIFF"),
        "an ICO": save(one, "ICO"),
        "a PPM": save(one, "PPM"),
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
        "a JPEG bomb of 4225 MP": jpeg_claiming(jpeg, 65_000),
        "a WebP that claims 16383 x 16383": webp_claiming(16_383),
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


def pictures(_place: Place) -> Iterator[Case]:
    """Odd, but pictures; each with what it shows."""
    image, other = image_of(3), image_of(4)
    grey, few, sheer = image.convert("L"), image.quantize(64), with_alpha(image)
    jpeg = save(image, "JPEG", quality=95)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    broken = turned(image, 1).replace(b"Exif\0\0MM\0*\0\0\0\x08", b"Exif\0\0MM\0*\xff\xff\xff\xff")
    exif = app1(b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 99)
    text = png_chunk(b"zTXt", b"x\0\0" + zeros(30 * MIB))
    plain = save(image)
    same = {
        "an animated PNG": save(image, save_all=True, append_images=[other]),
        "a PNG with 30 MB of text unpacked": plain[:33] + text + plain[33:],
        "a CMYK JPEG": save(image.convert("CMYK"), "JPEG", quality=95),
        "a progressive JPEG": save(image, "JPEG", progressive=True, quality=95),
        "a JPEG 4:4:4": save(image, "JPEG", subsampling=0, quality=95),
        "a JPEG that is a ZIP too": jpeg + zip_of(PAGE),
        "a JPEG that is a page too": jpeg + PAGE,
        "a JPEG with broken EXIF": broken,
        "an animated WebP": save(image, "WEBP", save_all=True, append_images=[other]),
        "a JPEG with 30 MB of film behind": jpeg + b"\xff\xda\xff\xd9" * (30 * MIB // 4),
        "a JPEG with 16 MB of profile": jpeg[:2] + app2() * 250 + jpeg[2:],
        "a JPEG with endless EXIF": jpeg[:2] + exif + jpeg[2:],
        "a WebP": save(image, "WEBP", quality=95),
    }
    rows = {
        "a 16-bit grey PNG": (save(deep), grey),
        "a palette PNG": (save(few), few),
        "a transparent palette PNG": (save(few, transparency=3), few),
        "a 1-bit PNG": (save(grey.convert("1")), grey.convert("1")),
        "a 16-bit PNG with alpha": (png_of_16_bits(sheer), on_white(sheer)),
        "an RGBA PNG": (save(sheer), on_white(sheer)),
        "a WebP with alpha": (save(sheer, "WEBP", lossless=True, exact=True), on_white(sheer)),
        "a grey PNG with alpha": (save(sheer.convert("LA")), on_white(with_alpha(grey))),
        "a PNG with a profile of 900 MB in 900 kB": (profiled(900), Image.new("L", (64, 64))),
        "a PNG with a profile of 2 GB in 2 MB": (profiled(2048), Image.new("L", (64, 64))),
        "a grey JPEG": (save(grey, "JPEG", quality=95), grey),
        "a PNG that is an HLS playlist too": (GOOD + b"\n#EXTM3U\n", image_of(1)),
        **{name: (content, image) for name, content in same.items()},
    }
    shapes = {
        "1 x 1": Image.new("RGB", (1, 1), (200, 90, 30)),
        "5000 x 1": image_of(3, (5000, 1)),
        "1 x 5000": image_of(3, (1, 5000)),
        "10000 x 10": image_of(3, (10_000, 10)),
    }
    # Five in a row, as five are one film: what shows next to nothing does not spoil the others.
    rows |= {name: (save(shape), shape) for name, shape in shapes.items()}
    rows["60 MP in 60 kB"] = (png(10_000, 6000), Image.new("L", (100, 60)))
    rows |= {f"EXIF orientation {n}": (turned(image, n), image) for n in range(1, 9)}
    yield from table("pictures", "renders", rows)


def prompts(_place: Place) -> Iterator[Case]:
    yield from table("prompts", "renders", PROMPTS)


def png(width: int, height: int, *chunks: bytes, pixels: bytes | None = None) -> bytes:
    """A black PNG of 8-bit grey, with more chunks before the pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = zeros(height * (1 + width)) if pixels is None else pixels
    rest = (*chunks, png_chunk(b"IDAT", body), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(rest)


def jpeg_claiming(content: bytes, side: int) -> bytes:
    """A JPEG whose header claims another size."""
    start = content.index(b"\xff\xc0") + 5
    return content[:start] + struct.pack(">HH", side, side) + content[start + 4 :]


def webp_claiming(side: int) -> bytes:
    """A lossless WebP whose header claims another size."""
    content = save(image_of(1), "WEBP", lossless=True)
    start = content.index(b"VP8L") + 9
    bits = struct.unpack_from("<I", content, start)[0] & 0xF0000000 | (side - 1) << 14 | (side - 1)
    return content[:start] + struct.pack("<I", bits) + content[start + 4 :]


def turned(upright: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = upright.transpose(TURNED[orientation]) if orientation in TURNED else upright
    return save(image, "JPEG", exif=exif, quality=95)


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(60)
    return image


def on_white(image: Image.Image) -> Image.Image:
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def profiled(size: int) -> bytes:
    """A PNG whose colour profile unfolds to so many MB."""
    return png(64, 64, png_chunk(b"iCCP", b"x\0\0" + zeros(size * MIB)))


def riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def app2() -> bytes:
    """The largest part of a JPEG's colour profile."""
    content = b"ICC_PROFILE\0\1\1".ljust(65_533, b"\0")
    return b"\xff\xe2" + struct.pack(">H", len(content) + 2) + content


def png_of_16_bits(image: Image.Image) -> bytes:
    command = ["ffmpeg", "-v", "error", "-f", "png_pipe", "-i", "-", "-pix_fmt", "rgba64be"]
    command += ["-f", "image2pipe", "-c:v", "png", "-"]
    return subprocess.run(command, input=save(image), capture_output=True, check=True).stdout


def app1(content: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def zip_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.txt", content)
    return buffer.getvalue()
