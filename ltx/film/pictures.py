"""Pictures made ready for the renderer: upright, cut to shape, sRGB on white; pixels, nothing else.

ffmpeg is given only what makes the pixels (see formats), under a demuxer that is named, so that it
neither guesses nor finds anything to copy into what it writes.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ltx.errors import JobError, ToolFailed
from ltx.files import replace_durably
from ltx.film.colour import make_cube
from ltx.film.ffmpeg import CLEAN, PICTURE_SECONDS, Media, ffmpeg_command, read_picture
from ltx.film.formats import CUT_SHORT, Data, FileBytes, Layout, NoPicture, read_jpeg, read_png
from ltx.film.webp import read_webp
from ltx.hosted.bodies import HEAD_BYTES, name_answer, name_file
from ltx.job import MAX_FRAME_PIXELS
from ltx.process import Child, ask
from ltx.settings import Size
from ltx.text import one_line

READERS = {"jpeg_pipe": read_jpeg, "png_pipe": read_png, "webp_pipe": read_webp}
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
# Without the last two, swscale halves the colours' resolution: a picture of small, strong colours
# was off by 7.8 to 10.4 of 255 on average, and is by 1.1.
SCALING = "lanczos+full_chroma_int+full_chroma_inp"
# How ffmpeg begins a line that a part of it says, such as a decoder.
SPEAKER = re.compile(r"^(\[[^\]]* @ 0x[0-9a-f]+\] *)+", re.MULTILINE)


class Picture(NamedTuple):
    """A picture file and what it says of itself. field: where the job names it."""

    field: str
    path: Path
    layout: Layout

    @property
    def size(self) -> Size:
        """Of the upright picture, in pixels."""
        width, height = self.layout.canvas[:2]
        return Size(height, width) if self.layout.orientation > 4 else Size(width, height)


def sniff_demuxer(head: bytes) -> str:
    """ffmpeg's demuxer for a picture's first 12 bytes; '' for anything that is no such picture.

    Naming the demuxer keeps ffmpeg from guessing: a playlist or SVG could make it open other files.
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png_pipe"
    if head.startswith(b"\xff\xd8"):
        return "jpeg_pipe"
    return "webp_pipe" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else ""


def read_layout(data: Data) -> Layout:
    """Walks over a JPEG, PNG or WebP. Raises NoPicture, with the reason, for anything else."""
    head = data[:HEAD_BYTES]
    read = READERS.get(sniff_demuxer(head))
    if not read:
        came = name_file(head) or name_answer(head) or "of a kind nobody here knows"
        raise NoPicture(f"it is {came}; send a JPEG, a PNG or a WebP")
    try:
        layout = read(data)
    except struct.error as error:
        raise NoPicture(CUT_SHORT) from error
    for width, height in (layout.size, layout.canvas[:2]):
        if not 0 < width * height <= MAX_FRAME_PIXELS:
            raise NoPicture(f"it claims {width} x {height} pixels; 1 to 64 million are taken")
    return layout


def check_picture(path: Path, field: str) -> Picture:
    """What is known of a picture before it is decoded. Raises JobError frame_invalid."""
    try:
        return Picture(field, path, read_file(path))
    except NoPicture as error:
        raise JobError("frame_invalid", f"{field}: {error}.") from error


def turn_like(picture: Picture, size: Size) -> Size:
    """The film's size, turned to portrait when its first picture is."""
    return Size(*size[::-1]) if picture.size.height > picture.size.width else size


def read_file(path: Path) -> Layout:
    """read_layout of a file, which is never in memory as a whole."""
    if not path.is_file() or not path.stat().st_size:
        raise NoPicture("the file is missing or empty")
    with path.open("rb") as file:
        return read_layout(FileBytes(file))


def center_crop(size: Size, shape: Size) -> Size:
    """The largest part of `size` with the proportions of `shape`."""
    width = min(size.width, round(size.height * shape.width / shape.height))
    height = min(size.height, round(size.width * shape.height / shape.width))
    return Size(max(1, width), max(1, height))


class Making(NamedTuple):
    """A frame that is being made, and what is deleted when it is."""

    picture: Picture
    target: Path
    child: Child

    @property
    def part(self) -> Path:
        return self.target.with_suffix(".part")


