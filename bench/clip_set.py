"""A labelled set of clips, good and bad, made of real photographs and the sandbox's views.

Photographs come from the wheels of scikit-image and scikit-learn, which `.ci/setup photos` unpacks:
astronaut (NASA, public domain), camera, chelsea, coffee, coins, rocket and retina (CC0), the Hubble
deep field (NASA, public domain), china and flower (CC BY 2.0, danielbuechele and vultilion).

A clip is drawn at twice the size it is stored at, so that a camera can move by less than a pixel.
"""

from __future__ import annotations

import functools
import subprocess
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from sandbox.client import ROOT

FRAMES = 121
LAST = FRAMES - 1
SIZE = (320, 192)
PHOTOS = ROOT / ".venv" / "photos"
NAMES = (
    "skimage/data/astronaut.png",
    "skimage/data/camera.png",
    "skimage/data/chelsea.png",
    "skimage/data/coffee.png",
    "skimage/data/coins.png",
    "skimage/data/rocket.jpg",
    "skimage/data/retina.jpg",
    "skimage/data/hubble_deep_field.jpg",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
)

Array = np.ndarray[Any, np.dtype[np.float32]]
Draw = Callable[[float], Image.Image]


@dataclass(frozen=True)
class Sample:
    """A clip to be: its pinned pictures, frame by frame what is shown, and what became of it."""

    kind: str
    label: str  # good, mild or gross
    first: Image.Image
    last: Image.Image
    show: Callable[[int], Image.Image]
    wear: str = "none"
    frames: int = FRAMES
    group: int = 0

    @property
    def name(self) -> str:
        return f"{self.label} {self.kind}, {self.wear}"


def sandbox_views() -> list[Image.Image]:
    folder = ROOT / "sandbox" / "frames"
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))]


def photographs() -> list[Image.Image]:
    return [Image.open(PHOTOS / name).convert("RGB") for name in NAMES]


