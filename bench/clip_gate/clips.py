"""The labelled clips: good ones, and each way to go wrong, grossly and mildly."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bench.clip_gate.scenes import (
    ROOM_LEVELS,
    SCENES,
    SIZE,
    Degrade,
    Frames,
    Material,
    Pixels,
    Random,
    load,
    mix,
)
from ltx.job import CLIP_FRAMES, FPS
from ltx.settings import Size

COUNT = CLIP_FRAMES


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
