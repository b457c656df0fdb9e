"""How well the clip gate tells good clips from bad ones, and what a look costs.

`make clip-gate`: makes some 470 labelled clips from photographs, has the worker's own code look
at each, and prints who was refused, what was measured, and the margins. The thresholds were chosen
on one half of the photographs ("tuned"); what counts is the other half ("held out").

The photographs are those that scikit-image and scikit-learn ship, and the sandbox's drawn rooms:
see PHOTOS for whose they are.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from ltx.cancellation import Halt
from ltx.comfyui.workflow import RENDER_CRF
from ltx.errors import ToolFailed
from ltx.film.clip_gate import ALIKE, Look, judge, limits, look_command, read_look
from ltx.film.ffmpeg import Media, ffmpeg_command
from ltx.film.pictures import center_crop
from ltx.job import CLIP_FRAMES, CLIP_SECONDS, FPS
from ltx.settings import Settings, Size
from ltx.text import MAX_JSON_BYTES, one_line

ROOT = Path(__file__).resolve().parent.parent
Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # height, width, RGB
Frames = np.ndarray[Any, np.dtype[np.uint8]]  # frame, height, width, RGB
Random = np.random.Generator

SIZE = Size(192, 128)
COUNT = CLIP_FRAMES
# Package, file, whose it is. In this order every other one is held out.
PHOTOS = (
    ("skimage", "astronaut.png", "NASA, public domain"),
    ("sklearn", "china.jpg", "danielbuechele, CC BY 2.0"),
    ("skimage", "chelsea.png", "Stefan van der Walt, CC0"),
    ("sandbox", "01-hall.jpg", "drawn by sandbox/draw_frames.py"),
    ("skimage", "coffee.png", "Rachel Michetti, CC0"),
    ("skimage", "rocket.jpg", "SpaceX, public domain"),
    ("sandbox", "02-doorway.jpg", "drawn by sandbox/draw_frames.py"),
    ("sandbox", "03-living-room.jpg", "drawn by sandbox/draw_frames.py"),
    ("sklearn", "flower.jpg", "vultilion, CC BY 2.0"),
    ("skimage", "hubble_deep_field.jpg", "NASA, public domain"),
    ("skimage", "retina.jpg", "Häggström 2014, CC0"),
    ("sandbox", "05-reading-corner.jpg", "drawn by sandbox/draw_frames.py"),
    ("sandbox", "04-sofa.jpg", "drawn by sandbox/draw_frames.py"),
    ("skimage", "gravel.png", "CC0Textures, CC0"),
    ("skimage", "camera.png", "Lav Varshney, CC0"),
    ("sandbox", "06-garden-door.jpg", "drawn by sandbox/draw_frames.py"),
)
ROOM_LEVELS = 70.0
FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}


@cache
def load(package: str, name: str) -> Image.Image:
    """A photograph; the packages are not imported, only their pictures are read."""
    if package == "sandbox":
        return shrunk(ROOT / "sandbox" / "frames" / name)
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is missing; `make clip-gate` installs it")
    folder = Path(spec.submodule_search_locations[0]) / FOLDERS[package]
    return shrunk(folder / name)


def shrunk(path: Path) -> Image.Image:
    """No larger than the cameras here can tell, to save time."""
    photo = Image.open(path).convert("RGB")
    return photo.reduce(max(1, min(photo.size) // 200))


def window(photo: Image.Image, size: Size, x: float, y: float, share: float) -> Pixels:
    """What a camera sees that shows `share` of the photograph, x and y (0..1) of the way across."""
    crop = center_crop(Size(*photo.size), size)
    width, height = crop.width * share, crop.height * share
    left, top = x * (photo.width - width), y * (photo.height - height)
    box = (left, top, left + width, top + height)
    return np.asarray(photo.resize(size, Image.Resampling.BILINEAR, box=box))


def ease(way: float) -> float:
    return way * way * (3 - 2 * way)


class Material(NamedTuple):
    """What a scene is made of."""

    a: Image.Image
    b: Image.Image
    size: Size
    random: Random


Scene = Callable[[Material, float], Pixels]  # the picture at 0..1 of the way


def mix(a: Pixels, b: Pixels, share: float) -> Pixels:
    return np.asarray(Image.blend(Image.fromarray(a), Image.fromarray(b), share))


def dissolve(m: Material, way: float, closer: float = 0.0) -> Pixels:
    share = 1 - closer * 4 * way * (1 - way)
    views = [window(photo, m.size, 0.5, 0.5, share) for photo in (m.a, m.b)]
    return mix(views[0], views[1], 0.3 * way + 0.7 * ease(way))


def pan(m: Material, way: float) -> Pixels:
    return window(m.a, m.size, 0.1 + 0.8 * ease(way), 0.5, 0.6)


def zoom(m: Material, way: float) -> Pixels:
    return window(m.a, m.size, 0.5, 0.5, 1 - 0.55 * ease(way))


def rush(m: Material, way: float) -> Pixels:
    """A hand-held dash across one picture into the other."""
    speed = ease(ease(way))
    still = 4 * way * (1 - way)
    shake = 0.04 * still * np.sin(way * np.array([70.0, 91.0]))
    way_there = np.array([0.95 * speed, 0.5 + 0.4 * np.sin(6 * way) * still])
    x, y = np.clip(way_there + shake, 0, 1)
    views = [window(photo, m.size, float(x), float(y), 0.5) for photo in (m.a, m.b)]
    return mix(views[0], views[1], float(np.clip((speed - 0.3) / 0.4, 0, 1)))


def dim(m: Material, way: float) -> Pixels:
    return mix(np.zeros((m.size[1], m.size[0], 3), np.uint8), dissolve(m, way, 0.06), 0.2)


def near(m: Material, way: float) -> Pixels:
    return window(m.a, m.size, 0.5, 0.5, 0.99 - 0.01 * way)


def walk(m: Material, way: float) -> Pixels:
    return dissolve(m, way, 0.1)


SCENES: dict[str, Scene] = {
    "dissolve": dissolve, "pan": pan, "zoom": zoom, "strong motion": rush, "dim room": dim,
    "near-identical": near, "walk": walk, "portrait": walk,
}  # fmt: skip


class Degrade(NamedTuple):
    """As hard as a VAE's round trip and a colour shift would."""

    blur: float  # pixels
    gain: np.ndarray[Any, Any]  # per channel
    offset: float

    @classmethod
    def draw(cls, random: Random) -> Degrade:
        gain = random.uniform(0.9, 1.1, 3) * random.uniform(0.93, 1.07)
        return cls(random.uniform(0.3, 1.2), gain, random.uniform(-6, 6))

    def __call__(self, pixels: Pixels) -> Pixels:
        soft = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(self.blur))
        levels = np.clip(np.outer(self.gain, np.arange(256)) + self.offset, 0, 255)
        return np.asarray(soft.point(np.rint(levels).astype(int).ravel().tolist()))


