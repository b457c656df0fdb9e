"""Pictures made for tests: each number has colours of its own, so frames can be told apart."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, np.dtype[np.uint8]]
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


def paint(size: tuple[int, int], kind: int | str) -> Array:
    """A smooth picture (height, width, 3) whose colours follow from `kind`."""
    rng = np.random.default_rng(abs(hash_of(kind)))
    coarse = rng.integers(20, 236, (3, 4, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def hash_of(kind: int | str) -> int:
    return kind if isinstance(kind, int) else int.from_bytes(kind.encode(), "big") % 2**31


def picture(
    size: tuple[int, int],
    kind: int | str = 0,
    *,
    mode: str = "RGB",
    format: str = "PNG",
    **options: Any,
) -> bytes:
    """A picture file's bytes."""
    image = image_of(kind, size).convert(mode)
    if mode == "RGBA":
        image.putalpha(128)
    return save(image, format, **options)


def image_of(kind: int | str, size: tuple[int, int] = (320, 180)) -> Image.Image:
    return Image.fromarray(paint(size, kind))


def save(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def likeness(one: Array, other: Array) -> float:
    """Mean absolute difference of two pictures of one size, in 8-bit levels."""
    return float(np.abs(one.astype(int) - other.astype(int)).mean())
