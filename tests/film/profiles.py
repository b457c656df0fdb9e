"""Colour profiles as cameras, phones and editors embed them, written field by field."""

from __future__ import annotations

import struct

# Colorants in XYZ under D50 (the columns of a space's matrix after Bradford's adaptation).
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
DISPLAY_P3 = (
    (0.51512, 0.24120, -0.00105),
    (0.29198, 0.69225, 0.04189),
    (0.15710, 0.06657, 0.78407),
)
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
D50 = (0.9642, 1.0, 0.8249)
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def fixed(*numbers: float) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))


def xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + fixed(*values)


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256)) + b"\0\0"


def table(value: float, points: int = 1024) -> bytes:
    """A gamma as older profiles have it, point by point."""
    curve = [round((n / (points - 1)) ** value * 65535) for n in range(points)]
    return b"curv\0\0\0\0" + struct.pack(f">I{points}H", points, *curve)


def para(*values: float) -> bytes:
    kind = {1: 0, 3: 1, 4: 2, 5: 3, 7: 4}[len(values)]
    return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + fixed(*values)


def text_tags(version: int) -> dict[bytes, bytes]:
    if version == 4:
        text = "test".encode("utf-16-be")
        told = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
        return {b"desc": told, b"cprt": told}
    told = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    return {b"desc": told, b"cprt": b"text\0\0\0\0none\0"}


def icc(space: bytes, tags: dict[bytes, bytes], version: int = 4) -> bytes:
    tags = {**text_tags(version), b"wtpt": xyz(D50), **tags}
    place, table, body = 132 + 12 * len(tags), b"", b""
    for name, element in tags.items():
        table += struct.pack(">4sII", name, place + len(body), len(element))
        body += element + bytes(-len(element) % 4)
    head = struct.pack(
        ">I4xB3x4s4s4s12x4s", place + len(body), version, b"mntr", space, b"XYZ ", b"acsp"
    )
    head = head.ljust(68, b"\0") + fixed(*D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def rgb_profile(colorants: tuple[tuple[float, ...], ...], curve: bytes, version: int = 4) -> bytes:
    tags = {
        name: xyz(value) for name, value in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colorants, strict=True)
    }
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return icc(b"RGB ", tags, version)


def grey_profile(curve: bytes) -> bytes:
    return icc(b"GRAY", {b"kTRC": curve}, 2)


P3_V4 = rgb_profile(DISPLAY_P3, para(*SRGB_CURVE))
ADOBE_V2 = rgb_profile(ADOBE_RGB, gamma(2.19921875), 2)
SRGB_V4 = rgb_profile(SRGB, para(*SRGB_CURVE))
WIDE_V2 = rgb_profile(ADOBE_RGB, table(1.8), 2)
# All five kinds of parametric curves, near to gamma 2.
CURVES = (
    para(2.0),
    para(2.2, 0.95, 0.05),
    para(2.2, 0.9, 0.05, 0.04),
    para(*SRGB_CURVE),
    para(2.2, 0.9, 0.05, 0.1, 0.05, 0.03, 0.001),
)


def padded(profile: bytes, size: int) -> bytes:
    """The same profile, with so many more bytes behind its last element."""
    longer = profile + bytes(size)
    return struct.pack(">I", len(longer)) + longer[4:]
