"""A case of hostile input: what comes in, and what the worker has to make of it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.pictures import picture

PAGE = b"<!doctype html><title>Sign in</title><img src=good.png>"
GOOD = picture((320, 180), 1)
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """`expected`: an error code, or one of these.

    renders: a film of it is delivered; left alone: no job is made of the offer; goes on: the next
    call is made; delivered: in spite of it.
    """

    group: str
    name: str
    expected: str
    given: Any  # what the group's player takes, see play.py


@dataclass(frozen=True)
class Place:
    """Where the cases find the peers."""

    host: str  # http://127.0.0.1:port, named in FRAME_HOSTS
    bait: int  # the port of a server on this machine that is not and must stay unheard
    folder: Path  # with a film, private.mp4, and a picture, private.png, of the operator's own


def table(group: str, expected: str, rows: Mapping[str, Any]) -> Iterator[Case]:
    return (Case(group, name, expected, given) for name, given in rows.items())


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def corrupt(content: bytes) -> bytes:
    middle = len(content) // 2
    noise = bytes(byte ^ 0xFF for byte in content[middle : middle + 40])
    return content[:middle] + noise + content[middle + 40 :]


def zeros(size: int) -> bytes:
    """So many zero bytes, packed to a thousandth, without going through them all."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(9, wbits=-15)
    rest = last.compress(bytes(size % MIB)) + last.flush()
    # Adler-32 of zeros: the first half stays 1, the second counts them.
    check = (size % 65_521 << 16 | 1).to_bytes(4, "big")
    return b"\x78\xda" + block * (size // MIB) + rest + check
