"""Which texts need no encoding, and that the folder of those read stays small and private."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from ltx.comfyui.conditioning import (
    HOLD_NODE,
    LOAD_NODE,
    NODES_FOLDER,
    PACK_DESCRIPTION,
    PACK_VERSION,
    REST_NODE,
    SAVE_NODE,
    ConditioningFiles,
    ModelFile,
    conditioning_key,
)
from tests.comfyui.conftest import PACK, Tensor

GEMMA, PROJECTION = ModelFile("gemma.gguf", 7, 11), ModelFile("projection.safetensors", 2, 13)
KEYS = [f"{n:064x}" for n in range(4)]


def keep(pack: Any, key: str, numbers: int = 1) -> None:
    pack.SaveConditioning().run([[Tensor([0.5] * numbers), {"pooled_output": None}]], key)


def test_a_key_changes_with_everything_that_a_conditioning_depends_on() -> None:
    def key(text: str = "walk", model: ModelFile = GEMMA, version: str = "0.27.0") -> str:
        return conditioning_key(text, (model, PROJECTION), version)

    others = [
        key("walk on"),
        key("Walk"),
        key(version="0.21.0"),
        key(model=GEMMA._replace(name="other.gguf")),
        key(model=GEMMA._replace(size=8)),
        key(model=GEMMA._replace(mtime=12)),
        conditioning_key("walk", (PROJECTION, GEMMA), "0.27.0"),
    ]
    assert len({key(), *others}) == 1 + len(others)
    assert key() == key()


@pytest.mark.parametrize("text", ["", "\n", "../../etc", "\ud800", "é" * 10_000, '"], ["'])
def test_any_text_has_a_key_that_the_pack_takes(pack: Any, text: str) -> None:
    key = conditioning_key(text, (GEMMA, PROJECTION), "0.27.0")
    assert pack.SaveConditioning.VALIDATE_INPUTS(key) is True


def test_what_the_pack_wrote_is_known_and_nothing_else(pack: Any, files: Path) -> None:
    keep(pack, KEYS[0])
    store = ConditioningFiles(files)
    assert [store.has(key) for key in KEYS] == [True, False, False, False]


def test_a_damaged_file_is_deleted_so_that_its_text_is_read_again(pack: Any, files: Path) -> None:
    store = ConditioningFiles(files)
    keep(pack, KEYS[0])
    whole = (files / KEYS[0]).read_bytes()
    older = whole.replace(b"%d" % PACK_VERSION, b"0", 1)
    for damaged in (b"", whole[:-1], whole + b"\0", b"\xff" + whole, older):
        (files / KEYS[0]).write_bytes(damaged)
        assert not store.has(KEYS[0])
        assert not list(files.iterdir())


def test_the_least_recently_used_go_first_and_never_those_in_hand(pack: Any, files: Path) -> None:
    for age, key in enumerate(reversed(KEYS)):
        keep(pack, key, 100)
        os.utime(files / key, ns=(age, age))
    size = (files / KEYS[0]).stat().st_size
    store = ConditioningFiles(files, max_bytes=2 * size)
    assert store.has(KEYS[3])  # the oldest one is used again
    store.trim(in_hand=[KEYS[2]])
    assert sorted(path.name for path in files.iterdir()) == [KEYS[2], KEYS[3]]


def test_files_in_hand_stay_whatever_the_bound(pack: Any, files: Path) -> None:
    keep(pack, KEYS[0], 100)
    ConditioningFiles(files, max_bytes=1).trim(in_hand=KEYS)
    assert (files / KEYS[0]).exists()


def test_what_a_killed_comfyui_left_half_written_goes(pack: Any, files: Path) -> None:
    keep(pack, KEYS[0])
    (files / ".part-abc").write_bytes(b"half")
    ConditioningFiles(files).trim(in_hand=[])
    assert [path.name for path in files.iterdir()] == [KEYS[0]]


def test_the_folder_is_private_and_comfyui_is_told_where_it_and_the_pack_are(
    tmp_path: Path,
) -> None:
    folder = tmp_path / 'a "strange": folder #1 \N{SEEDLING}' / "conditioning"
    folder.mkdir(parents=True, mode=0o755)
    text = ConditioningFiles(folder).prepare().read_text()
    told = json.loads(text)
    assert "\N{SEEDLING}" in text  # YAML reads an escaped one as two halves
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert told["ltx_worker"]["ltx_worker_conditioning"] == str(folder)
    assert Path(told["ltx_worker"]["custom_nodes"]) == PACK.parents[1] == NODES_FOLDER


def test_the_worker_and_the_pack_mean_the_same_pack(pack: Any) -> None:
    assert pack.version == PACK_VERSION
    assert pack.LoadConditioning.DESCRIPTION == PACK_DESCRIPTION
    assert {SAVE_NODE, LOAD_NODE, HOLD_NODE, REST_NODE} == pack.names
