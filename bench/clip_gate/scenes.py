"""The photographs, and what a camera does with two of them in a good clip."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from ltx.film.pictures import center_crop
from ltx.settings import Size
from sandbox.client import ROOT

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # height, width, RGB
Frames = np.ndarray[Any, np.dtype[np.uint8]]  # frame, height, width, RGB
Random = np.random.Generator

SIZE = Size(192, 128)
# Package, file, whose it is. In this order every other one is held out.
PHOTOS = (
    ("skimage", "astronaut.png", "NASA, public domain"),
    ("sklearn", "china.jpg", "danielbuechele, CC BY 2.0"),
    ("skimage", "chelsea.png", "Stefan van der Walt, CC0"),
    ("sandbox", "01-hall.jpg", "drawn for the sandbox"),
    ("skimage", "coffee.png", "Rachel Michetti, CC0"),
    ("skimage", "rocket.jpg", "SpaceX, public domain"),
    ("sandbox", "02-doorway.jpg", "drawn for the sandbox"),
    ("sandbox", "03-living-room.jpg", "drawn for the sandbox"),
    ("sklearn", "flower.jpg", "vultilion, CC BY 2.0"),
    ("skimage", "hubble_deep_field.jpg", "NASA, public domain"),
    ("skimage", "retina.jpg", "Häggström 2014, CC0"),
    ("sandbox", "05-reading-corner.jpg", "drawn for the sandbox"),
    ("sandbox", "04-sofa.jpg", "drawn for the sandbox"),
    ("skimage", "gravel.png", "CC0Textures, CC0"),
    ("skimage", "camera.png", "Lav Varshney, CC0"),
    ("sandbox", "06-garden-door.jpg", "drawn for the sandbox"),
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