def fill(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def window(
    picture: Image.Image, size: tuple[int, int], x: float, y: float, zoom: float
) -> Image.Image:
    """What a camera sees: x and y from 0 to 1 across what is left to see at this zoom (from 1)."""
    width, height = picture.size
    wide = min(width, height * size[0] / size[1]) / zoom
    high = wide * size[1] / size[0]
    left, top = (width - wide) * x, (height - high) * y
    box = (left, top, left + wide, top + high)
    return picture.resize(size, Image.Resampling.BICUBIC, box=box)


def ease(way: float) -> float:
    return way * way * (3 - 2 * way)


def dim(picture: Image.Image, share: float) -> Image.Image:
    return picture.point(lambda level: level * share)


# Good clips. Each is a function of the way from 0 to 1; the ends are the pinned pictures.


def dissolve(a: Image.Image, b: Image.Image, size: tuple[int, int]) -> Draw:
    one, other = fill(a, size), fill(b, size)
    return lambda way: Image.blend(one, other, ease(way))


def walk(a: Image.Image, b: Image.Image, size: tuple[int, int]) -> Draw:
    """Towards something in one picture, out of the other."""
    return lambda way: Image.blend(
        window(a, size, 0.5, 0.5, 1 + 0.5 * way),
        window(b, size, 0.5, 0.5, 1.5 - 0.5 * way),
        ease(min(1.0, max(0.0, 2 * way - 0.5))),
    )


def pan(a: Image.Image, b: Image.Image, size: tuple[int, int]) -> Draw:
    return lambda way: window(a, size, ease(way), 0.4, 1.5)


def zoom(a: Image.Image, b: Image.Image, size: tuple[int, int]) -> Draw:
    return lambda way: window(a, size, 0.5, 0.4, 1 + 1.2 * ease(way))


def rush(a: Image.Image, b: Image.Image, size: tuple[int, int]) -> Draw:
    """Strong motion: through one picture, past a blur, into the other."""
    return lambda way: Image.blend(
        window(a, size, min(1.0, 1.8 * way), 0.5 * way, 2.2 - way),
        window(b, size, max(0.0, 1.8 * way - 0.8), 0.5 * way, 1.2 + way),
        ease(min(1.0, max(0.0, 3 * way - 1))),
    )


def still(a: Image.Image, b: Image.Image, size: tuple[int, int]) -> Draw:
    """Near-identical pictures: the camera hardly moves."""
    return lambda way: window(a, size, 0.5 + 0.012 * way, 0.5, 1.04)


def gloom(a: Image.Image, b: Image.Image, size: tuple[int, int]) -> Draw:
    bright = walk(a, b, size)
    return lambda way: dim(bright(way), 0.14)


GOOD = (dissolve, walk, pan, zoom, rush, still, gloom)
WEARS = ("none", "blurred", "shifted", "crf 28", "all")


def wear_down(picture: Image.Image, wear: str) -> Image.Image:
    """What a VAE does to a picture, and worse."""
    if wear in ("blurred", "all"):
        picture = picture.filter(ImageFilter.GaussianBlur(1.3))
    if wear in ("shifted", "all"):
        red, green, blue = picture.split()
        red = red.point(lambda level: level * 0.90 + 14)
        blue = blue.point(lambda level: level * 1.08 - 6)
        picture = Image.merge("RGB", (red, green, blue))
    return picture


def good_samples(pictures: list[Image.Image], group: int) -> Iterator[Sample]:
    for number, picture in enumerate(pictures):
        other = pictures[(number + 1) % len(pictures)]
        for draw in GOOD:
            wear = WEARS[(number + GOOD.index(draw)) % len(WEARS)]
            for chosen in {wear, "all"}:
                yield from one_good(draw, picture, other, SIZE, chosen, group)
        portrait = (dissolve, walk, pan)[number % 3]
        yield from one_good(portrait, picture, other, SIZE[::-1], "all", group)


def one_good(
    draw: Any, a: Image.Image, b: Image.Image, size: tuple[int, int], wear: str, group: int
) -> Iterator[Sample]:
    at = draw(a, b, size)
    kind = draw.__name__ + (" portrait" if size[0] < size[1] else "")
    yield Sample(kind, "good", at(0.0), at(1.0), show_of(at), wear, group=group)


def show_of(at: Draw) -> Callable[[int], Image.Image]:
    return lambda number: at(number / LAST)


# Bad clips: each failure, mild and gross, of the clip that should have been.


def noise(size: tuple[int, int], number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(16, 236, (size[1], size[0], 3)).astype(np.uint8))


@dataclass(frozen=True)
class Scene:
    """What a bad clip is made from: the right clip, and pictures of quite another job."""

    at: Draw
    stranger: Image.Image
    next_stranger: Image.Image
    size: tuple[int, int] = field(default=SIZE)

    @functools.cached_property
    def first(self) -> Image.Image:
        return self.at(0.0)

    @functools.cached_property
    def last(self) -> Image.Image:
        return self.at(1.0)


def black(scene: Scene, mild: bool) -> Callable[[int], Image.Image]:
    """All of it, or its second half."""
    nothing = Image.new("RGB", scene.size)
    return lambda n: scene.at(n / LAST) if mild and n < 50 else nothing


def noisy(scene: Scene, mild: bool) -> Callable[[int], Image.Image]:
    """Noise instead of a film, or as much of it as of the film."""
    share = 0.5 if mild else 1.0
    return lambda n: Image.blend(scene.at(n / LAST), noise(scene.size, n), share)


def noisy_middle(scene: Scene, mild: bool) -> Callable[[int], Image.Image]:
    """Some frames that were not decoded: 24 of them, or three."""
    span = range(60, 63 if mild else 84)
    return lambda n: noise(scene.size, n) if n in span else scene.at(n / LAST)


def stale(scene: Scene, mild: bool) -> Callable[[int], Image.Image]:
    """Another job's clip, or the clip before this one, which ends where this one begins."""
    end = scene.first if mild else fill(scene.next_stranger, scene.size)
    at = dissolve(fill(scene.stranger, scene.size), end, scene.size)
    return show_of(at)


def wrong_last(scene: Scene, mild: bool) -> Callable[[int], Image.Image]:
    """It ends on another job's picture, or on its own last one seen in a mirror."""
    end = ImageOps.mirror(scene.last) if mild else fill(scene.stranger, scene.size)
    return show_of(dissolve(scene.first, end, scene.size))


def ignored_last(scene: Scene, mild: bool) -> Callable[[int], Image.Image]:
    """It wanders off from its first picture, or arrives only halfway."""
    wander = zoom(scene.first, scene.first, scene.size)
    if mild:
        return lambda n: scene.at(0.5 * n / LAST)
    return lambda n: wander(0.4 * n / LAST)


def frozen(scene: Scene, mild: bool) -> Callable[[int], Image.Image]:
    """A still that jumps at the end, or one that stands for three seconds in the middle."""
    if mild:
        return lambda n: scene.at((n if n < 24 else 24 if n < 96 else 24 + (n - 96) * 4) / LAST)
    return lambda n: scene.first if n < LAST else scene.last


def cut(scene: Scene, mild: bool) -> Callable[[int], Image.Image]:
    """From one picture to the other within a frame, or from one third to the other."""
    if mild:
        return lambda n: scene.at(0.35 * n / 60 if n < 60 else 1 - 0.35 * (LAST - n) / 60)
    return lambda n: scene.at(0.05 * n / LAST if n < 60 else 1 - 0.05 * (LAST - n) / LAST)


def bounced(scene: Scene, mild: bool) -> Callable[[int], Image.Image]:
    """There and back, or back just before the pinned last frame."""
    if mild:
        return lambda n: (
            scene.at(n / 90) if n < 90 else scene.at(1 - (n - 90) / 30) if n < 119 else scene.last
        )
    return lambda n: scene.at(1 - abs(1 - n / 60))


BAD = (black, noisy, noisy_middle, stale, wrong_last, ignored_last, frozen, cut, bounced)


def bad_samples(pictures: list[Image.Image], group: int) -> Iterator[Sample]:
    for number, picture in enumerate(pictures):
        others = [pictures[(number + step) % len(pictures)] for step in (1, 2, 3)]
        at = (dissolve, walk)[number % 2](picture, others[0], SIZE)
        scene = Scene(at, others[1], others[2])
        for spoil in BAD:
            for mild in (False, True):
                kind, label = spoil.__name__.replace("_", " "), "mild" if mild else "gross"
                wear = WEARS[(number + BAD.index(spoil) + mild) % len(WEARS)]
                show = spoil(scene, mild)
                yield Sample(kind, label, scene.first, scene.last, show, wear, group=group)


def write_clip(sample: Sample, path: Path) -> None:
    """As VHS_VideoCombine would; a worn clip goes through crf 28 on its way."""
    width, height = sample.first.size
    crf = "28" if sample.wear in ("crf 28", "all") else "10"
    command = ["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", "24", "-i", "-", "-c:v", "libx264"]
    command += ["-preset", "veryfast", "-crf", crf, "-pix_fmt", "yuv420p", str(path)]
    frames = (wear_down(sample.show(number), sample.wear) for number in range(sample.frames))
    subprocess.run(command, input=b"".join(frame.tobytes() for frame in frames), check=True)


def group_of(name: str) -> int:
    """0 or 1: thresholds are chosen on one half of the pictures and tried on the other."""
    return zlib.crc32(name.encode()) % 2