class Plot(NamedTuple):
    """The clip that should have been, and what goes wrong with it."""

    frames: Frames
    alien: Callable[[], Frames]  # a clip of other pictures
    random: Random
    mild: bool


Ruin = Callable[[Plot], Frames]


def noise(p: Plot) -> Frames:
    return np.asarray(p.random.integers(0, 256, p.frames.shape, dtype=np.uint8))


def blend(one: Frames, other: Frames, share: float) -> Frames:
    return np.stack([mix(a, b, share) for a, b in zip(one, other, strict=True)])


def at(p: Plot, moments: Iterable[float]) -> Frames:
    """The clip replayed along other moments, 0..1."""
    replayed: Frames = p.frames[[round(moment * (COUNT - 1)) for moment in moments]]
    return replayed


def ways() -> Iterator[float]:
    return (number / (COUNT - 1) for number in range(COUNT))


def make_black(p: Plot) -> Frames:
    if not p.mild:
        return np.zeros_like(p.frames)
    frames = p.frames.copy()
    if p.random.random() < 0.5:
        return blend(frames, np.zeros_like(frames), 0.75)
    frames[60:72] = 0
    return frames


def make_noise(p: Plot) -> Frames:
    return blend(p.frames, noise(p), 0.35) if p.mild else noise(p)


def make_frozen(p: Plot) -> Frames:
    held = 0.5 if p.mild else 1.0
    return at(p, (max(0.0, way - held) / max(1 - held, 1e-9) for way in ways()))


def make_still_end(p: Plot) -> Frames:
    """Arrives early and then stands."""
    spent = 0.5 if p.mild else 0.15
    return at(p, (min(1.0, way / spent) for way in ways()))


def ignore_last(p: Plot) -> Frames:
    return at(p, ((0.5 if p.mild else 0.1) * way for way in ways()))


def bounce(p: Plot) -> Frames:
    """There and back; mildly: the first image returns before the last one comes in time."""
    if not p.mild:
        return at(p, (1 - abs(1 - 2 * way) for way in ways()))
    return at(p, np.interp(list(ways()), [0, 0.45, 0.8, 1], [0, 0.7, 0.05, 1]))


