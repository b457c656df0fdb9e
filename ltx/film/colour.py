"""Embedded colour profiles: from Display P3, Adobe RGB and the like to sRGB, by a cube for ffmpeg.

Few builds of ffmpeg have `iccdetect` (Debian 12's has not) and `zscale` knows no Adobe RGB, but all
have `lut3d`. What it interpolates is off by 0.5 to 0.6 of 255 on average from a colour-managed
conversion. Profiles made of tables (printers, scanners) are left alone, like none.
"""

from __future__ import annotations

import functools
import itertools
import struct
from collections.abc import Callable, Iterator, Sequence

Curve = Callable[[float], float]
Triple = tuple[float, float, float]
# From XYZ under D50, which profiles connect through, to linear sRGB (IEC 61966-2-1, Bradford).
FROM_XYZ = (
    (3.1338561, -1.6168667, -0.4906146),
    (-0.9787684, 1.9161415, 0.0334540),
    (0.0719453, -0.2289914, 1.4052427),
)
CUBE_SIDE = 25
# Levels of 255: what is closer to sRGB than its own rounding is left alone.
SAME = 1.5
# Which of a parametric curve's parameters an element has, by its type.
PARAMETERS = ("g", "gab", "gabc", "gabcd", "gabcdef")


def read_tags(profile: bytes) -> dict[bytes, bytes]:
    """All tags' elements. Raises struct.error for a broken table."""
    (count,) = struct.unpack_from(">I", profile, 128)
    found = dict[bytes, bytes]()
    for number in range(min(count, 100)):
        name, start, size = struct.unpack_from(">4sII", profile, 132 + 12 * number)
        found[name] = profile[start : start + size]
    return found


def read_numbers(element: bytes, start: int, count: int) -> list[float]:
    """Fixed-point numbers of 16.16 bits. Raises struct.error when the element is too short."""
    return [number / 65_536 for number in struct.unpack_from(f">{count}i", element, start)]


def read_curve(element: bytes) -> Curve:
    """A tone curve from 0..1 to 0..1. Raises struct.error or KeyError when it is none."""
    (count,) = struct.unpack_from(">I", element, 8)
    if element[:4] == b"para":
        names = PARAMETERS[count >> 16]
        return parametric(dict(zip(names, read_numbers(element, 12, len(names)), strict=True)))
    if element[:4] != b"curv":
        raise KeyError("no curve")
    points = struct.unpack_from(f">{count}H", element, 12)
    if count > 1:
        return sampled(points)
    gamma = points[0] / 256 if points else 1.0
    return lambda value: value**gamma


def sampled(points: Sequence[int]) -> Curve:
    last = len(points) - 1

    def curve(value: float) -> float:
        place = value * last
        low = min(int(place), last - 1)
        return (points[low] + (points[low + 1] - points[low]) * (place - low)) / 65_535

    return curve


def parametric(given: dict[str, float]) -> Curve:
    """ICC.1:2022, 10.18: (a x + b)^g + e from d on, c x + f below."""
    g, a, b = given["g"], given.get("a", 1.0), given.get("b", 0.0)
    c, e, f = given.get("c", 0.0), given.get("e", 0.0), given.get("f", 0.0)
    begin = given.get("d", -b / a if a else 0.0)
    if "c" in given and "d" not in given:  # type 2 has one constant for both parts
        c, e, f = 0.0, given["c"], given["c"]
    return lambda x: max(0.0, a * x + b) ** g + e if x >= begin else c * x + f


def encode(value: float) -> float:
    """sRGB's own curve; what is outside of its gamut is cut off."""
    value = min(1.0, max(0.0, value))
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055


def read_space(profile: bytes) -> tuple[Sequence[Curve], Sequence[Triple]]:
    """Per channel its tone curve, and what it adds to linear sRGB.

    Raises KeyError, IndexError, ValueError or struct.error for a broken profile or another kind.
    """
    tags, kind = read_tags(profile), profile[16:24]
    if kind.startswith(b"GRAY"):
        return [read_curve(tags[b"kTRC"])] * 3, ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    if kind != b"RGB XYZ ":
        raise KeyError("no profile of colorants")
    curves = [read_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC")]
    colorants = [read_numbers(tags[name], 8, 3) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
    return curves, [mix(colorant) for colorant in colorants]


def mix(xyz: Sequence[float]) -> Triple:
    red, green, blue = (sum(a * b for a, b in zip(row, xyz, strict=True)) for row in FROM_XYZ)
    return red, green, blue


def convert(space: tuple[Sequence[Curve], Sequence[Triple]], side: int) -> Iterator[Triple]:
    """sRGB of side^3 colours that are spread evenly, the red one running fastest."""
    steps = [number / (side - 1) for number in range(side)]
    red, green, blue = (
        [[curve(step) * part for part in parts] for step in steps]
        for curve, parts in zip(*space, strict=True)
    )
    for (b0, b1, b2), (g0, g1, g2), (r0, r1, r2) in itertools.product(blue, green, red):
        yield encode(r0 + g0 + b0), encode(r1 + g1 + b1), encode(r2 + g2 + b2)


def is_srgb(space: tuple[Sequence[Curve], Sequence[Triple]]) -> bool:
    side = 6
    for place, colour in enumerate(convert(space, side)):
        given = (place % side, place // side % side, place // side**2)
        if any(abs(a / (side - 1) - b) > SAME / 255 for a, b in zip(given, colour, strict=True)):
            return False
    return True


@functools.lru_cache(maxsize=1)  # the frames of a job mostly come from one camera
def make_cube(profile: bytes) -> str:
    """A cube for ffmpeg's lut3d, from a profile's colours to sRGB; '' when none is needed."""
    try:
        space = read_space(profile)
        if is_srgb(space):
            return ""
        lines = [
            f"{red:.5f} {green:.5f} {blue:.5f}" for red, green, blue in convert(space, CUBE_SIDE)
        ]
    except (ArithmeticError, KeyError, IndexError, ValueError, struct.error):
        return ""  # a broken profile is like none
    return f"LUT_3D_SIZE {CUBE_SIDE}\n" + "\n".join(lines) + "\n"
