"""What ffmpeg takes for a clip and for joining a film, with the worker's own commands.

    python -m bench.media

The raw clips are a moving test picture under grain, encoded as ComfyUI's are. The trim is the one
lossy encode: 120 of 121 frames, cropped, watermarked, at the worker's niceness; joining copies five
such clips. Medians of --runs, in seconds; a clip lasts 5 s.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ffmpeg

from bench.agenda import Agenda
from ltx.comfyui.workflow import RENDER_CRF
from ltx.film.clips import join_command, place_watermark, trim_command
from ltx.film.ffmpeg import ffmpeg_command
from ltx.job import CLIP_FRAMES, CLIP_SECONDS, FPS, render_size
from ltx.settings import Size
from sandbox.client import ROOT

SIZES = (Size(1280, 720), Size(1920, 1080))
WATERMARK = ROOT / "sandbox" / "frames" / "watermark.png"
CLIPS = 5
NICENESS = 10
LONGEST_S = 180.0  # for a run of both sizes, on two slow cores


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.media", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args(arguments).runs
    names = {size: f"{size.width}x{size.height}" for size in SIZES}
    with Agenda(LONGEST_S * (1 + runs), names.values()) as agenda:
        print(f"{os.cpu_count()} cores, medians of {runs}\n")
        print("film          raw clip   trim + watermark + encode   of real time   join 5 clips")
        for size, name in names.items():
            with agenda.part(name), tempfile.TemporaryDirectory(prefix="ltx-bench-") as folder:
                show(size, Path(folder), runs)
    return 0 if agenda.complete else 1


def show(size: Size, folder: Path, runs: int) -> None:
    raw = folder / "raw.mp4"
    make_raw(render_size(size), raw)
    mark = place_watermark(size_of(WATERMARK), size)
    clips = [folder / f"{number:03}.mp4" for number in range(CLIPS)]
    trim = median(lambda: run(trim_command(raw, clips[0], size, WATERMARK, mark)), runs)
    for clip in clips[1:]:
        clip.write_bytes(clips[0].read_bytes())
    listing = folder / "list.txt"
    listing.write_text("".join(f"file '{clip.name}'\n" for clip in clips))
    join = median(lambda: run(join_command(listing, folder / "film.mp4")), runs)
    megabytes = raw.stat().st_size / 1e6
    print(
        f"{size.width}x{size.height:<5} {megabytes:8.0f} MB {trim:22.2f} s"
        f" {trim / CLIP_SECONDS:17.2f} {join:12.2f} s"
    )


def make_raw(size: Size, target: Path) -> None:
    source = f"testsrc2=size={size.width}x{size.height}:rate={FPS}"
    video = ffmpeg.input(source, f="lavfi").filter("noise", alls=12, allf="t")
    encoding = {"c:v": "libx264", "crf": RENDER_CRF, "pix_fmt": "yuv420p", "frames:v": CLIP_FRAMES}
    run(video.output(str(target), **encoding))


def size_of(picture: Path) -> Size:
    stream = ffmpeg.probe(str(picture))["streams"][0]
    return Size(stream["width"], stream["height"])


def median(work: Callable[[], object], runs: int) -> float:
    spent = []
    for _ in range(runs):
        started = time.monotonic()
        work()
        spent.append(time.monotonic() - started)
    return statistics.median(spent)


def run(stream: object) -> None:
    subprocess.run(ffmpeg_command(stream), check=True, preexec_fn=lambda: os.nice(NICENESS))


if __name__ == "__main__":
    sys.exit(main())
