"""ComfyUI nodes that keep a conditioning in a file and a text encoder at hand.

They run inside ComfyUI (0.21 to 0.27) and import nothing of the worker's. ComfyUI imports all that
lies in a `custom_nodes` folder, so this pack lies alone in one. Its files lie in the folder that
the same YAML names as `ltx_worker_conditioning`; a graph names a key and nothing else.

A file is one line, `ltx-worker-conditioning VERSION KEY SHA256`, and what torch.save wrote. The
digest is there because torch reads damaged tensors without a word.
"""

# ruff: noqa: N802, RUF012 - names and class attributes are what ComfyUI looks for
from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch

# Of files and nodes alike; the worker reads it in /object_info and puts it into every key.
VERSION = 1


class ConditioningError(RuntimeError):
    """A conditioning that cannot be kept, or a file that has to be made again."""


def place(key: str) -> Path:
    """The file of a key; ConditioningError for anything but 64 lowercase hex characters."""
    if not re.fullmatch("[0-9a-f]{64}", key):
        raise ConditioningError(f"A conditioning's key is 64 hex characters, not {key!r:.80}.")
    return Path(folder_paths.get_folder_paths("ltx_worker_conditioning")[0]) / key


def head(key: str, body: bytes) -> bytes:
    return f"ltx-worker-conditioning {VERSION} {key} {hashlib.sha256(body).hexdigest()}\n".encode()


def kept(value: Any) -> Any:
    """A copy in RAM that a safe load gives back whole; ConditioningError where it would not."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {name: kept(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(kept, value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConditioningError(f"A conditioning with a {type(value).__name__} in it cannot be kept.")


def save(key: str, conditioning: Any) -> None:
    """Written beside (mode 0600) and renamed, so that a file is whole or absent."""
    path, body = place(key), io.BytesIO()
    torch.save(kept(conditioning), body)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    with os.fdopen(handle, "wb") as file:
        file.write(head(key, body.getvalue()) + body.getvalue())
        file.flush()
        os.fsync(file.fileno())
    Path(beside).replace(path)


def load(key: str) -> Any:
    """What save() kept; ConditioningError where the file is missing, damaged or another key's."""
    try:
        data = place(key).read_bytes()
    except OSError as error:
        raise ConditioningError(f"Conditioning {key} is missing: {error.strerror}.") from error
    body = data[data.find(b"\n") + 1 :]
    if data != head(key, body) + body:
        raise ConditioningError(f"Conditioning {key} is damaged: delete it and encode it again.")
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)


class Node:
    DESCRIPTION = f"ltx-worker node pack {VERSION}"
    CATEGORY, FUNCTION, OUTPUT_NODE = "ltx-worker", "run", True
    RETURN_TYPES: tuple[str, ...] = ()
    # `after` takes what a saver gives, so that one node runs when others are done.
    INPUTS: dict[str, dict[str, Any]]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        return cls.INPUTS


class Keyed(Node):
    @classmethod
    def VALIDATE_INPUTS(cls, key: str) -> bool | str:
        try:
            there = place(key).is_file()
        except ConditioningError as error:
            return str(error)
        return there or cls.OUTPUT_NODE or f"Conditioning {key} is missing."

    @classmethod
    def IS_CHANGED(cls, key: str, **_: Any) -> str | float:
        """What ComfyUI's cache compares: a missing file equals nothing, not even itself."""
        path = place(key)
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else float("nan")


class LTXWorkerSaveConditioning(Keyed):
    RETURN_TYPES = ("LTX_WORKER_DONE",)
    INPUTS = {
        "required": {"conditioning": ("CONDITIONING",), "key": ("STRING", {"default": ""})},
        "optional": {"after": ("LTX_WORKER_DONE",)},
    }

    def run(self, conditioning: Any, key: str, after: Any = None) -> tuple[str]:
        save(key, conditioning)
        return (key,)


class LTXWorkerLoadConditioning(Keyed):
    OUTPUT_NODE = False
    RETURN_TYPES = ("CONDITIONING",)
    INPUTS = {"required": {"key": ("STRING", {"default": ""})}}

    def run(self, key: str) -> tuple[Any]:
        return (load(key),)


class LTXWorkerHoldTextEncoder(Node):
    """The end of a graph that only loads the encoder: ComfyUI's cache keeps it, in RAM."""

    INPUTS = {"required": {"clip": ("CLIP",)}}

    def run(self, clip: Any) -> tuple[()]:
        return ()


class LTXWorkerRestTextEncoder(Node):
    """Moves the encoder to RAM and gives the VRAM back at once, where /free takes about 10 s."""

    INPUTS = {"required": {"clip": ("CLIP",)}, "optional": {"after": ("LTX_WORKER_DONE",)}}

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return float("nan")

    def run(self, clip: Any, after: Any = None) -> tuple[()]:
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
        return ()


NODES = (
    LTXWorkerSaveConditioning,
    LTXWorkerLoadConditioning,
    LTXWorkerHoldTextEncoder,
    LTXWorkerRestTextEncoder,
)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
