"""ffmpeg and ffprobe as children."""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ffmpeg

from ltx.cancellation import Halt
from ltx.errors import DISK_FULL, NO_SPACE, JobError, ToolFailed
from ltx.files import keep
from ltx.job import FPS, MAX_FRAME_PIXELS
from ltx.process import Child
from ltx.settings import Settings, Size
from ltx.text import MAX_JSON_BYTES, as_dict, as_list, one_line

Bytes = bytes | mmap.mmap
# A picture of 64 million pixels takes seconds; one of thousands of scans takes hours.
PICTURE_SECONDS = 60.0
# The largest picture with 16 bits a channel: a packed text or colour profile may be larger.
MAX_ALLOC = 8 * MAX_FRAME_PIXELS + 2**20


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


class Media:
    """ffmpeg and ffprobe, as children at low priority that know none of our secrets."""

    def __init__(self, settings: Settings, halt: Halt) -> None:
        self.settings, self.halt = settings, halt

    def start(self, command: Sequence[str]) -> Child:
        # In memory, because nothing is written outside of the state folder.
        output = open(os.memfd_create("output"), "w+b")  # noqa: SIM115 (the child's)
        return Child(command, self.settings, output, niceness=10)

    def finish(self, child: Child, seconds: float = math.inf) -> None:
        """Raises ToolFailed with the last lines when the program did not succeed in time."""
        if code := child.finish(self.halt, seconds):
            if NO_SPACE in child.tail():
                raise JobError("media_failed", DISK_FULL)
            raise ToolFailed(child.tail() or f"exit code {code}")

    def run(self, stream: Any, seconds: float = math.inf) -> None:
        with self.start(ffmpeg_command(stream)) as child:
            self.finish(child, seconds)

    def probe(self, path: Path, demuxer: str = "mp4") -> dict[str, Any]:
        """ffprobe's description of the first video stream. Raises ToolFailed."""
        # Quiet, because what it says of a damaged EXIF block would land in the JSON.
        command = ["ffprobe", "-v", "quiet", "-protocol_whitelist", "file", "-of", "json"]
        command += ["-max_pixels", str(MAX_FRAME_PIXELS), "-max_alloc", str(MAX_ALLOC)]
        command += ["-select_streams", "v:0", "-show_streams", "-f", demuxer]
        with self.start([*command, str(path)]) as child:
            if child.finish(self.halt, PICTURE_SECONDS):
                raise ToolFailed("it cannot be read")
            answer = os.pread(child.output.fileno(), MAX_JSON_BYTES, 0)
        try:
            return as_dict(as_list(as_dict(json.loads(answer)).get("streams"))[0])
        except (ValueError, IndexError) as error:
            raise ToolFailed("there is no picture in it") from error

    def check_picture(self, path: Path) -> Picture:
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
        stream = self.probe(path, demuxer)
        size = Size(int(stream.get("width", 0)), int(stream.get("height", 0)))
        if not 0 < size.width * size.height <= MAX_FRAME_PIXELS:
            raise ToolFailed("it is damaged, or has more than 64 million pixels")
        upright = Size(*size[::-1]) if orientation > 4 else size
        return Picture(path, demuxer, orientation, upright)

    def prepare_frame(self, picture: Picture, target: Path, shape: Size) -> None:
        """Decodes a frame fully, sets it upright, crops it to `shape` and scales it there."""
        crop = center_crop(picture.size, shape)
        stream = read_picture(picture.path, picture.demuxer)
        for name, argument in UPRIGHT.get(picture.orientation, ()):
            stream = stream.filter(name, *filter(None, [argument]))
        stream = stream.filter("crop", *crop, exact=1).filter("scale", *shape, flags="lanczos")
        part = target.with_suffix(".part")
        output = {"f": "image2", "c:v": "png", "pix_fmt": "rgb24", "frames:v": 1, "update": 1}
        self.run(stream.output(str(part), **output), PICTURE_SECONDS)
        keep(part, target)

    def check_watermark(self, path: Path) -> Size:
        """Decodes the watermark fully. Raises JobError watermark_missing."""
        try:
            mark = self.check_picture(path)
            if mark.demuxer != "png_pipe":
                raise ToolFailed("it is not a PNG")
            self.run(read_picture(path, mark.demuxer).output("-", f="null"), PICTURE_SECONDS)
        except (ToolFailed, OSError) as error:
            told = f"WATERMARK_PATH={str(path)!r}: {one_line(error)}. Put a PNG there."
            raise JobError("watermark_missing", told) from error
        return mark.size

    def check_video(self, path: Path, frames: int, size: Size) -> None:
        """Raises ToolFailed unless the video has these frames, this size and 24 fps."""
        stream = self.probe(path)
        found = tuple(stream.get(name) for name in ("nb_frames", "width", "height", "r_frame_rate"))
        wanted = (str(frames), *size, f"{FPS}/1")
        if found != wanted:
            raise ToolFailed(f"frames, width, height, rate are {found}, expected {wanted}")


def ffmpeg_command(stream: Any) -> list[str]:
    quiet = ("-nostdin", "-hide_banner", "-v", "error", "-xerror")
    command: list[str] = stream.global_args(*quiet).overwrite_output().compile()
    return command


def read_picture(path: Path, demuxer: str) -> Any:
    """A picture as it lies in the file; turning it upright is our business, not the decoder's."""
    caps = {"max_pixels": MAX_FRAME_PIXELS, "max_alloc": MAX_ALLOC}
    strict = {"protocol_whitelist": "file", "err_detect": "explode", **caps}
    # One thread stops at the picture's end; more would trip over what some tools append to it.
    return ffmpeg.input(str(path), f=demuxer, noautorotate=None, threads=1, **strict)


def read_clip(path: Path, **options: Any) -> Any:
    """A raw clip, taken for nothing but an MP4: a playlist would have other files opened."""
    return ffmpeg.input(str(path), f="mp4", protocol_whitelist="file", **options).video
