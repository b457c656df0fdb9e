"""Tensors that can be kept in a file and read from it safely; they compute nothing."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO


class Tensor:
    """A row of numbers, on a device."""

    def __init__(self, numbers: Iterable[float], device: str = "cpu") -> None:
        self.numbers, self.device = tuple(numbers), device

    def __reduce__(self) -> tuple[Any, ...]:
        return Tensor, (self.numbers, self.device)

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return Tensor(self.numbers)

    def clone(self) -> Tensor:
        return Tensor(self.numbers, self.device)


def save(value: Any, file: BinaryIO) -> None:
    pickle.dump(value, file)


def load(file: BinaryIO, map_location: str | None = None, weights_only: bool = True) -> Any:
    """Raises pickle.UnpicklingError for anything but tensors in plain Python values."""
    if not weights_only:
        raise ValueError("this torch is a stand-in and executes nothing that a file says")
    return _SafeUnpickler(file, map_location).load()


class _SafeUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, device: str | None) -> None:
        super().__init__(file)
        self.device = device

    def find_class(self, module: str, name: str) -> Callable[[Any, str], Tensor]:
        if (module, name) != (Tensor.__module__, "Tensor"):
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")
        return lambda numbers, device: Tensor(numbers, self.device or device)
