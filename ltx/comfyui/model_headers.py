"""What a model file's header announces, so that one that was cut short is told from a whole one."""

from __future__ import annotations

import json
import math
import mmap
import struct
from pathlib import Path

from ltx.text import as_dict, as_list

# As safetensors has it; a checkpoint's header takes 1 MB.
MAX_HEADER_BYTES = 100_000_000
# Of GGUF's types: the bytes of a value, and for quantised numbers (elements, bytes) of a block.
VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 40), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66),
}  # fmt: skip
GGUF_VERSIONS, GGUF_ALIGNMENT, MAX_TENSORS, MAX_DIMENSIONS = (2, 3), 32, 100_000, 8


class Damaged(Exception):
    """A file that is no model file, or not all of one."""


def find_damage(path: Path) -> str:
    """What is wrong with a .safetensors or .gguf file, '' when nothing is; OSError."""
    size = path.stat().st_size
    readers = {".safetensors": safetensors_bytes, ".gguf": gguf_bytes}
    read = readers.get(path.suffix.lower())
    if read is None:
        return ""
    try:
        announced, exact = read(path)
    except (Damaged, struct.error, ValueError, RecursionError):
        return f"{path} has {size} bytes and is no {path.suffix[1:]} file"
    if size < announced or (exact and size > announced):
        return f"{path} has {size} bytes, its header announces {announced}"
    return ""


def safetensors_bytes(path: Path) -> tuple[int, bool]:
    """The size that its header announces; a file has exactly that. Raises Damaged, ValueError."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise Damaged
        tensors = as_dict(json.loads(file.read(length)))
    ends = [as_list(as_dict(one).get("data_offsets"))[-1:] for one in tensors.values()]
    numbers = [end[0] for end in ends if end and isinstance(end[0], int)]
    if not numbers:
        raise Damaged
    return 8 + length + max(numbers), True


def gguf_bytes(path: Path) -> tuple[int, bool]:
    """The size that its header announces; padding may follow. Raises Damaged, ValueError."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return read_gguf(data), False


class GgufReader:
    """Reads a GGUF header from its beginning on. Raises struct.error at the file's end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def number(self, form: str = "<Q") -> int:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def string(self) -> bytes:
        length = self.number()
        self.at += length
        return self.data[self.at - length : self.at]

    def value(self, kind: int) -> int:
        """Goes past a value; gives it where it is a whole number of four bytes."""
        if kind == 4:
            return self.number("<I")
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            self._array(self.number("<I"), self.number())
        elif kind in VALUE_BYTES:
            self.at += VALUE_BYTES[kind]
        else:
            raise Damaged
        return 0

    def _array(self, kind: int, count: int) -> None:
        if kind in VALUE_BYTES:
            self.at += VALUE_BYTES[kind] * count
            return
        for _ in range(count):
            self.value(kind)


def read_gguf(data: mmap.mmap) -> int:
    """Bytes up to the end of the last tensor whose type is known. Raises Damaged, struct.error."""
    reader = GgufReader(data)
    if data[:4] != b"GGUF":
        raise Damaged
    reader.at = 4
    version, tensors, values = reader.number("<I"), reader.number(), reader.number()
    if version not in GGUF_VERSIONS or not 0 < tensors <= MAX_TENSORS or values > MAX_TENSORS:
        raise Damaged
    alignment = GGUF_ALIGNMENT
    for _ in range(values):
        name, value = reader.string(), reader.value(reader.number("<I"))
        alignment = value if name == b"general.alignment" and value else alignment
    ends = [read_tensor(reader) for _ in range(tensors)]
    return math.ceil(reader.at / alignment) * alignment + max(ends)


def read_tensor(reader: GgufReader) -> int:
    """Where a tensor ends, counted from the first one's beginning."""
    reader.string()
    dimensions = reader.number("<I")
    if dimensions > MAX_DIMENSIONS:
        raise Damaged
    elements = math.prod(reader.number() for _ in range(dimensions))
    per_block, size = BLOCKS.get(reader.number("<I"), (1, 0))
    return reader.number() + elements // per_block * size
