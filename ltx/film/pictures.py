"""Pictures on their way in: known before they are decoded, then cut to what is rendered."""

from __future__ import annotations

import contextlib
import mmap
import re
import struct
from pathlib import Path
from typing import NamedTuple

from ltx.errors import JobError, ToolFailed
from ltx.files import replace_durably
from ltx.film.ffmpeg import PICTURE_SECONDS, Media, read_picture
from ltx.job import MAX_FRAME_PIXELS
from ltx.settings import Size
from ltx.text import one_line

Bytes = bytes | mmap.mmap


def sniff_demuxer(head: bytes) -> str:
    """ffmpeg's demuxer for a picture's first 12 bytes; '' for anything that is no such picture.

    Naming the demuxer keeps ffmpeg from guessing: a playlist or SVG could make it open other files.
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png_pipe"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg_pipe"
    return "webp_pipe" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else ""


# Where EXIF begins in a JPEG, a PNG and a WebP file; the group is its TIFF header.
EXIF = re.compile(rb"(?:Exif\0\0|eXIf|EXIF.{4}(?:Exif\0\0)?)(II\*\0|MM\0\*)", re.DOTALL)


def exif_orientation(data: Bytes) -> int:
    """EXIF orientation 1 to 8 of a picture; 1 (upright) when it says nothing usable."""
    found = EXIF.search(data)
    if not found:
        return 1
    block = data[found.start(1) : found.start(1) + 65_536]
    order = "<" if block.startswith(b"II") else ">"
    with contextlib.suppress(struct.error):
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for entry in range(count):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", block, start + 2 + 12 * entry)
            if tag == 0x0112 and 1 <= value <= 8:
                return int(value)
    return 1


# What ffmpeg has to do to a picture so that it stands upright, by EXIF orientation.
UPRIGHT: dict[int, tuple[tuple[str, str], ...]] = {
    2: (("hflip", ""),),
    3: (("hflip", ""), ("vflip", "")),
    4: (("vflip", ""),),
    5: (("transpose", "0"),),
    6: (("transpose", "1"),),
    7: (("transpose", "3"),),
    8: (("transpose", "2"),),
}


def center_crop(size: Size, shape: Size) -> Size:
    """The largest part of `size` with the proportions of `shape`."""
    width = min(size.width, round(size.height * shape.width / shape.height))
    height = min(size.height, round(size.width * shape.height / shape.width))
    return Size(max(1, width), max(1, height))


class Picture(NamedTuple):
    """A picture file: ffmpeg's demuxer for it, its EXIF orientation, its size when upright."""

    path: Path
    demuxer: str
    orientation: int
    size: Size


def check_picture(media: Media, path: Path) -> Picture:
    """What is known of a picture before it is decoded. Raises ToolFailed when it is none."""
    if not path.is_file() or not path.stat().st_size:
        raise ToolFailed("the file is missing or empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        demuxer = sniff_demuxer(data[:12])
        if not demuxer:
            raise ToolFailed("it is neither JPEG, PNG nor WebP")
        orientation = exif_orientation(data)
        # A decoder fills in the missing last rows of a JPEG without a word.
        if demuxer == "jpeg_pipe" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
            raise ToolFailed("it is cut short")
    stream = media.probe(path, demuxer)
    size = Size(int(stream.get("width", 0)), int(stream.get("height", 0)))
    if not 0 < size.width * size.height <= MAX_FRAME_PIXELS:
        raise ToolFailed("it is damaged, or has more than 64 million pixels")
    upright = Size(*size[::-1]) if orientation > 4 else size
    return Picture(path, demuxer, orientation, upright)


def prepare_frame(media: Media, picture: Picture, target: Path, shape: Size) -> None:
    """Decodes a frame fully, sets it upright, crops it to `shape` and scales it there."""
    crop = center_crop(picture.size, shape)
    stream = read_picture(picture.path, picture.demuxer)
    for name, argument in UPRIGHT.get(picture.orientation, ()):
        stream = stream.filter(name, *filter(None, [argument]))
    stream = stream.filter("crop", *crop, exact=1).filter("scale", *shape, flags="lanczos")
    part = target.with_suffix(".part")
    output = {"f": "image2", "c:v": "png", "pix_fmt": "rgb24", "frames:v": 1, "update": 1}
    media.run(stream.output(str(part), **output), PICTURE_SECONDS)
    replace_durably(part, target)


def check_watermark(media: Media, path: Path) -> Size:
    """Decodes the watermark fully. Raises JobError watermark_missing."""
    try:
        mark = check_picture(media, path)
        if mark.demuxer != "png_pipe":
            raise ToolFailed("it is not a PNG")
        media.run(read_picture(path, mark.demuxer).output("-", f="null"), PICTURE_SECONDS)
    except (ToolFailed, OSError) as error:
        message = f"WATERMARK_PATH={str(path)!r}: {one_line(error)}. Put a PNG there."
        raise JobError("watermark_missing", message) from error
    return mark.size