def stale(p: Plot) -> Frames:
    """Another clip; mildly: one that begins right and ends elsewhere."""
    if not p.mild:
        return p.alien()
    share = np.clip((np.arange(COUNT) - 40) / 60, 0, 1)
    alien = p.alien()
    return np.stack([mix(p.frames[n], alien[n], float(share[n])) for n in range(COUNT)])


def cut(p: Plot) -> Frames:
    jump = 0.3 if p.mild else 0.05
    return at(p, (jump * way * 2 if way < 0.5 else 1 - jump * 2 * (1 - way) for way in ways()))


def flash(p: Plot) -> Frames:
    frames = p.frames.copy()
    if p.mild:
        frames[60:61] = blend(frames[60:61], np.full_like(frames[60:61], 255), 0.6)
    else:
        frames[60:64] = noise(p)[60:64]
    return frames


def shorten(p: Plot) -> Frames:
    return p.frames[: 120 if p.mild else 97]


def leave(p: Plot) -> Frames:
    return p.frames


RUINS: dict[str, Ruin] = {
    "black": make_black, "noise": make_noise, "frozen": make_frozen, "still end": make_still_end,
    "last ignored": ignore_last, "bounce-back": bounce, "wrong image": stale, "cut": cut,
    "flash": flash, "short": shorten, "damaged": leave, "wrong size": leave,
}  # fmt: skip


class Case(NamedTuple):
    """One clip of the set, by what it is made of."""

    kind: str
    label: str  # good, gross, mild
    number: int
    half: int  # 0 tuned, 1 held out

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.label}" if self.label != "good" else self.kind


@dataclass
class Result:
    case: Case
    look: Look | None
    failed: list[str]
    told: str


def cases(per_good: int, per_bad: int) -> list[Case]:
    good = [Case(kind, "good", n, n % 2) for kind in SCENES for n in range(per_good)]
    bad = [
        Case(kind, label, n, n % 2)
        for kind in RUINS for label in ("gross", "mild") for n in range(per_bad)
    ]  # fmt: skip
    return good + bad


