"""What a picture file says of itself, asked of its format: a JPEG by its segments, a PNG by its
chunks.

A walk over a file's own structure finds where the picture ends, so that what phones and tools put
behind it means nothing, and which parts of the file make the pixels. Only those are ever given to
a decoder: no EXIF, no colour profile, no text, no second frame.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, Protocol

from ltx.settings import Size

# What a decoder is given, in order: places in the file, and bytes that are not in it.
Part = range | bytes

# Far more than encoders make, and 6 MB to remember.
MAX_PARTS = 2**15
# A profile of three colorants and curves has some kilobytes; a packed one may unfold to gigabytes.
MAX_PROFILE = 2**20
MAX_EXIF = 2**16
CUT_SHORT = "it is cut short"
NOTHING = "there is no picture in it"
NORMAL = 1


class Data(Protocol):
    """A file's bytes, or plain ones; `data[start:stop]` reads no more than that."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> bytes: ...


class FileBytes:
    """A file that is never in memory as a whole, as a mapping of it would be once it was walked."""

    def __init__(self, file: IO[bytes]) -> None:
        self.number = file.fileno()

    def __len__(self) -> int:
        return os.fstat(self.number).st_size

    def __getitem__(self, place: slice, /) -> bytes:
        start, stop, _ = place.indices(len(self))
        return os.pread(self.number, max(0, stop - start), start)


def read(form: str, data: Data, start: int) -> tuple[Any, ...]:
    """Numbers at a place in the data. Raises struct.error when it ends before."""
    return struct.unpack(form, data[start : start + struct.calcsize(form)])


class NoPicture(Exception):
    """Why a file cannot become a frame, as the second half of a sentence about it."""


class Canvas(NamedTuple):
    """An animation's size in pixels, and where its first frame lies on it."""

    width: int
    height: int
    x: int
    y: int


class Layout(NamedTuple):
    """What lies where in a picture file, and what the file says of its picture.

    size: of what a decoder makes of `parts`, as it lies in the file; canvas: what it is shown on.
    orientation: EXIF's, 1 to 8. profile: the embedded ICC profile, empty without a usable one.
    """

    demuxer: str
    size: Size
    canvas: Canvas
    orientation: int
    profile: bytes
    alpha: bool
    parts: tuple[Part, ...]


def merge(*parts: Part) -> tuple[Part, ...]:
    """The same parts, with neighbours in the file as one."""
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else b""
        if isinstance(part, range) and isinstance(last, range) and last.stop == part.start:
            merged[-1] = range(last.start, part.stop)
        else:
            merged.append(part)
    return tuple(merged)


def read_orientation(block: bytes) -> int:
    """EXIF orientation 1 to 8 of a TIFF block; 1 (normal) when it says nothing usable."""
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4], "")
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for entry in range(count if order else 0):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", block, start + 2 + 12 * entry)
            if tag == 0x0112 and 1 <= value <= 8:
                return int(value)
    except struct.error:
        return NORMAL
    return NORMAL


# JPEG

SOI, EOI, SOS, APP1, APP2, APP14 = 0xD8, 0xD9, 0xDA, 0xE1, 0xE2, 0xEE
FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Frame headers, scans, EOI, and the tables they stand on (DHT, DAC, DQT, DNL, DRI).
DECODED = FRAME_HEADERS | {SOS, EOI, 0xC4, 0xCC, 0xDB, 0xDC, 0xDD}
# Neither stuffed zeros nor restarts, nor what stray bytes between them may look like.
MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
WINDOW = 2**20
EXIF_HEAD, ICC_HEAD, ADOBE_HEAD = b"Exif\0\0", b"ICC_PROFILE\0", b"Adobe"
# Whoever leaves Adobe's segment out of a CMYK picture inverts its inks all the same.
ADOBE_CMYK = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"


class Segment(NamedTuple):
    marker: int
    place: range  # from its marker on; a scan's has the entropy-coded data


def find_marker(data: Data, start: int) -> int:
    """Where the next marker begins. Raises NoPicture when there is none."""
    size = 64
    while start < len(data):
        if found := MARKER.search(data[start : start + size + 1]):
            return start + found.start()
        start, size = start + size, min(2 * size, WINDOW)
    raise NoPicture(CUT_SHORT)


def walk_segments(data: Data) -> Iterator[Segment]:
    """All segments behind SOI, up to EOI; stray bytes before a marker belong to none."""
    start = find_marker(data, 2)
    for _ in range(MAX_PARTS):
        (marker,) = data[start + 1 : start + 2]
        if marker == SOI:  # the next picture, before the end of this one
            raise NoPicture(CUT_SHORT)
        if marker == EOI:
            return (yield Segment(EOI, range(start, start + 2)))
        (length,) = read(">H", data, start + 2)
        following = find_marker(data, start + 2 + length)
        yield Segment(marker, range(start, following if marker == SOS else start + 2 + length))
        start = following
    raise NoPicture("it has too many segments")


