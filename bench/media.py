"""What becomes of a raw clip of 1920x1080, with the worker's own commands: seconds and quality.

    python -m bench.media [--runs 3] [--minutes 15]

pass    a clip measured alone, encoded alone (cut, cropped, watermarked), and both in one pass, as
        the worker does it; medians of --runs. A clip lasts 5 s.
join    five such clips to a film.
encode  what x264's presets make of three kinds of clips, beside medium with crf 18. One may be
        chosen when on every kind its SSIM (of the luma) is no worse and its file at most 1.1 times
        as large; of those the cheapest wins. PSNR is of all planes.

The clips move across a photograph (china.jpg by danielbuechele, CC BY 2.0, inside scikit-learn, as
`make clip-gate` installs it) or a room of the demo without it, at 1920x1088, encoded as ComfyUI's.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ffmpeg
from PIL import Image

from bench.agenda import Agenda
from bench.clip_gate.scenes import ease, window
from ltx.comfyui.workflow import RENDER_CRF
from ltx.film.clip_gate import measure_clip
from ltx.film.clips import (
    OUTPUT_CRF,
    OUTPUT_PRESET,
    encode_clip,
    join_command,
    place_watermark,
)
from ltx.film.ffmpeg import ffmpeg_command, read_clip
from ltx.job import CLIP_FRAMES, FPS, KEPT_FRAMES, render_size
from ltx.settings import Size
from sandbox.client import ROOT

FILM = Size(1920, 1080)
SIZE = render_size(FILM)
WATERMARK = ROOT / "sandbox" / "frames" / "watermark.png"
NICENESS, CLIPS, MOST_BYTES = 10, 5, 1.1


class Kind(NamedTuple):
    """What a clip shows: how bright it is, and the strength of the grain on it (ffmpeg's noise)."""

    name: str
    light: float
    grain: int


KINDS = (Kind("natural", 1.0, 0), Kind("grainy", 1.0, 8), Kind("dark", 0.2, 3))


class Choice(NamedTuple):
    preset: str
    crf: float

    def __str__(self) -> str:
        return f"{self.preset} {self.crf:g}"


BEFORE = Choice("medium", 18)
CHOSEN = Choice(OUTPUT_PRESET, OUTPUT_CRF)
CHOICES = tuple(dict.fromkeys([
    BEFORE, CHOSEN, Choice("fast", 18), Choice("fast", 17.5), Choice("faster", 18),
    Choice("faster", 17.5), Choice("veryfast", 15), Choice("veryfast", 16), Choice("veryfast", 17),
]))  # fmt: skip


class Spent(NamedTuple):
    """Seconds of CPU and on the clock."""

    cpu: float
    wall: float


class Encoded(NamedTuple):
    ssim: float
    psnr: float
    megabytes: float
    cpu: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.media", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=15, help="end after this long")
    options = parser.parse_args(arguments)
    parts = ("pass", "join", *map(str, CHOICES))
    with (
        Agenda(60 * options.minutes, parts) as agenda,
        tempfile.TemporaryDirectory(prefix="ltx-bench-") as name,
    ):
        folder = Path(name)
        ends = draw_clips(folder)
        print(f"{os.cpu_count()} cores, {SIZE.width}x{SIZE.height}, medians of {options.runs}\n")
        with agenda.part("pass"):
            show_pass(folder, ends, options.runs)
        with agenda.part("join"):
            show_join(folder, options.runs)
        show_choices(folder, agenda)
    return 0 if agenda.complete else 1


def draw_clips(folder: Path) -> tuple[Path, Path]:
    """A raw clip of each kind, and the two pictures between which all of them move."""
    photo = load_photo()
    views = [ease(number / (CLIP_FRAMES - 1)) for number in range(CLIP_FRAMES)]
    frames = [window(photo, SIZE, 0.2 + 0.4 * way, 0.5, 0.9 - 0.2 * way) for way in views]
    for kind in KINDS:
        write_raw(folder / f"{kind.name}.mp4", kind, frames)
    ends = folder / "first.png", folder / "last.png"
    for path, frame in zip(ends, (frames[0], frames[-1]), strict=True):
        Image.fromarray(frame).save(path)
    return ends


def load_photo() -> Image.Image:
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        return Image.open(ROOT / "sandbox" / "frames" / "03-living-room.jpg").convert("RGB")
    folder = Path(spec.submodule_search_locations[0])
    return Image.open(folder / "datasets" / "images" / "china.jpg").convert("RGB")


def write_raw(target: Path, kind: Kind, frames: Sequence[Any]) -> None:
    source = ffmpeg.input("pipe:", f="rawvideo", pix_fmt="rgb24", s=f"{SIZE[0]}x{SIZE[1]}", r=FPS)
    video = source.filter("colorchannelmixer", rr=kind.light, gg=kind.light, bb=kind.light)
    if kind.grain:
        video = video.filter("noise", alls=kind.grain, allf="t")
    encoding = {"c:v": "libx264", "preset": "veryfast", "crf": RENDER_CRF, "pix_fmt": "yuv420p"}
    node = video.output(str(target), **encoding).global_args("-v", "error").overwrite_output()
    with subprocess.Popen(node.compile(), stdin=subprocess.PIPE) as child:
        assert child.stdin
        for frame in frames:
            child.stdin.write(frame.tobytes())
        child.stdin.close()
    if child.returncode:
        raise RuntimeError(f"{target.name} could not be written")


def show_pass(folder: Path, ends: tuple[Path, Path], runs: int) -> None:
    """Uses the natural clip."""
    raw, target = folder / "natural.mp4", folder / "out.mp4"
    place = place_watermark(size_of(WATERMARK), FILM)

    def measure(clip: Any) -> Any:
        return measure_clip(clip, *ends, SIZE)

    def encode(clip: Any) -> Any:
        return encode_clip(clip, target, FILM, WATERMARK, place)

    halves = read_clip(raw).split()
    rows = {
        "measured alone": measure(read_clip(raw)),
        "encoded alone": encode(read_clip(raw)),
        "in one pass": ffmpeg.merge_outputs(measure(halves[0]), encode(halves[1])),
    }
    print(f"{'one raw clip':20}{'CPU s':>8}{'wall s':>8}")
    for name, node in rows.items():
        spent = [run(ffmpeg_command(node)) for _ in range(runs)]
        cpu, wall = (statistics.median(column) for column in zip(*spent, strict=True))
        print(f"{name:20}{cpu:8.2f}{wall:8.2f}", flush=True)


def show_join(folder: Path, runs: int) -> None:
    clip, film, listing = folder / "out.mp4", folder / "film.mp4", folder / "list.txt"
    listing.write_text(f"file '{clip.name}'\n" * CLIPS)
    command = ffmpeg_command(join_command(listing, film, CLIPS * KEPT_FRAMES))
    spent = [run(command).wall for _ in range(runs)]
    size = film.stat().st_size / 1e6
    print(f"\njoin of {CLIPS} clips, {size:.1f} MB: {statistics.median(spent):.2f} s\n", flush=True)


def show_choices(folder: Path, agenda: Agenda) -> None:
    print(f"{'':18}" + "".join(f"{kind.name:^34}" for kind in KINDS))
    heads = f"{'SSIM':>9}{'PSNR':>8}{'MB':>9}{'CPU s':>8}"
    print(f"{'preset, crf':18}{heads * len(KINDS)}")
    table: dict[Choice, list[Encoded]] = {}
    for choice in CHOICES:
        with agenda.part(str(choice)):
            table[choice] = [encode(folder, kind, choice) for kind in KINDS]
        row = "".join(
            f"{e.ssim:9.4f}{e.psnr:8.2f}{e.megabytes:9.2f}{e.cpu:8.1f}" for e in table[choice]
        )
        print(f"{choice!s:18}{row}", flush=True)
    good = [choice for choice, row in table.items() if may_replace(row, table[BEFORE])]
    cheapest = min(good, key=lambda choice: sum(one.cpu for one in table[choice]))
    print(f"\nno worse and no larger: {', '.join(map(str, good))}")
    print(f"the cheapest of them: {cheapest}; the worker's: {CHOSEN}")


def may_replace(row: Sequence[Encoded], before: Sequence[Encoded]) -> bool:
    return all(
        new.ssim >= old.ssim and new.megabytes <= MOST_BYTES * old.megabytes
        for new, old in zip(row, before, strict=True)
    )


def encode(folder: Path, kind: Kind, choice: Choice) -> Encoded:
    raw, target = folder / f"{kind.name}.mp4", folder / "choice.mp4"
    nowhere = place_watermark(FILM, FILM)
    command = ffmpeg_command(encode_clip(read_clip(raw), target, FILM, None, nowhere))
    for option, value in (("-preset", choice.preset), ("-crf", f"{choice.crf:g}")):
        command[command.index(option) + 1] = value
    cpu = run(command).cpu
    return Encoded(*compare(raw, target), target.stat().st_size / 1e6, cpu)


def compare(raw: Path, encoded: Path) -> tuple[float, float]:
    """SSIM of the luma and PSNR of all planes."""
    shown = f"[1]trim=end_frame={KEPT_FRAMES},crop={FILM.width}:{FILM.height}:exact=1,split[c][d]"
    graph = f"{shown};[0]split[a][b];[a][c]ssim;[b][d]psnr"
    command = ["ffmpeg", "-nostdin", "-hide_banner", "-i", str(encoded), "-i", str(raw)]
    command += ["-lavfi", graph, "-f", "null", "-"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    ssim, psnr = re.search(r"SSIM Y:([\d.]+)", told), re.search(r"average:([\d.]+)", told)
    assert ssim, told
    assert psnr, told
    return round(float(ssim[1]), 4), float(psnr[1])


def size_of(picture: Path) -> Size:
    stream = ffmpeg.probe(str(picture))["streams"][0]
    return Size(stream["width"], stream["height"])


def run(command: Sequence[str]) -> Spent:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    nice = ["nice", "-n", str(NICENESS), *command]
    subprocess.run(nice, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return Spent(user + system, wall)


if __name__ == "__main__":
    sys.exit(main())
