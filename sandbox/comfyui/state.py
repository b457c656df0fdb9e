"""What stays in the process from prompt to prompt: models, cached outputs, the place it is at."""

from __future__ import annotations

import argparse
import functools
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from options import Folders
from packs import Node, describe
from schemas import Schemas, load_schemas
from script import Script
from slots import Json
from standins import model_management

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
    def __init__(
        self,
        options: argparse.Namespace,
        folders: Folders,
        script: Script,
        packs: Mapping[str, Node],
    ) -> None:
        self.options = options
        self.folders = folders
        self.script = script
        self.packs = {name: packs[name] for name in packs if name not in script.missing_nodes}
        self.interrupted = threading.Event()
        self.cache: dict[str, Cached] = {}  # by signature
        self.last_node: str | None = None
        self.last_video: Path | None = None
        self.warm = self.used = False
        self.empty_at = 0.0  # monotonic: when /free gives an encoder's memory back
        model_management.card.rest_s = script.times.rest
        self._leaked: list[bytes] = []
        # The lists of images are all that changes of them while the process runs.
        self._spell_out = functools.lru_cache(maxsize=1)(
            functools.partial(
                load_schemas,
                script.version,
                missing_nodes=script.missing_nodes,
                missing_models=script.missing_models,
                added_inputs=script.added_inputs,
            )
        )

    def schemas(self) -> Schemas:
        """With the input images there are now, as the real server re-reads its lists."""
        images = sorted(path.name for path in self.folders.input.iterdir() if path.is_file())
        own = self._spell_out(input_images=tuple(images))
        # A pack's class does not take the name of one that is there.
        return {name: describe(name, node) for name, node in self.packs.items()} | own

    def vram_free(self) -> int:
        """Bytes."""
        now, card = time.monotonic(), model_management.card
        if card.model or now < self.script.crowded_until:
            return SPARE_VRAM
        if now >= self.empty_at:
            model_management.soft_empty_cache()
        own = UNLOADED_VRAM if self.used else IDLE_VRAM
        held: int = card.held()
        return self.script.vram_total - own - held

    def leak(self) -> None:
        # Ones, because the kernel would not hand out memory for zeros.
        self._leaked.append(b"\1" * (self.script.leak_mb << 20))

    def unload(self) -> None:
        model_management.unload_all_models()
        self.empty_at = time.monotonic() + self.script.times.collect
        self.warm = False
        if not self.script.leak_stays:
            self._leaked.clear()

    def forget_all_but(self, signatures: set[str]) -> None:
        """The classic cache: what the new prompt does not use is gone."""
        kept = {} if self.options.cache_none else self.cache
        self.cache = {key: kept[key] for key in kept if key in signatures}