def read_jpeg(data: Data) -> Layout:
    segments = list(walk_segments(data))
    headers = [place.start for marker, place in segments if marker in FRAME_HEADERS]
    if not headers or SOS not in [marker for marker, _ in segments]:
        raise NoPicture(NOTHING)
    height, width, inks = read(">HHB", data, headers[0] + 5)
    adobe = find_segments(data, segments, APP14, ADOBE_HEAD)[:1]
    parts: list[Part] = [b"\xff\xd8", *adobe]
    if inks == 4 and not adobe:
        parts.append(ADOBE_CMYK)
    parts += [place for marker, place in segments if marker in DECODED]
    exif = find_segments(data, segments, APP1, EXIF_HEAD)
    return Layout(
        demuxer="jpeg_pipe",
        size=Size(width, height),
        canvas=Canvas(width, height, 0, 0),
        orientation=read_orientation(cut(data, exif[0])[4:]) if exif else NORMAL,
        profile=join_profile(data, find_segments(data, segments, APP2, ICC_HEAD)),
        alpha=False,
        parts=merge(*parts),
    )


def find_segments(data: Data, segments: list[Segment], wanted: int, head: bytes) -> list[range]:
    return [
        place
        for marker, place in segments
        if marker == wanted and data[place.start + 4 : place.start + 4 + len(head)] == head
    ]


def cut(data: Data, place: range) -> bytes:
    return data[place.start : place.stop]


def join_profile(data: Data, places: list[range]) -> bytes:
    """A profile from its parts, each numbered; nothing when one is missing, or it is too large."""
    if sum(map(len, places)) > MAX_PROFILE:
        return b""
    parts = sorted(cut(data, place)[4 + len(ICC_HEAD) :] for place in places)
    numbers = [part[:1] for part in parts]
    whole = numbers == [bytes([number + 1]) for number in range(len(parts))]
    return b"".join(part[2:] for part in parts) if whole else b""


# PNG

PNG_HEAD = b"\x89PNG\r\n\x1a\n"
PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# Colour types that have an alpha channel of their own.
WITH_ALPHA = (4, 6)


def walk_chunks(data: Data) -> Iterator[tuple[bytes, range]]:
    """Type and content of all chunks up to IEND."""
    start = len(PNG_HEAD)
    for _ in range(MAX_PARTS):
        length, kind = read(">I4s", data, start)
        content = range(start + 8, start + 8 + length)
        if content.stop + 4 > len(data):
            raise NoPicture(CUT_SHORT)
        yield kind, content
        if kind == b"IEND":
            return
        start = content.stop + 4
    raise NoPicture("it has too many chunks")


def is_sound(data: Data, content: range, limit: int) -> bool:
    """Whether a chunk's checksum is right. One above `limit` bytes is not read: False."""
    if len(content) > limit:
        return False
    (checksum,) = read(">I", data, content.stop)
    return bool(zlib.crc32(data[content.start - 4 : content.stop]) == checksum)


def read_png(data: Data) -> Layout:
    chunks = list(walk_chunks(data))
    if chunks[0][0] != b"IHDR" or b"IDAT" not in dict(chunks):
        raise NoPicture(NOTHING)
    width, height, colours = read(">IIxB", data, chunks[0][1].start)

    def find(kind: bytes, limit: int) -> bytes:
        """An additional chunk; like one that is not there when its checksum is wrong."""
        places = [place for name, place in chunks if name == kind]
        return cut(data, places[0]) if places and is_sound(data, places[0], limit) else b""

    transparent = bool(find(b"tRNS", 256))
    kept = [name for name in PIXELS if transparent or name != b"tRNS"]
    parts = [range(place.start - 8, place.stop + 4) for name, place in chunks if name in kept]
    return Layout(
        demuxer="png_pipe",
        size=Size(width, height),
        canvas=Canvas(width, height, 0, 0),
        orientation=read_orientation(find(b"eXIf", MAX_EXIF)),
        profile=unpack_profile(find(b"iCCP", MAX_PROFILE)),
        alpha=transparent or colours in WITH_ALPHA,
        parts=merge(PNG_HEAD, *parts),
    )


def unpack_profile(content: bytes) -> bytes:
    """The profile of an iCCP chunk; nothing when it is broken or unfolds to too much."""
    packed = content[content.find(b"\0") + 2 :]
    if packed[36:40] == b"acsp":  # some tools do not pack it
        return packed
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(packed, MAX_PROFILE)
    except zlib.error:
        return b""
    return profile if unpacker.eof else b""