def photo(case: Case, step: int, photos: Sequence[tuple[str, str, str]]) -> Image.Image:
    own = photos[case.half :: 2]
    if case.kind == "dim room":
        # A night sky with the lights down is black, and no room.
        own = [one for one in own if brightness(*one[:2]) >= ROOM_LEVELS]
    package, name, _ = own[(case.number // 2 + step) % len(own)]
    return load(package, name)


def brightness(package: str, name: str) -> float:
    return float(np.asarray(load(package, name).convert("L")).mean())


def draw(case: Case, photos: Sequence[tuple[str, str, str]]) -> tuple[Pixels, Pixels, Frames]:
    """First image, last image and the clip, before it is encoded."""
    seed = [sum(case.name.encode()), case.number]
    random = np.random.default_rng(seed)
    size = Size(*SIZE[::-1]) if case.kind == "portrait" else SIZE
    gap = 1 + case.number // 2 % 3
    material = Material(photo(case, 0, photos), photo(case, gap, photos), size, random)
    other = Material(photo(case, gap + 1, photos), photo(case, gap + 2, photos), size, random)
    usual = list(SCENES.values())[case.number % 2 * 6]  # a dissolve or a walk
    scene = SCENES.get(case.kind, usual)
    degrade = Degrade.draw(random)
    frames = np.stack([degrade(scene(material, way)) for way in ways()])
    if ruin := RUINS.get(case.kind):

        def alien() -> Frames:
            return np.stack([degrade(scene(other, way)) for way in ways()])

        frames = ruin(Plot(frames, alien, random, case.label == "mild"))
    return scene(material, 0.0), scene(material, 1.0), frames


def encode(frames: Frames, path: Path, crf: int) -> None:
    _, height, width, _ = frames.shape
    command = ["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", str(FPS), "-i", "-", "-c:v", "libx264"]
    command += ["-preset", "veryfast", "-threads", "1", "-crf", str(crf), "-pix_fmt", "yuv420p"]
    subprocess.run([*command, str(path)], input=frames.tobytes(), check=True)


def damage(case: Case, path: Path) -> None:
    """A file that lost its end or, mildly, a stretch of its middle."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if case.label == "gross":
        del data[middle:]
    else:
        data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)


def inspect(media: Media, raw: Path, first: Path, last: Path, size: Size) -> Result:
    """As the worker does: the structure, then one look."""
    case = Case("", "", 0, 0)
    try:
        media.check_video(raw, COUNT, size)
        with media.start(ffmpeg_command(look_command(raw, first, last, size))) as child:
            media.finish(child)
            text = os.pread(child.output.fileno(), MAX_JSON_BYTES, 0).decode()
        look = read_look(text)
    except ToolFailed as error:
        return Result(case, None, ["structure"], one_line(error))
    failed = judge(look)
    return Result(case, look, [one.check for one in failed], "; ".join(map(str, failed)))


@cache
def media() -> Media:
    folder = Path(tempfile.gettempdir()) / "clip-gate-state"
    settings = Settings.load({**os.environ, "STATE_DIR": str(folder)}, needed=())
    return Media(settings, Halt())


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


def print_confusion(results: Sequence[Result]) -> None:
    print(f"\n{'kind':24} {'clips':>5} {'refused':>7}  by")
    by_kind: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_kind[result.case.name].append(result)
    for name, found in by_kind.items():
        checks = Counter(check for one in found for check in one.failed)
        why = ", ".join(f"{check} {count}" for check, count in checks.most_common())
        print(f"{name:24} {len(found):5} {sum(bool(one.failed) for one in found):7}  {why}")
    for label in ("good", "gross", "mild"):
        found = [one for one in results if one.case.label == label]
        refused = sum(bool(one.failed) for one in found)
        share = 100 * refused / max(1, len(found))
        print(f"all {label:20} {len(found):5} {refused:7}  {share:.1f} %")


MEASURES = tuple(Look.__dataclass_fields__)[1:]


def spread(results: Iterable[Result], measure: str) -> str:
    values = [float(getattr(one.look, measure)) for one in results if one.look]
    if not values:
        return f"{'-':>17}"
    return "/".join(f"{v:5.2f}" for v in (min(values), statistics.median(values), max(values)))


def print_measures(results: Sequence[Result]) -> None:
    print("\nmeasured, least/median/most:")
    print(f"{'':24} " + " ".join(f"{name:>17}" for name in MEASURES))
    groups: dict[str, list[Result]] = {"all good": [r for r in results if r.case.label == "good"]}
    for result in results:
        groups.setdefault(result.case.name, []).append(result)
    for name, found in groups.items():
        print(f"{name:24} " + " ".join(f"{spread(found, measure):>17}" for measure in MEASURES))


def print_margins(results: Sequence[Result]) -> None:
    print("\nmargins: the good clip nearest to each limit")
    looks = [r.look for r in results if r.look and r.case.label == "good"]
    least, most = limits(differ=True)
    for name, limit in {**least, **most}.items():
        counted = [
            look
            for look in looks
            if look.alike < ALIKE or name in limits(differ=False)[name in most]
        ]
        values = [float(getattr(look, name)) for look in counted]
        if not values:
            continue
        worst = min(values) if name in least else max(values)
        print(f"  {name:8} limit {limit:5.2f}  nearest good {worst:5.2f}")


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


def try_all(chosen: Sequence[Case], jobs: int, minutes: float) -> list[Result]:
    """Every kind in turn, so that what was not reached in time lacks no kind."""
    deadline = time.monotonic() + 60 * minutes
    results: list[Result] = []
    with ProcessPoolExecutor(jobs, get_context("fork")) as pool:
        for result in pool.map(try_case, sorted(chosen, key=lambda case: case.number)):
            results.append(result)
            if len(results) % 20 == 0:
                print(f"{len(results)} of {len(chosen)}", file=sys.stderr, flush=True)
            if time.monotonic() > deadline:
                pool.shutdown(wait=False, cancel_futures=True)
                break
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--good", type=int, default=28, help="clips of each good kind")
    parser.add_argument("--bad", type=int, default=10, help="clips of each bad kind and strength")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=60, help="end the set after this long")
    parser.add_argument("--no-time", action="store_true", help="do not time a clip of 1080p")
    parser.add_argument("--only", default="", help="only kinds that contain this")
    options = parser.parse_args()
    chosen = [case for case in cases(options.good, options.bad) if options.only in case.name]
    results = try_all(chosen, options.jobs, options.minutes)
    print(f"{len(results)} of {len(chosen)} clips were looked at")
    for half, title in enumerate(("tuned", "held out")):
        print(f"\n=== {title} ===")
        ours = [one for one in results if one.case.half == half]
        print_confusion(ours)
        print_measures(ours)
        print_margins(ours)
    for one in results:
        if (one.case.label == "good") == bool(one.failed):
            print("wrong:", one.case, one.told or one.look)
    if not options.no_time:
        with tempfile.TemporaryDirectory() as folder:
            time_look(Path(folder))
    return int(any(one.failed for one in results if one.case.label == "good"))


if __name__ == "__main__":
    sys.exit(main())
