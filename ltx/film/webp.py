"""What a WebP file says of itself, asked of its chunks.

Debian 12's ffmpeg knows no animations, so the first frame of one is given to it as a picture.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from ltx.film.formats import (
    CUT_SHORT,
    MAX_EXIF,
    MAX_PARTS,
    MAX_PROFILE,
    NOTHING,
    Canvas,
    Data,
    Layout,
    NoPicture,
    Part,
    cut,
    merge,
    read,
    read_orientation,
)
from ltx.settings import Size


def walk_riff(data: Data, start: int, end: int) -> Iterator[tuple[bytes, range]]:
    """FourCC and content of the chunks between two places. Raises NoPicture when one is cut off."""
    for _ in range(MAX_PARTS):
        if start + 8 > end:
            return
        kind, length = read("<4sI", data, start)
        content = range(start + 8, start + 8 + length)
        if content.stop > end:
            raise NoPicture(CUT_SHORT)
        yield kind, content
        start = content.stop + length % 2
    raise NoPicture("it has too many chunks")


def read_webp(data: Data) -> Layout:
    (length,) = read("<I", data, 4)
    if (end := 8 + length) > len(data):
        raise NoPicture(CUT_SHORT)
    chunks = first_chunks(data, 12, end)
    still, frame = chunks, chunks.get(b"ANMF")
    if frame:
        still = first_chunks(data, frame.start + 16, frame.stop)
    kind = b"VP8L" if b"VP8L" in still else b"VP8 "
    if kind not in still:
        raise NoPicture(NOTHING)
    size, alpha = read_bitstream(data, kind, still[kind])
    exif, profile = (cut(data, chunks.get(name, range(0))) for name in (b"EXIF", b"ICCP"))
    return Layout(
        demuxer="webp_pipe",
        size=size,
        canvas=read_canvas(data, chunks) if frame else Canvas(*size, 0, 0),
        orientation=read_orientation(exif[:MAX_EXIF]),
        profile=profile[:MAX_PROFILE],
        alpha=alpha or b"ALPH" in still,
        parts=still_webp(still.get(b"ALPH"), still[kind], size),
    )


def first_chunks(data: Data, start: int, end: int) -> dict[bytes, range]:
    """Where the first chunk of each kind has its content."""
    found = dict[bytes, range]()
    for kind, content in walk_riff(data, start, end):
        found.setdefault(kind, content)
    return found


def read_bitstream(data: Data, kind: bytes, content: range) -> tuple[Size, bool]:
    """Size, and whether there is an alpha channel, as the compressed pixels' own header says."""
    if kind == b"VP8L":
        (bits,) = read("<xI", data, content.start)
        return Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), bool(bits >> 28 & 1)
    width, height = read("<6xHH", data, content.start)
    return Size(width & 0x3FFF, height & 0x3FFF), False


def read_canvas(data: Data, chunks: Mapping[bytes, range]) -> Canvas:
    """Raises NoPicture when an animation names no size."""
    if b"VP8X" not in chunks:
        raise NoPicture("it is an animation without a size")
    width, height = read_triple(data, chunks[b"VP8X"].start + 4)
    x, y = read_triple(data, chunks[b"ANMF"].start)
    return Canvas(width + 1, height + 1, 2 * x, 2 * y)


def read_triple(data: Data, start: int) -> tuple[int, int]:
    """Two numbers of 24 bits each."""
    low, high = struct.unpack(
        "<II", data[start : start + 3] + b"\0" + data[start + 3 : start + 6] + b"\0"
    )
    return low, high


def still_webp(alpha: range | None, pixels: range, size: Size) -> tuple[Part, ...]:
    """A WebP file of one picture and nothing else."""
    body: list[Part] = []
    for content in filter(None, (alpha, pixels)):
        body += [range(content.start - 8, content.stop), bytes(len(content) % 2)]
    if alpha:
        sides = b"".join((side - 1).to_bytes(3, "little") for side in size)
        body.insert(0, struct.pack("<4sII", b"VP8X", 10, 0x10) + sides)
    return merge(struct.pack("<4sI4s", b"RIFF", 4 + sum(map(len, body)), b"WEBP"), *body)
