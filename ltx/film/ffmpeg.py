"""ffmpeg and ffprobe as children."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ffmpeg

from ltx.cancellation import Cancellation
from ltx.errors import DiskFull, JobError, ToolFailed, tells_full_disk
from ltx.job import FPS, MAX_FRAME_PIXELS
from ltx.process import Child
from ltx.settings import Settings, Size
from ltx.text import MAX_JSON_BYTES, as_dict, as_list

# A picture of 64 million pixels takes seconds; one of thousands of scans takes hours.
PICTURE_SECONDS = 60.0
# The largest picture with 16 bits a channel: a packed text or colour profile may be larger.
MAX_ALLOC = 8 * MAX_FRAME_PIXELS + 2**20


class Media:
    """ffmpeg and ffprobe, as children at low priority that know none of our secrets."""

    def __init__(self, settings: Settings, cancellation: Cancellation) -> None:
        self.settings, self.cancellation = settings, cancellation

    def start(self, command: Sequence[str], cwd: Path | None = None) -> Child:
        # In memory, because nothing is written outside of the state folder; apart, because a
        # library may print a warning into what is parsed.
        output = open(os.memfd_create("output"), "w+b")  # noqa: SIM115 (the child's)
        errors = open(os.memfd_create("errors"), "w+b")  # noqa: SIM115 (the child's)
        return Child(command, self.settings, output, cwd, niceness=10, errors=errors)

    def finish(self, child: Child, seconds: float = math.inf) -> None:
        """Raises ToolFailed with its last lines when the program did not succeed in time."""
        if code := child.finish(self.cancellation, seconds):
            if tells_full_disk(child.tail()):
                raise DiskFull
            if code < 0:  # not its own end, so it says nothing about what it was reading
                raise JobError("media_failed", f"ffmpeg: {child.last_words()}.")
            raise ToolFailed(child.tail() or "ffmpeg ended without a word")

    def run(self, stream: Any, seconds: float = math.inf, cwd: Path | None = None) -> None:
        with self.start(ffmpeg_command(stream), cwd) as child:
            self.finish(child, seconds)

    def probe(self, path: Path, demuxer: str = "mp4") -> dict[str, Any]:
        """ffprobe's description of the first video stream. Raises ToolFailed."""
        # Quiet, because what it says of a damaged EXIF block would land in the JSON.
        command = ["ffprobe", "-v", "quiet", "-protocol_whitelist", "file", "-of", "json"]
        command += ["-max_pixels", str(MAX_FRAME_PIXELS), "-max_alloc", str(MAX_ALLOC)]
        command += ["-select_streams", "v:0", "-show_streams", "-f", demuxer]
        with self.start([*command, str(path)]) as child:
            if child.finish(self.cancellation, PICTURE_SECONDS):
                raise ToolFailed("it cannot be read")
            answer = os.pread(child.output.fileno(), MAX_JSON_BYTES, 0)
        try:
            return as_dict(as_list(as_dict(json.loads(answer)).get("streams"))[0])
        except (ValueError, IndexError) as error:
            raise ToolFailed("there is no picture in it") from error

    def check_video(self, path: Path, frames: int, size: Size) -> None:
        """Raises ToolFailed unless the video has these frames, this size and 24 fps."""
        stream = self.probe(path)
        found = tuple(stream.get(name) for name in ("nb_frames", "width", "height", "r_frame_rate"))
        wanted = (str(frames), *size, f"{FPS}/1")
        if found != wanted:
            raise ToolFailed(f"frames, width, height, rate are {found}, expected {wanted}")


# No sound, no titles, no prompts, no camera's notes in what is made.
CLEAN = {"an": None, "map_metadata": -1, "fflags": "+bitexact", "flags:v": "+bitexact"}


def ffmpeg_command(stream: Any) -> list[str]:
    quiet = ("-nostdin", "-hide_banner", "-v", "error", "-xerror")
    command: list[str] = stream.global_args(*quiet).overwrite_output().compile()
    return command


def read_picture(path: Path, demuxer: str) -> Any:
    """A picture as it lies in the file; turning it upright is our business, not the decoder's."""
    caps = {"max_pixels": MAX_FRAME_PIXELS, "max_alloc": MAX_ALLOC}
    strict = {"protocol_whitelist": "file", "err_detect": "crccheck+explode", **caps}
    return ffmpeg.input(str(path), f=demuxer, noautorotate=None, threads=1, **strict)


def read_clip(path: Path, **options: Any) -> Any:
    """A raw clip, taken for nothing but an MP4: a playlist would have other files opened."""
    return ffmpeg.input(str(path), f="mp4", protocol_whitelist="file", **options).video
