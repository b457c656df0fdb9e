"""Files of texts that ComfyUI has read: their keys, their folder, and the node pack behind them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

# ComfyUI imports whatever lies in this folder; the pack lies alone in it.
NODES_FOLDER = Path(__file__).parent / "nodes"
# As in the pack itself, which the worker cannot import: it needs torch.
PACK_VERSION = 1
PACK_DESCRIPTION = f"ltx-worker node pack {PACK_VERSION}"
SAVE_NODE, LOAD_NODE = "LTXWorkerSaveConditioning", "LTXWorkerLoadConditioning"
HOLD_NODE, REST_NODE = "LTXWorkerHoldTextEncoder", "LTXWorkerRestTextEncoder"
# A text of 66 tokens takes 1.6 MB.
MAX_BYTES = 256 * 2**20


class ModelFile(NamedTuple):
    """A model file as a key knows it; size in bytes, mtime in nanoseconds."""

    name: str
    size: int
    mtime: int

    @classmethod
    def at(cls, path: Path) -> ModelFile:
        """Raises OSError."""
        status = path.stat()
        return cls(path.name, status.st_size, status.st_mtime_ns)


def conditioning_key(text: str, models: Iterable[ModelFile], comfyui_version: str) -> str:
    """64 hex characters that change with everything a conditioning depends on."""
    parts = [PACK_VERSION, comfyui_version, [list(model) for model in models], text]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class ConditioningFiles:
    """The folder that the pack writes to and reads from; for the owner alone, and bounded."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    def prepare(self) -> Path:
        """Makes the folder; gives the file for --extra-model-paths-config. Raises OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        paths = self.folder.with_suffix(".yaml")
        entry = {
            "custom_nodes": str(NODES_FOLDER),
            "ltx_worker_conditioning": str(self.folder),
        }
        # JSON is YAML, with the quotation marks that any folder's name may need, except for escaped
        # characters beyond 16 bits.
        part = paths.with_suffix(".part")
        part.write_text(json.dumps({"ltx_worker": entry}, ensure_ascii=False))
        # Replaced, as another ComfyUI may be reading it.
        return part.replace(paths)

    def has(self, key: str) -> bool:
        """Whether the text needs no encoding. A damaged file is deleted, a good one is renewed."""
        path = self.folder / key
        try:
            head, _, body = path.read_bytes().partition(b"\n")
        except OSError:
            return False
        digest = hashlib.sha256(body).hexdigest()
        if (
            head.decode(errors="replace")
            != f"ltx-worker-conditioning {PACK_VERSION} {key} {digest}"
        ):
            path.unlink(missing_ok=True)
            return False
        os.utime(path)
        return True

    def trim(self, in_hand: Collection[str]) -> None:
        """Keeps the folder within its bound, the least recently used go first.

        The files of a job in hand stay; what a killed ComfyUI left half written goes. Only while
        nothing is being encoded.
        """
        files = [entry for entry in os.scandir(self.folder) if entry.is_file(follow_symlinks=False)]
        files.sort(key=lambda file: file.stat().st_mtime_ns)
        held = sum(file.stat().st_size for file in files)
        for file in files:
            spare = held > self.max_bytes and file.name not in in_hand
            if spare or file.name.startswith(".part-"):
                held -= file.stat().st_size
                os.unlink(file.path)