def half_the_cores() -> int:
    return max(1, len(os.sched_getaffinity(0)) // 2)


def prepare_frames(
    media: Media, frames: Sequence[tuple[Picture, Path]], shape: Size, at_once: int
) -> None:
    """Makes all frames, so many side by side. Raises JobError for the first bad one."""
    with contextlib.ExitStack() as stack:
        running = deque[Making]()
        for picture, target in frames:
            if len(running) == at_once:
                finish_frame(media, running.popleft())
            running.append(start_frame(media, picture, target, shape, stack))
        while running:
            finish_frame(media, running.popleft())


def start_frame(
    media: Media, picture: Picture, target: Path, shape: Size, stack: contextlib.ExitStack
) -> Making:
    pixels, cube = target.with_suffix(".pixels"), target.with_suffix(".cube")
    for path in (pixels, cube):
        stack.callback(path.unlink, missing_ok=True)
    write_pixels(picture, pixels)
    if text := make_cube(picture.layout.profile):
        cube.write_text(text)
    part = target.with_suffix(".part")
    command = frame_command(picture, pixels, cube.name if text else "", part, shape)
    # In its folder, because a filter's argument cannot be just any path.
    child = stack.enter_context(media.start(ffmpeg_command(command), cwd=target.parent))
    return Making(picture, target, child)


def write_pixels(picture: Picture, target: Path) -> None:
    """The parts of a picture that make its pixels, as a file of the same format."""
    with picture.path.open("rb") as source, target.open("wb", buffering=0) as file:
        for part in picture.layout.parts:
            if isinstance(part, bytes):
                file.write(part)
                continue
            start = part.start
            while start < part.stop:
                start += os.sendfile(file.fileno(), source.fileno(), start, part.stop - start)


def frame_command(picture: Picture, pixels: Path, cube: str, target: Path, shape: Size) -> Any:
    """Transparency is laid on white first, so that no hidden colour bleeds into an edge."""
    layout = picture.layout
    stream = read_picture(pixels, layout.demuxer)
    if layout.alpha:
        stream = lay_on_white(stream)
    if layout.canvas != (*layout.size, 0, 0):
        stream = stream.filter("pad", *layout.canvas, color="white")
    for name, argument in UPRIGHT.get(layout.orientation, ()):
        stream = stream.filter(name, *filter(None, [argument]))
    stream = stream.filter("crop", *center_crop(picture.size, shape), exact=1)
    stream = stream.filter("scale", *shape, flags=SCALING)
    if cube:
        stream = stream.filter("format", "gbrp").filter("lut3d", cube, interp="tetrahedral")
    output = {"f": "image2", "c:v": "png", "pix_fmt": "rgb24", "frames:v": 1, "update": 1}
    return stream.output(str(target), **output, **CLEAN)


def lay_on_white(stream: Any) -> Any:
    both = stream.filter("format", "gbrap").split()
    white = both[0].filter("format", "gbrp").filter("lutrgb", r=255, g=255, b=255)
    return white.overlay(both[1], format="gbrp")


def finish_frame(media: Media, making: Making) -> None:
    """Raises JobError frame_invalid unless the decoder has delivered every line."""
    try:
        media.finish(making.child, PICTURE_SECONDS)
        # It fills in what is missing and goes on, but not without a word.
        words = making.child.tail()
        if SPEAKER.search(words):
            raise ToolFailed(words)
    except ToolFailed as error:
        raise JobError(
            "frame_invalid", f"{making.picture.field}: {blame(media, error)}."
        ) from error
    replace_durably(making.part, making.target)


def blame(media: Media, error: ToolFailed) -> str:
    """Why a picture that is whole by its format was not read, for people."""
    version = ask(media.settings, "ffmpeg", "-version").partition(" Copyright")[0]
    words = one_line(SPEAKER.sub("", str(error)).partition("\n")[0])
    return (
        f"it is damaged, or made in a way that {version or 'ffmpeg'} cannot read and a newer one"
        f" may; save it anew as a JPEG or a PNG ({words})"
    )


def check_watermark(media: Media, path: Path) -> Size:
    """Decodes the watermark fully. Raises JobError watermark_missing."""
    try:
        mark = read_file(path)
        if mark.demuxer != "png_pipe":
            raise NoPicture("it is not a PNG")
        media.run(read_picture(path, mark.demuxer).output("-", f="null"), PICTURE_SECONDS)
    except (NoPicture, ToolFailed, OSError) as error:
        message = f"WATERMARK_PATH={str(path)!r}: {one_line(error)}. Put a PNG there."
        raise JobError("watermark_missing", message) from error
    return mark.size
