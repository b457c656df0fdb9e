"""What stays in the process from prompt to prompt: models, cached outputs, the place it is at."""

from __future__ import annotations

import argparse
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from options import Folders
from schemas import Schemas, load_schemas
from script import Script
from slots import Json

Outputs = tuple[Any, ...]
IDLE_VRAM = 550_000_000  # bytes: a CUDA context
UNLOADED_VRAM = 900_000_000  # after prompts and /free
SPARE_VRAM = 700_000_000  # what loaded models leave free: dynamic VRAM fills the card


@dataclass(frozen=True)
class Cached:
    """A node's result."""

    outputs: Outputs
    ui: Json | None
    meta: Json


class State:
    def __init__(self, options: argparse.Namespace, folders: Folders, script: Script) -> None:
        self.options = options
        self.folders = folders
        self.script = script
        self.interrupted = threading.Event()
        self.cache: dict[str, Cached] = {}  # by signature
        self.last_node: str | None = None
        self.last_video: Path | None = None
        self.loaded = self.warm = self.used = False
        self._leaked: list[bytes] = []

    def schemas(self) -> Schemas:
        """Read anew each time, as the real server re-reads its model lists."""
        images = [path.name for path in self.folders.input.iterdir() if path.is_file()]
        return load_schemas(
            self.script.version,
            missing_nodes=self.script.missing_nodes,
            missing_models=self.script.missing_models,
            added_inputs=self.script.added_inputs,
            input_images=images,
        )

    def vram_free(self) -> int:
        """Bytes."""
        if self.loaded or time.monotonic() < self.script.crowded_until:
            return SPARE_VRAM
        return self.script.vram_total - (UNLOADED_VRAM if self.used else IDLE_VRAM)

    def leak(self) -> None:
        # Ones, because the kernel would not hand out memory for zeros.
        self._leaked.append(b"\1" * (self.script.leak_mb << 20))

    def unload(self) -> None:
        self.loaded = self.warm = False
        if not self.script.leak_stays:
            self._leaked.clear()

    def forget_all_but(self, signatures: set[str]) -> None:
        """The classic cache: what the new prompt does not use is gone."""
        kept = {} if self.options.cache_none else self.cache
        self.cache = {key: kept[key] for key in kept if key in signatures}
