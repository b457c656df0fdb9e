"""Which files ComfyUI means by a name, and whether a file is as long as it says."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest

from ltx.comfyui.conditioning import ModelFile
from ltx.comfyui.model_files import (
    CHECKPOINTS,
    TEXT_ENCODERS,
    NoIdentity,
    encoder_files,
    find_models,
    read_version,
)
from ltx.comfyui.model_headers import BLOCKS, find_damage
from ltx.settings import Settings
from sandbox.client import ROOT

GEMMA, PROJECTION = "gemma-3-12b-it-qat-Q4_K_M.gguf", "ltx-2.3_text_projection_bf16.safetensors"
Q4_K = 12


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    folder = tmp_path / "ComfyUI"
    (folder / "models" / "text_encoders").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text('# Made by a tool\n__version__ = "0.27.0"\n')
    return folder


def settings(comfyui: Path, arguments: str = "", **changes: str) -> Settings:
    """PyYAML stands where it stands for ComfyUI: in the Python that COMFYUI_PYTHON names."""
    named = {"COMFYUI_DIR": str(comfyui), "COMFYUI_PYTHON": yaml_python(comfyui.parent)}
    return Settings.load({**named, "COMFYUI_ARGS": arguments, **changes}, needed=())


def yaml_python(folder: Path) -> str:
    """A Python with a `yaml` that reads the JSON among YAML, whether or not there is PyYAML."""
    library = folder / "lib"
    library.mkdir(exist_ok=True)
    (library / "yaml.py").write_text("import json\ndef safe_load(file): return json.load(file)\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{library}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return str(python)


def put(folder: Path, name: str, content: bytes = b"x") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_model_is_found_in_either_folder_of_its_kind_and_below(comfyui: Path) -> None:
    models = comfyui / "models"
    new, old = put(models / "text_encoders", "ltx/a.gguf"), put(models / "clip", "ltx/a.gguf")
    assert find_models(settings(comfyui), TEXT_ENCODERS, "ltx/a.gguf") == [new, old]
    assert find_models(settings(comfyui), CHECKPOINTS, "ltx/a.gguf") == []


@pytest.mark.parametrize("given", ["own", "one", "two", "equals", "short"])
def test_a_model_is_found_where_the_operators_files_say(comfyui: Path, given: str) -> None:
    elsewhere = comfyui.parent / "else where"
    wanted = put(elsewhere / "encoders", "a.gguf")
    entry = {"base_path": "../else where", "is_default": True, "clip": "nowhere\nencoders\n"}
    name = "extra_model_paths.yaml" if given == "own" else "mine.yaml"
    put(comfyui, name, json.dumps({"mine": entry, "empty": None}).encode())
    put(comfyui, "other.yaml", b"{}")
    arguments = {
        "own": "",
        "one": "--lowvram --extra-model-paths-config mine.yaml --fast",
        "two": "--extra-model-paths-config other.yaml mine.yaml",
        "equals": "--extra-model-paths-config=mine.yaml",
        "short": "--extra-model mine.yaml",
    }
    assert find_models(settings(comfyui, arguments[given]), TEXT_ENCODERS, "a.gguf") == [wanted]


def test_a_file_of_paths_that_cannot_be_read_hides_no_other_folder(comfyui: Path) -> None:
    wanted = put(comfyui / "models" / "text_encoders", "a.gguf")
    put(comfyui, "extra_model_paths.yaml", b"no: [yaml")
    assert find_models(settings(comfyui), TEXT_ENCODERS, "a.gguf") == [wanted]


def test_an_encoder_is_known_by_each_file_that_may_be_meant(comfyui: Path) -> None:
    put(comfyui / "models" / "text_encoders", PROJECTION)
    gemma = put(comfyui / "models" / "text_encoders", GEMMA)
    before = encoder_files(settings(comfyui))
    assert before[0] == ModelFile(GEMMA, 1, gemma.stat().st_mtime_ns)
    put(comfyui / "models" / "clip", GEMMA)
    assert encoder_files(settings(comfyui)) != before


def test_what_a_key_cannot_be_made_of_is_told(comfyui: Path) -> None:
    with pytest.raises(NoIdentity, match=f"{GEMMA} is in no folder"):
        encoder_files(settings(comfyui))
    assert read_version(comfyui) == "0.27.0"
    (comfyui / "comfyui_version.py").write_text("version = 1\n")
    with pytest.raises(NoIdentity, match="names no version"):
        read_version(comfyui)
    (comfyui / "comfyui_version.py").unlink()
    with pytest.raises(NoIdentity, match="No such file"):
        read_version(comfyui)


# Headers


def safetensors(size: int) -> bytes:
    tensors = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]},
        "b": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},
    }
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def text(words: bytes) -> bytes:
    return struct.pack("<Q", len(words)) + words


def gguf(blocks: int, alignment: int = 64) -> bytes:
    """Values of every shape, and one tensor of so many blocks of 256 numbers in Q4_K."""
    values = [
        text(b"general.alignment") + struct.pack("<II", 4, alignment),
        text(b"name") + struct.pack("<I", 8) + text(b"gemma"),
        text(b"tokens") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"bc"),
        text(b"scores") + struct.pack("<IIQ3f", 9, 6, 3, 1, 2, 3),
        text(b"big") + struct.pack("<IQ", 10, 7),
        text(b"flag") + struct.pack("<IB", 7, 1),
    ]
    tensor = text(b"weight") + struct.pack("<IQQIQ", 2, 256, blocks, Q4_K, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(values)) + b"".join(values) + tensor
    return head + bytes(-len(head) % alignment) + bytes(blocks * BLOCKS[Q4_K][1])


WHOLE = {"a.safetensors": safetensors(1000), "a.gguf": gguf(5), "b.GGUF": gguf(5, 32)}


@pytest.mark.parametrize(("name", "content"), WHOLE.items(), ids=WHOLE)
def test_a_file_is_whole_to_the_byte_and_not_one_byte_less(
    tmp_path: Path, name: str, content: bytes
) -> None:
    assert find_damage(put(tmp_path, name, content)) == ""
    told = find_damage(put(tmp_path, name, content[:-1]))
    assert f"has {len(content) - 1} bytes, its header announces {len(content)}" in told


@pytest.mark.parametrize("name", ["a.safetensors", "a.gguf"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"four",
        b"<!doctype html><title>Sign in</title>" * 9,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 29557000000\n",
        b"GGUF",
        b"GGUF" + b"\xff" * 99,
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2**62) + b"{}" * 40,
        struct.pack("<Q", 4) + b'["a"',
        bytes(4096),
    ],
    ids=range(10),
)
def test_what_is_no_model_file_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    told = find_damage(put(tmp_path, name, content))
    assert f"has {len(content)} bytes and is no {name[2:]} file" in told


@pytest.mark.parametrize("cut", [5, 20, 60, 120, 200])
def test_a_header_that_is_cut_short_is_told(tmp_path: Path, cut: int) -> None:
    for name in ("a.safetensors", "a.gguf"):
        assert find_damage(put(tmp_path, name, WHOLE[name][:cut]))


def test_the_sandboxs_model_files_are_whole() -> None:
    files = list((ROOT / "sandbox" / "comfyui" / "models").rglob("*.*"))
    assert len(files) == 5
    assert [find_damage(file) for file in files] == [""] * 5
