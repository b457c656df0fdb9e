"""The node pack as ComfyUI imports it; torch and ComfyUI are small stand-ins here.

That the same holds with torch is shown on a real ComfyUI, which no test run needs.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, BinaryIO

import pytest

from sandbox.client import ROOT

PACK = ROOT / "ltx" / "comfyui" / "nodes" / "ltx_worker_nodes" / "__init__.py"


class Tensor:
    """Numbers on a device; what is saved has to be a copy in RAM."""

    def __init__(self, numbers: list[float], device: str = "cuda") -> None:
        self.numbers, self.device = numbers, device

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return Tensor(self.numbers, "cpu")

    def clone(self) -> Tensor:
        return Tensor(list(self.numbers), self.device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tensor) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


def save(value: Any, file: BinaryIO) -> None:
    def spell(part: Tensor) -> dict[str, Any]:
        return {"numbers": part.numbers, "device": part.device}

    file.write(json.dumps(value, default=spell).encode())


def load(file: BinaryIO, map_location: str, weights_only: bool) -> Any:
    if not weights_only:
        raise AssertionError("a file must never be loaded with what it says executed")

    def read(found: dict[str, Any]) -> Any:
        return Tensor(**found) if "numbers" in found else found

    return json.loads(file.read(), object_hook=read)


@pytest.fixture
def gpu() -> list[str]:
    """What was asked of ComfyUI's memory management, in order."""
    return []


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "conditioning"
    folder.mkdir()
    return folder


@pytest.fixture
def pack(gpu: list[str], files: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    memory: Any = ModuleType("comfy.model_management")
    memory.unload_all_models = lambda: gpu.append("unload")
    memory.soft_empty_cache = lambda: gpu.append("empty")
    comfy: Any = ModuleType("comfy")
    comfy.model_management = memory
    torch: Any = ModuleType("torch")
    torch.Tensor, torch.save, torch.load = Tensor, save, load
    paths: Any = ModuleType("folder_paths")
    paths.get_folder_paths = {"ltx_worker_conditioning": [str(files), "/nowhere"]}.__getitem__
    for module in (memory, comfy, torch, paths):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    # Named and loaded as ComfyUI's load_custom_node does.
    spec = importlib.util.spec_from_file_location(str(PACK.parent).replace(".", "_x_"), PACK)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return SimpleNamespace(
        **{
            name.removeprefix("LTXWorker"): node
            for name, node in module.NODE_CLASS_MAPPINGS.items()
        },
        Error=module.ConditioningError,
        version=module.VERSION,
        names=set(module.NODE_CLASS_MAPPINGS),
    )
