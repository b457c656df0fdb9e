"""Picture files put together by hand, as phones, cameras and editors write them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from tests.pictures import TURNED, Array, image_of, png_chunk, save

SIZE = (320, 200)
WHITE = (255, 255, 255)
SHOWN = image_of("corpus", SIZE)
OTHER = image_of("another", SIZE)
# Small, strong colours, which a decoder's or a scaler's coarse chroma would wash out.
COLOURFUL = Image.fromarray(
    np.random.default_rng(4).integers(0, 256, (20, 32, 3)).astype(np.uint8)
).resize(SIZE, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image = SHOWN, **options: Any) -> bytes:
    return save(image, "JPEG", **{"quality": 95, "subsampling": 0, **options})


def webp(image: Image.Image = SHOWN, **options: Any) -> bytes:
    return save(image, "WEBP", **{"lossless": True, "exact": True, **options})


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segments(content: bytes, *segments: bytes) -> bytes:
    """A JPEG with more segments behind its SOI."""
    return content[:2] + b"".join(segments) + content[2:]


def with_chunks(content: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks behind its IHDR."""
    return content[:33] + b"".join(chunks) + content[33:]


def bad_chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG's chunk with a wrong checksum."""
    good = png_chunk(kind, content)
    return good[:-1] + bytes([good[-1] ^ 1])


def exif(orientation: int, order: str = "<", *, tags: int = 3) -> bytes:
    """An EXIF block whose orientation stands behind some other tags."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    others = b"".join(struct.pack(f"{order}HHIHH", 0x8000 + tag, 3, 1, 6, 0) for tag in range(tags))
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    table = struct.pack(f"{order}H", tags + 1) + others + entry + bytes(4)
    return b"Exif\0\0" + head + struct.pack(f"{order}I", 8) + table


def turned(upright: Image.Image, orientation: int) -> Image.Image:
    return upright.transpose(TURNED[orientation]) if orientation in TURNED else upright


def on_white(image: Image.Image) -> Image.Image:
    ground = Image.new("RGBA", image.size, WHITE)
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def movie() -> bytes:
    """An MP4's outline, with the bytes of JPEG markers in it."""
    media = b"\xff\xd8\xff\xda\x00\x08" * 40 + bytes(range(256)) * 8 + b"\xff\xda\0\0"
    ftyp = struct.pack(">I4s4sI4s", 20, b"ftyp", b"mp42", 0, b"isom")
    return ftyp + struct.pack(">I4s", 8 + len(media), b"mdat") + media


def restarts(content: bytes) -> bytes:
    """Two stray bytes before every restart marker, as some cameras leave them."""
    start = content.rindex(b"\xff\xda")
    scan = content[start:]
    for number in range(8):
        scan = scan.replace(bytes([0xFF, 0xD0 + number]), bytes([0, 0, 0xFF, 0xD0 + number]))
    return content[:start] + scan


def odd_scan(content: bytes, *, first: int, last: int, bits: int) -> bytes:
    """A sequential JPEG whose scan header says what only a progressive one may."""
    start = content.index(b"\xff\xda")
    stop = start + 2 + struct.unpack_from(">H", content, start + 2)[0]
    return content[: stop - 3] + bytes([first, last, bits]) + content[stop:]


def veil() -> Array:
    """Opaque on the left, nothing on the right, and everything between."""
    ramp = np.linspace(300, -45, SIZE[0]).clip(0, 255).round().astype(np.uint8)
    return np.tile(ramp, (SIZE[1], 1))


def with_alpha(image: Image.Image, alpha: Array) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.fromarray(alpha))
    return image


def png_of(image: Image.Image, depth: int, colours: int) -> bytes:
    """A PNG of 16 bits a channel: 2 is RGB, 4 grey with alpha, 6 RGBA."""
    mode = {2: "RGB", 4: "LA", 6: "RGBA"}[colours]
    pixels = np.asarray(image.convert(mode)).astype(np.uint16) * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", *image.size, depth, colours, 0, 0, 0)
    chunks = {b"IHDR": head, b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks.items())


def cmyk(image: Image.Image, *, transform: int | None) -> bytes:
    """Inverted inks: with Adobe's marker (0: CMYK, 2: YCCK), or without one."""
    content = jpeg(image.convert("CMYK"))
    start = content.index(b"\xff\xee")
    assert content[start + 4 : start + 9] == b"Adobe"
    if transform is None:
        return content[:start] + content[start + 16 :]
    assert content[start + 15] == transform
    return content


def ycck(image: Image.Image) -> bytes:
    """As Photoshop writes them: luma and colour of the inks, which are inverted, and K beside."""
    negative = Image.eval(image, lambda value: 255 - value).convert("YCbCr")
    inks = Image.merge("CMYK", [*negative.split(), Image.new("L", image.size, 255)])
    # Pillow inverts what it writes; these are to be written as they are.
    content = jpeg(Image.eval(inks, lambda value: 255 - value))
    start = content.index(b"\xff\xee")
    content = content[: start + 15] + b"\2" + content[start + 16 :]
    return numbered(content)


def numbered(content: bytes) -> bytes:
    """A JPEG of four components, called 1 to 4 and not C, M, Y, K."""
    place, scan = content.index(b"\xff\xc0") + 10, content.index(b"\xff\xda") + 5
    changed = bytearray(content)
    for number in range(4):
        changed[place + 3 * number] = changed[scan + 2 * number] = number + 1
    return bytes(changed)


def managed(image: Image.Image, profile: bytes) -> Image.Image:
    """What a colour-managed program shows of pixels with this profile."""
    given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    return (
        ImageCms.profileToProfile(
            image, given, ImageCms.createProfile("sRGB"), intent, outputMode="RGB"
        )
        or image
    )


def pasted(kind: str, **options: Any) -> bytes:
    first = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    first.paste(SHOWN.crop((40, 20, 240, 160)), (40, 20))
    return save(first, kind, save_all=True, append_images=[with_alpha(OTHER, veil())], **options)


def decoded(content: bytes) -> Image.Image:
    """What another decoder makes of a lossy picture."""
    return Image.open(io.BytesIO(content)).convert("RGB")
