"""Draw the sample frames: six views along a walk through one small made-up home.

The home is a list of boxes, cushions, drums and eggs. Soft daylight is worked out once for
every patch of surface (sky through the openings, lamps, then light bounced between patches)
and kept in a light map; each view then traces one ray per sample and adds crisp sunshine and
a floor reflection. Run it with ``python -m sandbox.draw_frames``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Array = NDArray[Any]
Vec = tuple[float, float, float]
Paint = Callable[[Array, Array, Array], Array]

FOLDER = Path(__file__).parent / "frames"
WIDTH, HEIGHT, SPLIT = 1920, 1080, 2
PATCH, GATHER, BOUNCES = 0.07, 144, 6
SUN = np.array([0.62, 0.50, 0.50]) / np.linalg.norm([0.62, 0.50, 0.50])
SUNSHINE = np.array([16.5, 14.4, 11.6])
NOISE = np.random.default_rng(11).random((512, 512)).astype(np.float32)

WHITE, WALL, SAGE = (0.82, 0.81, 0.78), (0.76, 0.735, 0.69), (0.36, 0.43, 0.38)
OAK, WALNUT, BRASS = (0.43, 0.295, 0.185), (0.24, 0.135, 0.075), (0.50, 0.37, 0.17)
SLATE, MUSTARD, CLAY = (0.19, 0.26, 0.31), (0.56, 0.37, 0.14), (0.47, 0.235, 0.155)
LINEN, BLACK, LEAF = (0.74, 0.68, 0.58), (0.03, 0.03, 0.032), (0.075, 0.17, 0.06)


@dataclass(frozen=True)
class Solid:
    """One shape filling a box of half size `half`, spun by `spin` about its centre."""

    centre: Array
    half: Array
    colour: Vec
    paint: str = "plain"
    shape: str = "box"
    bevel: float = 0.0
    gloss: float = 0.0
    glow: float = 0.0
    spin: Array | None = None


class Group(NamedTuple):
    """Solids that share a bounding box, so that most rays can pass them all by at once."""

    centre: Array
    half: Array
    members: list[tuple[int, Solid]]


class Opening(NamedTuple):
    """A rectangle in a wall through which daylight comes: a corner and two edges."""

    corner: Vec
    across: Vec
    up: Vec


class View(NamedTuple):
    """Where the camera stands, what it looks at, its field of view and its exposure."""

    name: str
    stand: Vec
    target: Vec
    degrees: float
    exposure: float


OPENINGS = [
    Opening((-1.1, 6.32, 0.0), (2.0, 0, 0), (0, 0, 2.2)),
    Opening((4.3, 2.0, 0.95), (0, 2.4, 0), (0, 0, 1.3)),
    Opening((-0.5, -4.66, 0.1), (1.0, 0, 0), (0, 0, 2.0)),
]
LAMPS: list[tuple[Vec, Vec]] = [
    ((0.0, -2.2, 2.0), (2.0, 1.6, 1.1)),
    ((3.72, 5.72, 1.5), (1.0, 0.75, 0.45)),
    ((-1.75, 1.95, 1.2), (0.6, 0.45, 0.27)),
]
VIEWS = [
    View("01-hall", (-0.1, -4.45, 1.5), (0.04, 0.6, 0.86), 72, 1.0),
    View("02-doorway", (-0.3, -0.95, 1.5), (0.62, 3.2, 1.06), 70, 1.0),
    View("03-living-room", (-1.55, 0.55, 1.5), (1.75, 4.1, 0.92), 76, 1.0),
    View("04-sofa", (0.35, 2.0, 1.35), (3.6, 3.45, 0.88), 70, 1.0),
    View("05-reading-corner", (0.75, 2.9, 1.35), (2.62, 5.9, 1.02), 68, 1.2),
    View("06-garden-door", (0.42, 2.2, 1.45), (-0.3, 6.2, 1.02), 68, 1.0),
]


# ---------------------------------------------------------------- paint


def noise(x: Array, y: Array) -> Array:
    """Smooth random values between 0 and 1, one bump per unit square."""
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    u, v = x - left, y - top
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    a, b = left & 511, (left + 1) & 511
    c, d = top & 511, (top + 1) & 511
    upper = NOISE[c, a] * (1 - u) + NOISE[c, b] * u
    lower = NOISE[d, a] * (1 - u) + NOISE[d, b] * u
    return np.asarray(upper * (1 - v) + lower * v)


def cloud(x: Array, y: Array) -> Array:
    """Four layers of noise, each twice as fine and half as strong as the one before."""
    layers = [noise(x * 2**i + 17 * i, y * 2**i + 5 * i) / 2**i for i in range(4)]
    return np.asarray(sum(layers) / 1.875)


def ramp(low: float, high: float, value: Array) -> Array:
    """Rise smoothly from 0 at `low` to 1 at `high`."""
    part = np.clip((value - low) / (high - low), 0, 1)
    return np.asarray(part * part * (3 - 2 * part))


def blend(first: Array | Vec, second: Array | Vec, share: Array) -> Array:
    """Mix two colours point by point."""
    return np.asarray(
        np.asarray(first) * (1 - share)[:, None] + np.asarray(second) * share[:, None]
    )


def paint_plain(p: Array, half: Array, colour: Array) -> Array:
    """One colour with a breath of unevenness, as in painted plaster."""
    tone = 0.98 + 0.04 * noise((p[0] + p[2]) * 3, (p[1] - p[2]) * 3)
    return np.asarray(colour * tone[:, None])


def paint_planks(p: Array, half: Array, colour: Array) -> Array:
    """Oak boards laid along y: a tone per board, stretched grain and thin dark joints."""
    row = np.floor(p[0] / 0.15)
    along = p[1] / 1.7 + NOISE[(row.astype(np.int64) * 7) & 511, 3] * 5
    board = np.floor(along)
    pick = NOISE[row.astype(np.int64) & 511, board.astype(np.int64) & 511]
    rings = cloud(p[0] * 22 + pick * 90, p[1] * 1.1 + pick * 40)
    grain = 0.5 + 0.5 * np.sin(rings * 26 + pick * 9)
    fine = noise(p[0] * 190, p[1] * 5 + pick * 60)
    tone = 0.74 + 0.36 * pick + 0.13 * grain + 0.10 * fine
    gap = np.minimum(
        np.abs(p[0] / 0.15 - np.round(p[0] / 0.15)) * 0.15, np.abs(along - np.round(along)) * 1.7
    )
    tone = tone * (0.45 + 0.55 * ramp(0.0008, 0.0032, gap))
    return np.asarray(colour * tone[:, None] * blend((1, 1, 1), (1.05, 0.98, 0.88), pick))


def paint_wood(p: Array, half: Array, colour: Array) -> Array:
    """Furniture timber with the grain running along its longest side."""
    long = int(np.argmax(half))
    side, other = [axis for axis in range(3) if axis != long]
    rings = cloud((p[side] + p[other]) * 16 + half[long] * 31, p[long] * 1.3)
    tone = 0.86 + 0.2 * (0.5 + 0.5 * np.sin(rings * 24)) + 0.08 * noise(p[side] * 150, p[long] * 6)
    return np.asarray(colour * tone[:, None])


def paint_cloth(p: Array, half: Array, colour: Array) -> Array:
    """A soft weave: faint slubs in both directions."""
    u, v = p[0] + p[2] * 0.9, p[1] + p[2] * 0.7
    tone = 0.88 + 0.14 * noise(u * 220, v * 60) + 0.1 * noise(u * 50, v * 190) * noise(u * 9, v * 9)
    return np.asarray(colour * tone[:, None])


def paint_rug(p: Array, half: Array, colour: Array) -> Array:
    """A bordered rug with a field of stepped lozenges."""
    u, v = p[0], p[1]
    edge = np.minimum(half[0] - np.abs(u), half[1] - np.abs(v))
    lozenge = np.abs((u / 0.34) % 1 - 0.5) + np.abs((v / 0.5) % 1 - 0.5)
    lines = ramp(0.03, 0.045, np.abs(lozenge - 0.5)) * ramp(0.025, 0.035, np.abs(lozenge - 0.22))
    field = blend((0.30, 0.33, 0.35), colour, lines)
    field = blend(field, np.asarray(CLAY) * 0.9, 1 - ramp(0.10, 0.115, lozenge))
    band = ramp(0.055, 0.06, edge) * (1 - ramp(0.115, 0.12, edge))
    field = np.where((edge < 0.15)[:, None], blend(colour, (0.16, 0.21, 0.25), band), field)
    return np.asarray(
        field * (0.8 + 0.3 * noise(u * 160, v * 160) + 0.1 * cloud(u * 5, v * 5))[:, None]
    )


def paint_art(p: Array, half: Array, colour: Array) -> Array:
    """An abstract landscape: a low sun over layered hills, tinted by `colour`."""
    wide = int(half[1] > half[0])
    u, v = p[wide] / half[2], p[2] / half[2]
    shade = blend((0.80, 0.72, 0.60), (0.74, 0.66, 0.56), cloud(u * 3, v * 3))
    disc = np.hypot(u - 0.25 * half[wide] / half[2], v - 0.3)
    shade = blend((0.68, 0.33, 0.16), shade, ramp(0.235, 0.25, disc))
    for layer, level in enumerate((0.12, -0.2, -0.52)):
        hill = level + 0.42 * (noise(u * 1.1 + 9 * layer + 40 * colour[0], u * 0) - 0.5)
        tint = np.asarray(colour) * (1.5, 0.9, 0.45)[layer]
        shade = blend(tint, shade, ramp(-0.008, 0.008, v - hill))
    mount = np.minimum(half[2] * (1 - np.abs(v)), half[wide] - np.abs(p[wide])) < 0.055
    return np.where(mount[:, None], (0.80, 0.78, 0.73), shade)


def paint_leaf(p: Array, half: Array, colour: Array) -> Array:
    """A leaf with a pale midrib and a slightly uneven green."""
    rib = ramp(0.001, 0.004, np.abs(p[1]))
    vein = 0.5 + 0.5 * np.sin((np.abs(p[0]) * 1.0 + np.abs(p[1]) * 1.2) * 230)
    return np.asarray(colour * (1.5 - 0.5 * rib + 0.12 * vein)[:, None])


PAINTS: dict[str, Paint] = {
    "plain": paint_plain,
    "planks": paint_planks,
    "wood": paint_wood,
    "cloth": paint_cloth,
    "rug": paint_rug,
    "art": paint_art,
    "leaf": paint_leaf,
}


def paint_outdoors(o: Array, d: Array) -> Array:
    """What a ray sees once it has left the house: terrace, lawn, hedge, trees and sky."""
    flat = np.maximum(np.hypot(d[0], d[1]), 1e-4)
    reach = (13.0 - (o[0] * d[0] + o[1] * d[1]) / flat) / flat
    x, y, z = o + d * reach
    turn = np.arctan2(y, x) * 13
    sky = blend((2.5, 2.6, 2.65), (1.15, 1.75, 2.6), ramp(0.0, 0.7, d[2] / np.hypot(flat, d[2])))
    leafy = 0.6 * cloud(turn * 0.9, z * 0.9) + 0.4 * cloud(turn * 5, z * 5)
    trees = blend((0.13, 0.22, 0.08), (0.62, 0.78, 0.30), ramp(0.25, 0.8, leafy))
    crown = 0.6 + 5.2 * cloud(turn * 0.3 + 3, turn * 0) + 1.3 * (cloud(turn * 2.4, z * 1.5) - 0.5)
    colour = blend(trees, sky, ramp(-0.2, 0.2, z - crown))
    hedge = blend((0.08, 0.17, 0.05), (0.36, 0.54, 0.19), cloud(turn * 6, z * 6))
    colour = blend(hedge, colour, ramp(-0.05, 0.05, z - 1.25 - 0.12 * noise(turn * 3, turn * 0)))
    drop = (-0.1 - o[2]) / np.minimum(d[2], -1e-4)
    gx, gy = o[0] + d[0] * drop, o[1] + d[1] * drop
    lawn = blend((0.36, 0.60, 0.17), (0.58, 0.80, 0.28), cloud(gx * 1.5, gy * 1.5))
    joint = np.minimum(np.abs(gx / 0.6 - np.round(gx / 0.6)), np.abs(gy / 0.6 - np.round(gy / 0.6)))
    slab = blend((0.7, 0.66, 0.6), (1.35, 1.27, 1.14), ramp(0.005, 0.02, joint))
    slab = slab * (0.85 + 0.3 * cloud(gx * 2, gy * 2))[:, None]
    ground = np.where((gy < 8.8)[:, None] & (gx < 4)[:, None], slab, lawn)
    return np.where(((d[2] < 0) & (z < -0.1))[:, None], ground, colour)


# ---------------------------------------------------------------- home


def block(
    x0: float,
    x1: float,
    y0: float,
    y1: float,
    z0: float,
    z1: float,
    colour: Vec = WHITE,
    paint: str = "plain",
    **more: Any,
) -> Solid:
    """A solid given by the two ends of its box on each axis."""
    low, high = np.array([x0, y0, z0]), np.array([x1, y1, z1])
    return Solid((low + high) / 2, (high - low) / 2, colour, paint, **more)


def soft(
    x0: float,
    x1: float,
    y0: float,
    y1: float,
    z0: float,
    z1: float,
    colour: Vec,
    bevel: float = 0.05,
    paint: str = "cloth",
) -> Solid:
    """A cushion: a box with well rounded edges."""
    return block(x0, x1, y0, y1, z0, z1, colour, paint, shape="soft", bevel=bevel)


def drum(
    x: float,
    y: float,
    z0: float,
    z1: float,
    radius: float,
    colour: Vec,
    paint: str = "plain",
    taper: float = 0.0,
    **more: Any,
) -> Solid:
    """An upright cylinder, its top narrower than its foot by the share `taper`."""
    return block(
        x - radius,
        x + radius,
        y - radius,
        y + radius,
        z0,
        z1,
        colour,
        paint,
        shape="drum",
        bevel=taper,
        **more,
    )


def turn(yaw: float, pitch: float = 0.0) -> Array:
    """The rotation taking world directions into a frame tipped by `pitch`, then spun by `yaw`."""
    c, s, e, f = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    return np.array([[c * e, s * e, f], [-s, c, 0], [-c * f, -s * f, e]])


def pivot(solids: list[Solid], x: float, y: float, yaw: float) -> list[Solid]:
    """Stand a piece of furniture that was drawn about the origin at (x, y), facing `yaw`."""
    spin = turn(yaw)
    return [
        replace(
            one,
            centre=spin.T @ one.centre + [x, y, 0],
            spin=spin if one.spin is None else one.spin @ spin,
        )
        for one in solids
    ]


def wall(
    axis: int,
    at: float,
    thick: float,
    span: tuple[float, float],
    colour: Vec,
    hole: tuple[float, float, float, float] | None = None,
) -> list[Solid]:
    """A wall across `axis` with its skirting and, if given, a hole (start, end, sill, head)."""
    start, end, sill, head = hole or (span[1], span[1], 0.0, 0.0)
    parts = [
        (span[0], start, 0.0, 2.6),
        (end, span[1], 0.0, 2.6),
        (start, end, 0.0, sill),
        (start, end, head, 2.6),
    ]
    solids = []
    for a, b, low, high in parts:
        for skirting in (False, True):
            top = 0.12 if skirting else high
            if min(b - a, high - low, top - low) < 0.01:
                continue
            edge = 0.015 if skirting else 0.0
            across, tint = (at - edge, at + thick + edge), WHITE if skirting else colour
            box = (*across, a, b) if axis == 0 else (a, b, *across)
            solids.append(block(*box, low, top, tint))
    return solids


def frame(
    axis: int,
    at: float,
    hole: tuple[float, float, float, float],
    columns: int,
    rows: int,
    depth: float = 0.06,
    edge: float = 0.07,
    colour: Vec = WHITE,
) -> list[Solid]:
    """Joinery around a hole: an outer frame and, between panes, slimmer glazing bars."""
    start, end, sill, head = hole
    lines = [(start + (end - start) * i / columns, 0) for i in range(columns + 1)]
    lines += [(sill + (head - sill) * i / rows, 1) for i in range(rows + 1)]
    solids = []
    for place, level in lines:
        outer = (
            min(abs(place - end), abs(place - start)) < 1e-6
            if level == 0
            else place in (sill, head)
        )
        wide = edge if outer else 0.5 * edge if columns > 2 or level else 1.3 * edge
        low, high = ((start, end), (sill, head))[level]
        low, high = max(place - wide / 2, low), min(place + wide / 2, high)
        along = (low, high, sill, head) if level == 0 else (start, end, low, high)
        deep = (at, at + depth) if outer or level == 0 else (at + 0.01, at + depth - 0.01)
        box = (*deep, *along) if axis == 0 else (along[0], along[1], *deep, along[2], along[3])
        solids.append(block(*box, colour))
    return solids


def shell() -> Iterator[list[Solid]]:
    """Floor, ceiling, walls, doors and windows."""
    garden, window = (-1.1, 0.9, 0.0, 2.2), (2.0, 4.4, 0.95, 2.25)
    yield [block(-2.2, 4.4, -4.7, 6.4, -0.1, 0, OAK, "planks", gloss=0.6)]
    yield [block(-2.2, 4.4, -4.7, 6.4, 2.6, 2.7, (0.84, 0.83, 0.80))]
    yield [*wall(0, -1.15, 0.15, (-4.7, 0), WALL), *wall(0, 1.0, 0.15, (-4.7, 0), WALL)]
    yield wall(1, -4.7, 0.1, (-1.0, 1.0), WALL, (-0.5, 0.5, 0.0, 2.1))
    yield wall(1, 0.0, 0.15, (-2.1, 4.3), WALL, (-0.75, 0.75, 0.0, 2.2))
    yield [*wall(0, -2.15, 0.15, (0.15, 6.2), WALL), *wall(0, 4.2, 0.15, (0.15, 6.2), WALL, window)]
    yield wall(1, 6.2, 0.2, (-2.1, 4.3), SAGE, garden)
    yield [
        *frame(1, 6.26, garden, 2, 3, edge=0.1),
        *frame(1, -0.02, (-0.84, 0.84, -0.1, 2.29), 1, 1, 0.02, 0.18),
    ]
    yield [*frame(0, 4.24, window, 3, 1), block(4.08, 4.24, 1.94, 4.46, 0.92, 0.95)]
    yield [
        block(-0.17, -0.15, 6.2, 6.26, 0.98, 1.0, BRASS, gloss=1.0),
        block(-0.17, -0.05, 6.19, 6.21, 0.98, 1.0, BRASS, gloss=1.0),
    ]


def curtain(x: float, y: float, along: int, length: float) -> list[Solid]:
    """A linen curtain hung in pleats on a pole, starting at (x, y)."""
    folds = round(length / 0.075)
    return [
        drum(
            x + (0.075 * i if along == 0 else 0.018 * (i % 2)),
            y + (0.075 * i if along == 1 else 0.018 * (i % 2)),
            0.02,
            2.36,
            0.052 + 0.006 * (i % 3),
            LINEN,
            "cloth",
            taper=0.12,
        )
        for i in range(folds)
    ]


def hangings() -> Iterator[list[Solid]]:
    """Curtains with their poles, and the framed pictures."""
    yield curtain(-1.485, 6.08, 0, 0.48)
    yield curtain(0.9, 6.08, 0, 0.48)
    yield curtain(4.07, 1.61, 1, 0.48)
    yield curtain(4.07, 4.4, 1, 0.48)
    yield [
        block(-1.75, 1.55, 6.09, 6.11, 2.36, 2.385, BRASS),
        block(4.07, 4.09, 1.4, 5.05, 2.36, 2.385, BRASS),
    ]
    for side, x, y, z, wide, tall, tint in [
        (0, -2.0, 2.75, 1.58, 0.62, 0.42, (0.30, 0.37, 0.40)),
        (0, -1.0, -1.35, 1.58, 0.30, 0.38, (0.34, 0.36, 0.27)),
        (0, -1.0, -2.95, 1.58, 0.30, 0.38, (0.27, 0.34, 0.40)),
        (1, 2.72, 6.2, 1.62, 0.52, 0.37, (0.40, 0.30, 0.24)),
    ]:
        h = (0.012, wide, tall) if side == 0 else (wide, 0.012, tall)
        lip = tuple(v + 0.022 for v in h)
        shift = -0.02 if side else 0.02
        centre = np.array([x + (0 if side else shift), y + (shift if side else 0), z])
        front = centre + ([0, -0.025, 0] if side else [0.025, 0, 0])
        yield [
            Solid(centre, np.array(lip) * 1.0, WALNUT, "wood"),
            Solid(front, np.array(h), tint, "art"),
        ]


def hall() -> Iterator[list[Solid]]:
    """Runner, console table, side door and pendant lamp."""
    yield [block(-0.42, 0.42, -3.7, -0.55, 0, 0.012, (0.56, 0.51, 0.43), "rug")]
    yield [
        block(-0.98, -0.64, -2.75, -1.55, 0.76, 0.80, WALNUT, "wood", gloss=0.4),
        block(-0.96, -0.66, -2.7, -1.6, 0.66, 0.76, WALNUT, "wood"),
        *[
            block(x, x + 0.035, y, y + 0.035, 0, 0.66, WALNUT, "wood")
            for x in (-0.96, -0.695)
            for y in (-2.7, -1.635)
        ],
    ]
    yield [
        *vase(-0.82, -1.85, 0.80, 0.11, (0.62, 0.60, 0.55)),
        soft(-0.93, -0.71, -2.55, -2.25, 0.8, 0.83, SLATE, 0.008),
        soft(-0.91, -0.73, -2.52, -2.29, 0.83, 0.855, CLAY, 0.008),
    ]
    for y in (-2.75, -0.98):
        yield [
            *frame(0, 0.97, (y - 0.08, y + 0.9, -0.1, 2.1), 1, 1, 0.03, 0.16),
            block(0.985, 1.0, y, y + 0.82, 0, 2.02, (0.70, 0.70, 0.66)),
            *[
                part
                for z, top in ((0.15, 0.85), (1.0, 1.9))
                for part in frame(
                    0, 0.977, (y + 0.12, y + 0.7, z, top), 1, 1, 0.01, 0.03, (0.70, 0.70, 0.66)
                )
            ],
            drum(0.955, y + 0.07, 0.98, 1.02, 0.02, BRASS),
        ]
    yield [
        drum(0, -2.2, 1.98, 2.26, 0.2, (0.85, 0.80, 0.70), "cloth", 0.25, glow=1.5),
        drum(0, -2.2, 2.26, 2.6, 0.008, BLACK),
    ]


def sofa() -> list[Solid]:
    """A three-quarter sofa against the window wall, with throw cushions."""
    legs = [drum(x, y, 0, 0.16, 0.025, WALNUT) for x in (3.2, 4.0) for y in (2.12, 4.28)]
    base = soft(3.14, 4.12, 2.05, 4.35, 0.14, 0.36, SLATE, 0.03)
    seats = [soft(3.08, 3.86, y, y + 1.0, 0.345, 0.51, SLATE, 0.055) for y in (2.2, 3.2)]
    backs = [soft(3.76, 4.0, y, y + 0.98, 0.47, 0.86, SLATE, 0.085) for y in (2.21, 3.21)]
    sides = [soft(3.08, 4.12, y, y + 0.19, 0.16, 0.62, SLATE, 0.06) for y in (2.0, 4.21)]
    rest = soft(3.9, 4.12, 2.05, 4.35, 0.2, 0.8, SLATE, 0.06)
    throws = []
    for x, y, yaw, size, tint in [
        (3.66, 2.46, 0.35, 0.23, MUSTARD),
        (3.64, 3.93, -0.3, 0.23, CLAY),
        (3.55, 3.66, -0.1, 0.18, LINEN),
    ]:
        pillow = soft(-0.075, 0.075, -size, size, -size, size, tint, 0.072)
        throws.append(replace(pillow, centre=np.array([x, y, 0.5 + size]), spin=turn(yaw, -0.3)))
    return [*legs, base, *seats, *backs, *sides, rest, *throws]


def armchair() -> list[Solid]:
    """A clay-coloured armchair facing +x, drawn about the origin."""
    legs = [
        drum(x, y, 0, 0.2, 0.022, WALNUT, taper=-0.3) for x in (-0.28, 0.3) for y in (-0.3, 0.3)
    ]
    back = replace(soft(-0.42, -0.24, -0.34, 0.34, 0.25, 0.92, CLAY, 0.085), spin=turn(0, 0.16))
    return [
        *legs,
        soft(-0.36, 0.38, -0.38, 0.38, 0.18, 0.33, CLAY, 0.05),
        back,
        soft(-0.28, 0.4, -0.29, 0.29, 0.31, 0.47, CLAY, 0.07),
        *[soft(-0.38, 0.38, y, y + 0.13, 0.2, 0.6, CLAY, 0.06) for y in (-0.42, 0.29)],
        replace(soft(-0.2, -0.08, -0.2, 0.2, 0.46, 0.8, LINEN, 0.058), spin=turn(0, 0.25)),
    ]


def vase(x: float, y: float, z: float, size: float, colour: Vec) -> list[Solid]:
    """A glazed pot-bellied vase holding a few stems."""
    belly = Solid(
        np.array([x, y, z + size]),
        np.array([size, size, size * 1.05]),
        colour,
        shape="egg",
        gloss=0.6,
    )
    neck = drum(x, y, z + size * 1.7, z + size * 2.5, size * 0.38, colour, taper=0.15)
    return [
        belly,
        neck,
        *leaves(x, y, z + size * 2.4, 16, size * 3.0, size * 3.4, (0.17, 0.23, 0.13)),
    ]


def leaves(
    x: float, y: float, z: float, count: int, rise: float, size: float, colour: Vec
) -> list[Solid]:
    """A spray of leaves spiralling up around a point."""
    rng, spray = np.random.default_rng(count), []
    for i in range(count):
        yaw, pitch = i * 2.4 + rng.uniform(-0.3, 0.3), rng.uniform(0.1, 0.7) + 0.5 * i / count
        long = size * rng.uniform(0.34, 0.5) * (1.0 - 0.35 * i / count)
        out = np.array(
            [math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), math.sin(pitch)]
        )
        centre = np.array([x, y, z + rise * (i + 0.5) / count]) + out * (long + 0.02)
        tone = rng.uniform(0.8, 1.3)
        tint = (colour[0] * tone, colour[1] * tone, colour[2] * tone)
        spray.append(
            Solid(
                centre,
                np.array([long, long * 0.42, 0.004]),
                tint,
                "leaf",
                "egg",
                gloss=0.25,
                spin=turn(yaw, pitch),
            )
        )
    return spray


def living() -> Iterator[list[Solid]]:
    """Everything that stands in the living room."""
    yield [block(0.95, 3.4, 1.6, 4.75, 0, 0.014, (0.66, 0.61, 0.52), "rug")]
    yield sofa()
    yield [
        soft(1.72, 2.36, 2.6, 3.8, 0.375, 0.415, OAK, 0.015, "wood"),
        *[
            drum(x, y, 0, 0.38, 0.02, OAK, "wood", taper=-0.4)
            for x in (1.8, 2.28)
            for y in (2.7, 3.7)
        ],
    ]
    yield [
        soft(1.86, 2.16, 2.78, 3.0, 0.415, 0.445, LINEN, 0.006),
        soft(1.89, 2.13, 2.8, 2.98, 0.445, 0.47, SLATE, 0.006),
        *vase(2.04, 3.45, 0.415, 0.075, (0.70, 0.68, 0.63)),
    ]
    yield pivot(armchair(), 2.62, 5.36, -2.15)
    yield [
        drum(3.72, 5.72, 0, 0.025, 0.15, BRASS),
        drum(3.72, 5.72, 0.02, 1.7, 0.012, BRASS),
        drum(3.72, 5.72, 1.36, 1.68, 0.2, (0.86, 0.78, 0.64), "cloth", 0.3, glow=1.7),
    ]
    yield [
        drum(1.72, 5.68, 0, 0.34, 0.2, (0.62, 0.58, 0.52), taper=-0.25),
        drum(1.72, 5.68, 0.25, 0.95, 0.016, WALNUT),
        *leaves(1.72, 5.68, 0.5, 34, 0.85, 0.46, LEAF),
    ]
    yield [
        drum(3.2, 5.72, 0.46, 0.49, 0.2, WALNUT, "wood"),
        drum(3.2, 5.72, 0, 0.46, 0.02, BLACK),
        drum(3.2, 5.72, 0, 0.015, 0.13, BLACK),
        drum(3.24, 5.66, 0.49, 0.58, 0.04, (0.6, 0.58, 0.52), gloss=0.5),
    ]
    yield [
        block(-1.99, -1.56, 1.55, 3.95, 0.18, 0.74, WALNUT, "wood", gloss=0.3),
        *[
            block(-1.565, -1.545, 1.58 + 0.79 * i, 2.34 + 0.79 * i, 0.2, 0.72, WALNUT, "wood")
            for i in range(3)
        ],
        *[drum(x, y, 0, 0.18, 0.02, BRASS) for x in (-1.93, -1.62) for y in (1.65, 3.85)],
    ]
    yield [
        drum(-1.75, 1.95, 0.74, 1.02, 0.085, (0.58, 0.62, 0.58), gloss=0.5, taper=0.5),
        drum(-1.75, 1.95, 1.06, 1.3, 0.17, (0.86, 0.78, 0.64), "cloth", 0.25, glow=1.4),
    ]
    yield vase(-1.78, 3.5, 0.74, 0.12, (0.50, 0.24, 0.15))
    yield from bookcase()


def bookcase() -> Iterator[list[Solid]]:
    """A tall open bookcase in the far corner, filled from a fixed seed."""
    rng, tints = (
        np.random.default_rng(5),
        (SLATE, CLAY, LINEN, MUSTARD, SAGE, WHITE, (0.35, 0.16, 0.14)),
    )
    sides = [block(-1.99, -1.68, y, y + 0.03, 0, 2.05, WHITE) for y in (4.45, 5.67)]
    levels = [0.06 + 0.395 * i for i in range(6)]
    yield [
        *sides,
        block(-1.99, -1.975, 4.45, 5.7, 0, 2.05, (0.6, 0.6, 0.56)),
        *[block(-1.99, -1.68, 4.45, 5.7, z, z + 0.025, WHITE) for z in levels],
    ]
    for number, z in enumerate(levels[:-1]):
        books = []
        y, stop = 4.5 + 0.1 * (number % 2), 5.3 + 0.32 * float(rng.random())
        while y < stop:
            thick, tall, deep = (
                rng.uniform(0.022, 0.05),
                rng.uniform(0.2, 0.31),
                rng.uniform(0.16, 0.22),
            )
            tint = tints[int(rng.integers(len(tints)))]
            books.append(
                block(-1.96, -1.96 + deep, y, y + thick, z + 0.025, z + 0.025 + tall, tint)
            )
            y += thick + 0.002
        yield books


# ---------------------------------------------------------------- rays


def slab(centre: Array, half: Array, o: Array, inverse: Array) -> tuple[Array, Array]:
    """Where rays enter and leave a box."""
    middle = (centre[:, None].astype(np.float32) - o) * inverse
    reach = half[:, None].astype(np.float32) * np.abs(inverse)
    near, away = middle - reach, middle + reach
    return (
        np.maximum(np.maximum(near[0], near[1]), near[2]),
        np.minimum(np.minimum(away[0], away[1]), away[2]),
    )


def invert(d: Array) -> Array:
    """One over each direction part, keeping clear of zero."""
    return np.asarray(1 / np.where(np.abs(d) < 1e-8, np.float32(1e-8), d))


def distance(solid: Solid, p: Array) -> Array:
    """How far points (in the solid's own frame) lie from a cushion or drum."""
    half = solid.half[:, None].astype(np.float32)
    if solid.shape == "soft":
        q = np.abs(p) - (half - np.float32(solid.bevel))
        inside = np.minimum(np.maximum(np.maximum(q[0], q[1]), q[2]), 0)
        return np.asarray(np.sqrt((np.maximum(q, 0) ** 2).sum(0)) + inside - solid.bevel)
    widest = half[0] / (1 + max(0.0, -solid.bevel))
    radius = widest * (1 - solid.bevel * (p[2] / half[2] + 1) / 2)
    return np.asarray(np.maximum((np.hypot(p[0], p[1]) - radius) * 0.95, np.abs(p[2]) - half[2]))


def meet(solid: Solid, o: Array, d: Array, inverse: Array, fine: bool) -> Array:
    """The distance at which each ray first meets a solid; without `fine`, its box."""
    o = o - solid.centre[:, None].astype(np.float32)
    if solid.spin is not None:
        spin = solid.spin.astype(np.float32)
        o, d = spin @ o, spin @ d
        inverse = invert(d)
    near, away = slab(np.zeros(3), solid.half, o, inverse)
    if solid.shape == "box" or not fine:
        return np.where((near < away) & (near > 1e-4), near, np.float32(np.inf))
    found = np.full(near.shape, np.inf, np.float32)
    some = np.flatnonzero((near < away) & (away > 1e-4))
    if some.size:
        walk = egg if solid.shape == "egg" else march
        found[some] = walk(solid, o[:, some], d[:, some], np.maximum(near[some], 1e-4), away[some])
    return found


def egg(solid: Solid, o: Array, d: Array, near: Array, away: Array) -> Array:
    """Meet an ellipsoid, by squeezing space until it is a ball."""
    half = solid.half[:, None].astype(np.float32)
    o, d = (o + d * near) / half, d / half
    a, b, c = (d * d).sum(0), (o * d).sum(0), (o * o).sum(0) - 1
    root = b * b - a * c
    step = (-b - np.sqrt(np.maximum(root, 0))) / a
    return np.where((root > 0) & (step + near > 1e-3) & (step > -1e-3), near + step, np.inf)


def march(solid: Solid, o: Array, d: Array, near: Array, away: Array) -> Array:
    """Meet a cushion or drum by stepping along the ray as far as is safe."""
    t = near.copy()
    for _ in range(28):
        gap = distance(solid, o + d * t)
        t = np.where(t <= away, t + gap, t)
    return np.where((t <= away + 1e-3) & (gap < 2e-3), t, np.inf)


def cast(groups: list[Group], o: Array, d: Array, fine: bool = True) -> tuple[Array, Array]:
    """Distance to and number of the first solid along each ray (number -1: none)."""
    best = np.full(o.shape[1], np.inf, np.float32)
    which = np.full(o.shape[1], -1, np.int32)
    inverse = invert(d)
    for group in groups:
        near, away = slab(group.centre, group.half, o, inverse)
        some = np.flatnonzero((near < away) & (away > 0) & (near < best))
        if not some.size:
            continue
        part, lead, slope = (np.take(a, some, 1) for a in (o, d, inverse))
        close, owner = best[some], which[some]
        for number, solid in group.members:
            t = meet(solid, part, lead, slope, fine)
            nearer = t < close
            close, owner = np.where(nearer, t, close), np.where(nearer, np.int32(number), owner)
        best[some], which[some] = close, owner
    return best, which


def facing(solid: Solid, p: Array) -> Array:
    """Outward direction at points on a solid, in its own frame."""
    half = solid.half[:, None]
    if solid.shape == "box":
        side = np.argmax(np.abs(p) / half + 1e-9 - (half - np.abs(p)) * 50, 0)
        return np.where(np.arange(3)[:, None] == side, np.sign(p), 0.0)
    if solid.shape == "egg":
        n = p / half**2
    else:
        e = np.eye(3, dtype=np.float32)[:, :, None] * 2e-3
        n = np.stack([distance(solid, p + e[i]) - distance(solid, p - e[i]) for i in range(3)])
    return np.asarray(n / np.maximum(np.linalg.norm(n, axis=0), 1e-9))


class Home:
    """The solids, gathered for ray casting, and their light map."""

    def __init__(self) -> None:
        """Number the solids and box up the groups."""
        self.solids: list[Solid] = []
        self.groups = []
        for members in [*shell(), *hangings(), *hall(), *living()]:
            low, high = np.full(3, np.inf), np.full(3, -np.inf)
            numbered = []
            for one in members:
                half = one.half if one.spin is None else np.abs(one.spin.T) @ one.half
                low, high = np.minimum(low, one.centre - half), np.maximum(high, one.centre + half)
                numbered.append((len(self.solids), one))
                self.solids.append(one)
            self.groups.append(Group((low + high) / 2, (high - low) / 2 + 1e-4, numbered))
        self.opaque = [
            Group(g.centre, g.half, [m for m in g.members if not m[1].glow]) for g in self.groups
        ]
        self.first = np.zeros((len(self.solids), 6), np.int64)
        self.size = np.ones((len(self.solids), 6, 2), np.int64)
        self.light = np.zeros((0, 3))

    def clear(self, o: Array, d: Array, far: Array | float, fine: bool = False) -> Array:
        """Whether nothing stands within `far` along each ray; lamp shades do not count."""
        return np.asarray(cast(self.opaque, o, d, fine)[0] > far)

    def near(self, number: int, p: Array) -> Array:
        """Turn world points into a solid's own frame."""
        solid = self.solids[number]
        q = p - solid.centre[:, None]
        return q if solid.spin is None else np.asarray(solid.spin @ q)

    def lit(self, number: int, p: Array, n: Array) -> Array:
        """Light reaching points on a solid, mixed from its box's faces by direction."""
        solid, total = self.solids[number], np.zeros((p.shape[1], 3))
        for face in range(6):
            axis, sign = divmod(face, 2)
            weight = np.where(n[axis] * (2 * sign - 1) > 0, n[axis] ** 2, 0)
            if not weight.any():
                continue
            (nu, nv), base = self.size[number, face], self.first[number, face]
            u, v = ((p[i] / solid.half[i] + 1) / 2 for i in range(3) if i != axis)
            u, v = np.clip(u * nu - 0.5, 0, nu - 1), np.clip(v * nv - 0.5, 0, nv - 1)
            iu, iv = (
                np.minimum(u.astype(int), max(nu - 2, 0)),
                np.minimum(v.astype(int), max(nv - 2, 0)),
            )
            for du, dv in ((0, 0), (0, 1), (1, 0), (1, 1)):
                share = np.abs(1 - du - (u - iu)) * np.abs(1 - dv - (v - iv)) * weight
                spot = base + np.minimum(iu + du, nu - 1) * nv + np.minimum(iv + dv, nv - 1)
                total += self.light[spot] * share[:, None]
        return total


# ---------------------------------------------------------------- light map


class Patches(NamedTuple):
    """Every patch of surface: place, direction, colour, and whether it can be seen."""

    place: Array
    normal: Array
    colour: Array
    live: Array


def split_patches(home: Home) -> Patches:
    """Cut every face of every solid's box into patches."""
    places, normals, colours, count = [], [], [], 0
    for number, solid in enumerate(home.solids):
        for face in range(6):
            axis, sign = divmod(face, 2)
            u, v = (i for i in range(3) if i != axis)
            nu, nv = (max(1, math.ceil(2 * float(solid.half[i]) / PATCH)) for i in (u, v))
            home.first[number, face], home.size[number, face] = count, (nu, nv)
            count += nu * nv
            p, n = np.zeros((3, nu * nv)), np.zeros((3, nu * nv))
            p[u] = np.repeat(((np.arange(nu) + 0.5) / nu * 2 - 1) * solid.half[u], nv)
            p[v] = np.tile(((np.arange(nv) + 0.5) / nv * 2 - 1) * solid.half[v], nu)
            n[axis] = 2 * sign - 1
            p[axis] = n[axis] * solid.half[axis]
            colours.append(PAINTS[solid.paint](p, solid.half, np.array(solid.colour)))
            back = np.eye(3) if solid.spin is None else solid.spin.T
            places.append(back @ p + solid.centre[:, None])
            normals.append(back @ n)
    place, normal = np.concatenate(places, 1), np.concatenate(normals, 1)
    x, y, z = place + normal * 0.012
    live = (z > 0) & (z < 2.6) & (x > -2.0) & (x < 4.3) & (y > -4.6) & (y < 6.33)
    live &= (y > 0) | (np.abs(x) < 1.0)
    for number, solid in enumerate(home.solids):
        if solid.shape != "box":
            continue
        inside = np.abs(home.near(number, np.stack([x, y, z]))) < solid.half[:, None]
        live &= ~inside.all(0)
    return Patches(
        (place + normal * 0.004).astype(np.float32),
        normal.astype(np.float32),
        np.concatenate(colours),
        live,
    )


def light_directly(home: Home, o: Array, n: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Light from the sky and lamps, and (apart, as views add it afresh) from the sun."""
    soft_light, sun = np.zeros((o.shape[1], 3)), np.zeros((o.shape[1], 3))
    across = 6
    for opening in OPENINGS:
        a, b = np.array(opening.across), np.array(opening.up)
        area, out = float(np.linalg.norm(a) * np.linalg.norm(b)), np.abs(np.cross(a, b))
        out /= np.linalg.norm(out)
        for cell in range(across * across):
            jitter = rng.random((2, o.shape[1]))
            s, t = (cell % across + jitter[0]) / across, (cell // across + jitter[1]) / across
            way = (np.array(opening.corner)[:, None] + a[:, None] * s + b[:, None] * t - o).astype(
                np.float32
            )
            far = np.linalg.norm(way, axis=0)
            d = way / far
            gain = np.maximum((d * n).sum(0), 0) * np.abs(out @ d) / np.maximum(far**2, 0.05)
            some = np.flatnonzero(gain > 1e-5)
            some = some[home.clear(o[:, some], d[:, some], far[some] - 0.06)]
            sky = blend((1.5, 1.6, 1.25), (3.6, 3.9, 4.3), ramp(-0.15, 0.3, d[2, some]))
            soft_light[some] += sky * (gain[some] * area / across**2)[:, None]
    for centre, power in LAMPS:
        for _ in range(8):
            bulb = np.array(centre)[:, None] + rng.normal(0, 0.06, o.shape)
            way = (bulb - o).astype(np.float32)
            far = np.maximum(np.linalg.norm(way, axis=0), 0.25)
            gain = np.maximum((way * n).sum(0) / far, 0) / far**2
            seen = home.clear(o, way / far, far) * gain / 8
            soft_light += np.array(power) * seen[:, None]
    for _ in range(4):
        d = np.repeat((SUN + rng.normal(0, 0.006, 3))[:, None], o.shape[1], 1).astype(np.float32)
        sun += SUNSHINE * (home.clear(o, d, 50) * np.maximum((d * n).sum(0), 0) / 4)[:, None]
    return soft_light, sun


def look_around(home: Home, o: Array, n: Array, rng: np.random.Generator) -> Array:
    """For each place, the patches seen in GATHER cosine-weighted directions (-1: none)."""
    k = np.arange(GATHER)
    u = (k[:, None] * 0.754877666 + rng.random(o.shape[1])) % 1
    v = (k[:, None] * 0.569840291 + rng.random(o.shape[1])) % 1
    r, angle = np.sqrt(u), 2 * np.pi * v
    side = np.where(np.abs(n[2]) < 0.9, np.array([[0], [0], [1]]), np.array([[1], [0], [0]]))
    x = np.cross(side, n, axis=0)
    x /= np.linalg.norm(x, axis=0)
    y = np.cross(n, x, axis=0)
    d = (
        x[:, None] * (r * np.cos(angle))
        + y[:, None] * (r * np.sin(angle))
        + n[:, None] * np.sqrt(1 - u)
    )
    d = d.reshape(3, -1).astype(np.float32)
    starts = np.broadcast_to(o[:, None], (3, GATHER, o.shape[1])).reshape(3, -1)
    far, which = cast(home.groups, starts, d, fine=False)
    seen = np.full(which.shape, -1, np.int64)
    for number in np.unique(which[which >= 0]):
        mine = np.flatnonzero(which == number)
        half = home.solids[number].half[:, None]
        p = home.near(number, starts[:, mine] + d[:, mine] * far[mine])
        axis = np.argmin(half - np.abs(p), 0)
        face = axis * 2 + (np.take_along_axis(p, axis[None], 0)[0] > 0)
        size = home.size[number, face]
        part = np.clip((p / half + 1) / 2, 0, 0.9999)
        iu = (np.where(axis == 0, part[1], part[0]) * size[:, 0]).astype(int)
        iv = (np.where(axis == 2, part[1], part[2]) * size[:, 1]).astype(int)
        seen[mine] = home.first[number, face] + iu * size[:, 1] + iv
    return seen.reshape(GATHER, -1).T.astype(np.int32)


def smooth(home: Home, light: Array, live: Array) -> Array:
    """Even out each face, filling patches that nothing can see from their neighbours."""
    out = light.copy()
    for number in range(len(home.solids)):
        last = home.first[number, 5] + home.size[number, 5].prod()
        whole = slice(home.first[number, 0], last)
        seen = live[whole]
        usual = np.append(light[whole][seen].sum(0) * 0.5 / max(seen.sum(), 1), 1.0)
        for face in range(6):
            nu, nv = home.size[number, face]
            part = slice(home.first[number, face], home.first[number, face] + nu * nv)
            weight = live[part].reshape(nu, nv, 1).astype(float)
            sheet = np.concatenate([light[part].reshape(nu, nv, 3) * weight, weight], 2)
            sheet += 1e-4 * usual
            for _ in range(3):
                for axis in (0, 1):
                    pad = np.pad(sheet, [(1, 1) if i == axis else (0, 0) for i in range(3)], "edge")
                    size = sheet.shape[axis]
                    left, mid, right = (np.take(pad, np.arange(size) + i, axis) for i in range(3))
                    sheet = (left + 2 * mid + right) / 4
            out[part] = (sheet[:, :, :3] / sheet[:, :, 3:]).reshape(-1, 3)
    return out


def bake(home: Home) -> None:
    """Work out the soft light on every patch, bounces included."""
    rng = np.random.default_rng(3)
    patches = split_patches(home)
    live = np.flatnonzero(patches.live)
    direct, sun = np.zeros_like(patches.colour), np.zeros_like(patches.colour)
    seen = np.full((live.size, GATHER), -1, np.int32)
    for start in range(0, live.size, 8192):
        some = live[start : start + 8192]
        direct[some], sun[some] = light_directly(
            home, patches.place[:, some], patches.normal[:, some], rng
        )
    for start in range(0, live.size, 128):
        some = live[start : start + 128]
        seen[start : start + 128] = look_around(
            home, patches.place[:, some], patches.normal[:, some], rng
        )
    direct = smooth(home, direct, patches.live)
    bounced = np.zeros_like(direct)
    for _ in range(BOUNCES):
        sent = np.vstack([(direct + sun + bounced) * patches.colour, np.zeros(3)])
        for start in range(0, live.size, 4096):
            bounced[live[start : start + 4096]] = sent[seen[start : start + 4096]].mean(1)
        bounced = smooth(home, bounced, patches.live)
    home.light = (direct + bounced).astype(np.float32)


# ---------------------------------------------------------------- pictures


def sunlight(home: Home, p: Array, n: Array, phase: Array, rays: int) -> Array:
    """Crisp sunshine with a narrow soft edge; only rays leaving by an opening are followed."""
    total, d = np.zeros(p.shape[1]), SUN[:, None]
    east, north = (4.25 - p[0]) / SUN[0], (6.28 - p[1]) / SUN[1]
    by_window = (np.abs(p[1] + SUN[1] * east - 3.2) < 1.3) & (
        np.abs(p[2] + SUN[2] * east - 1.6) < 0.8
    )
    by_door = (np.abs(p[0] + SUN[0] * north + 0.1) < 1.1) & (p[2] + SUN[2] * north < 2.35)
    some = np.flatnonzero((by_window | by_door) & ((d * n).sum(0) > 0))
    if not some.size:
        return total
    start = (p[:, some] + n[:, some] * 0.004).astype(np.float32)
    for turn_by in range(rays):
        angle = (turn_by + phase[some]) * (np.pi / 2)
        wobble = (
            np.stack([np.cos(angle), np.sin(angle), -np.cos(angle)])
            * 0.006
            * (0.5 + 0.5 * phase[some])
        )
        ray = (d + wobble).astype(np.float32)
        total[some] += (
            home.clear(start, ray, 50, fine=True) * np.maximum((ray * n[:, some]).sum(0), 0) / rays
        )
    return total


def shade(home: Home, o: Array, d: Array, phase: Array, mirror: bool = True) -> Array:
    """Colour seen along each ray."""
    far, which = cast(home.groups, o, d)
    colour = np.zeros((o.shape[1], 3))
    lost = np.flatnonzero(which < 0)
    if lost.size:
        colour[lost] = paint_outdoors(o[:, lost], d[:, lost])
    for number in np.unique(which[which >= 0]):
        mine = np.flatnonzero(which == number)
        solid, ray = home.solids[number], d[:, mine]
        p = o[:, mine] + ray * far[mine]
        q = home.near(number, p)
        m = facing(solid, q)
        n = m if solid.spin is None else solid.spin.T @ m
        light = (
            home.lit(number, q, m)
            + sunlight(home, p, n, phase[mine], 4 if mirror else 1)[:, None] * SUNSHINE
        )
        tint = PAINTS[solid.paint](q, solid.half, np.array(solid.colour))
        look = tint * (light / np.pi)
        if solid.glow:
            fall = 0.75 + 0.5 * np.exp(-((q[2] / solid.half[2] + 0.2) ** 2) * 2.0)
            look = look * 0.4 + tint * (solid.glow * fall)[:, None] * (1.0, 0.86, 0.64)
        if solid.gloss and mirror:
            look += reflect(home, p, n, ray, solid, phase[mine])
        colour[mine] = look
    return np.minimum(colour, 3.5)


def reflect(home: Home, p: Array, n: Array, ray: Array, solid: Solid, phase: Array) -> Array:
    """What a varnished surface mirrors, faint head on and stronger at a glance."""
    rough, total = 0.07 if solid.paint == "planks" else 0.03, np.zeros((p.shape[1], 3))
    start = (p + n * 0.004).astype(np.float32)
    level = ray - n * (ray * n).sum(0)
    level = level / np.maximum(np.linalg.norm(level, axis=0), 1e-6)
    grit = noise(p[0] * 431 + p[2] * 211, p[1] * 431)
    for turn_by in range(2):
        # Leaning the surface only along the line of sight smears reflections the way varnish does.
        m = n + level * rough * (phase + (turn_by + grit) / 8 - 0.5)
        m = m / np.linalg.norm(m, axis=0)
        cosine = (ray * m).sum(0)
        fresnel = 0.03 + 0.6 * (1 - np.clip(-cosine, 0, 1)) ** 4.5
        bounce = (ray - 2 * cosine * m).astype(np.float32)
        total += (
            shade(home, start, bounce, phase, mirror=False) * (fresnel * solid.gloss / 2)[:, None]
        )
    return total


def aim(view: View, rows: Array, columns: Array) -> Array:
    """Ray directions through the given sample positions, measured from the top left."""
    ahead = np.subtract(view.target, view.stand)
    ahead /= np.linalg.norm(ahead)
    right = np.cross(ahead, (0, 0, 1))
    right /= np.linalg.norm(right)
    up, reach = np.cross(right, ahead), math.tan(math.radians(view.degrees) / 2)
    x, y = (columns * 2 - 1) * reach, (1 - rows * 2) * reach * HEIGHT / WIDTH
    d = ahead[:, None] + right[:, None] * x + up[:, None] * y
    return np.asarray((d / np.linalg.norm(d, axis=0)).astype(np.float32))


def trace(home: Home, view: View, width: int) -> Array:
    """Trace a view in tiles, SPLIT x SPLIT rays to the pixel, and average them."""
    height, tile = width * HEIGHT // WIDTH, 60
    image: Array = np.zeros((height, width, 3))
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            rows, columns = np.mgrid[
                top * SPLIT : min(top + tile, height) * SPLIT,
                left * SPLIT : min(left + tile, width) * SPLIT,
            ]
            phase = (rows % 2 * 2 + columns % 2).ravel() / 4
            d = aim(
                view,
                (rows.ravel() + 0.5) / (height * SPLIT),
                (columns.ravel() + 0.5) / (width * SPLIT),
            )
            o = np.repeat(np.array(view.stand, np.float32)[:, None], d.shape[1], 1)
            lit = shade(home, o, d, phase).reshape(rows.shape[0] // SPLIT, SPLIT, -1, SPLIT, 3)
            image[top : top + tile, left : left + tile] = lit.mean((1, 3))
    return image


def spread(size: int, step: int) -> Array:
    """Weights that blur every `step`-th sample along one side of a picture."""
    gap = (np.arange(size)[:, None] + 0.5) / step - (np.arange(size // step) + 0.5)
    weight = np.exp(-(gap**2) / (2 * (0.018 * WIDTH / step) ** 2))
    return np.asarray(weight / weight.sum(1, keepdims=True))


def develop(image: Array, exposure: float) -> Image.Image:
    """Turn light into a photograph: a little bloom, a film curve, a soft vignette."""
    height, width, _ = image.shape
    step = math.gcd(height, width, 8)
    small = image.reshape(height // step, step, width // step, step, 3).mean((1, 3))
    haze = np.einsum(
        "ij,jkc,lk->ilc",
        spread(height, step),
        np.maximum(small - 0.6, 0),
        spread(width, step),
        optimize=True,
    )
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = (image + 0.10 * haze) * (exposure * (1 - 0.09 * (x * x + y * y)))[:, :, None]
    film = light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14)
    pixels = np.clip(film, 0, 1) ** (1 / 2.2) * 255
    return Image.fromarray(np.round(pixels).astype(np.uint8))


def draw_mark(path: Path) -> None:
    """Draw the translucent SAMPLE mark, four times too large and then shrunk."""
    mark = Image.new("RGBA", (2400, 640), (255, 255, 255, 0))
    pen = ImageDraw.Draw(mark)
    pen.rounded_rectangle((24, 24, 2375, 615), 296, (24, 28, 32, 120), (255, 255, 255, 190), 24)
    text, font = "S A M P L E", ImageFont.load_default(size=330)
    pen.text((1200, 320), text, (255, 255, 255, 225), font, anchor="mm")
    mark.resize((600, 160), Image.Resampling.LANCZOS).save(path, optimize=True)


def main() -> None:
    """Draw every view and the mark."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    draw_mark(FOLDER / "watermark.png")
    home = Home()
    bake(home)
    for view in VIEWS:
        picture = develop(trace(home, view, WIDTH), view.exposure)
        picture.save(FOLDER / f"{view.name}.jpg", quality=88, optimize=True)
        print(view.name)


if __name__ == "__main__":
    main()
