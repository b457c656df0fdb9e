"""One look at one clip by the worker's own code, and what it costs."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from bench.clip_gate.clips import COUNT, Case, damage, draw, encode
from bench.clip_gate.scenes import PHOTOS, load
from ltx.cancellation import Cancellation
from ltx.comfyui.workflow import RENDER_CRF
from ltx.errors import ToolFailed
from ltx.film.clip_gate import ClipMeasures, judge, measure_clip, read_measures
from ltx.film.ffmpeg import Media, ffmpeg_command, read_clip
from ltx.job import CLIP_SECONDS
from ltx.settings import Settings, Size
from ltx.text import MAX_JSON_BYTES, one_line


@dataclass
class Result:
    case: Case
    look: ClipMeasures | None
    failed: list[str]
    told: str


def inspect(media: Media, raw: Path, first: Path, last: Path, size: Size) -> Result:
    """As the worker does: the structure, then one look."""
    case = Case("", "", 0, 0)
    try:
        media.check_video(raw, COUNT, size)
        clip = read_clip(raw, err_detect="explode")
        with media.start(ffmpeg_command(measure_clip(clip, first, last, size))) as child:
            media.finish(child)
            text = os.pread(child.output.fileno(), MAX_JSON_BYTES, 0).decode()
        look = read_measures(text)
    except ToolFailed as error:
        return Result(case, None, ["structure"], one_line(error))
    failed = judge(look)
    return Result(case, look, [one.check for one in failed], "; ".join(map(str, failed)))


@cache
def media() -> Media:
    folder = Path(tempfile.gettempdir()) / "clip-gate-state"
    settings = Settings.load({**os.environ, "STATE_DIR": str(folder)}, needed=())
    return Media(settings, Cancellation())


def try_case(case: Case, photos: Sequence[tuple[str, str, str]] = PHOTOS) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        raw, first, last = (Path(folder) / name for name in ("raw.mp4", "a.png", "b.png"))
        a, b, frames = draw(case, photos)
        size = Size(a.shape[1], a.shape[0])
        for picture, path in ((a, first), (b, last)):
            Image.fromarray(picture).save(path)
        if case.kind == "wrong size":
            frames = frames[:, :-32] if case.label == "mild" else frames[:, ::2, ::2]
        # What ComfyUI saves is crf 10; crf 28 is the hardest a good clip is ever treated.
        encode(frames, raw, 28 if case.label == "good" or case.number % 2 else 10)
        if case.kind == "damaged":
            damage(case, raw)
        result = inspect(media(), raw, first, last, size)
        result.case = case
        return result


def time_look(folder: Path) -> None:
    """One clip of 1920x1088, decoded and looked at, beside its five seconds."""
    size = Size(1920, 1088)
    a, b = load("sandbox", "01-hall.jpg"), load("sandbox", "03-living-room.jpg")
    paths = [folder / "a.png", folder / "b.png"]
    for picture, path in zip((a, b), paths, strict=True):
        picture.resize(size).save(path)
    raw = folder / "raw.mp4"
    inputs = [
        word
        for path in paths
        for word in ("-framerate", "24", "-loop", "1", "-t", "6", "-i", str(path))
    ]
    mix = "[0][1]xfade=duration=5:offset=0,noise=alls=3:allf=t"
    command = ["ffmpeg", "-v", "error", "-y", *inputs, "-filter_complex", mix, "-r", "24"]
    command += ["-frames:v", str(COUNT), "-c:v", "libx264", "-preset", "veryfast", "-crf"]
    subprocess.run([*command, str(RENDER_CRF), "-pix_fmt", "yuv420p", str(raw)], check=True)
    for _ in range(3):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        inspect(media(), raw, paths[0], paths[1], size)
        after, spent = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - started
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(
            f"one look at 1920x1088 ({raw.stat().st_size >> 20} MB): {spent:.1f} s, "
            f"{cpu:.1f} s of CPU = {100 * cpu / CLIP_SECONDS:.0f} % of the clip's 5 s"
        )
