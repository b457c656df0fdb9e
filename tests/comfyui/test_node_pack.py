"""What the node pack promises to the worker, and to whoever shares the ComfyUI."""

from __future__ import annotations

import ast
import math
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.comfyui.conftest import PACK, Tensor

KEY, OTHER = "0a" * 32, "1b" * 32
BAD_KEYS = ("", "0a", "0A" * 32, "0a" * 32 + "\n", "../" + "a" * 61, "/etc/passwd", "0a" * 33)


def conditioning() -> list[list[Any]]:
    deep = {"attention_mask": Tensor([1, 0]), "more": {"deep": [Tensor([3.5])]}}
    return [[Tensor([1, 2]), {"unprocessed_ltxav_embeds": True, "pooled_output": None, **deep}]]


def in_ram(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {name: in_ram(part) for name, part in value.items()}
    return [in_ram(part) for part in value] if isinstance(value, list) else value


def test_a_conditioning_comes_back_with_all_its_options_and_in_ram(pack: Any) -> None:
    pack.SaveConditioning().run(conditioning(), KEY)
    assert pack.LoadConditioning().run(KEY) == (in_ram(conditioning()),)


def test_a_file_is_for_its_owner_alone_and_nothing_is_left_beside_it(
    pack: Any, files: Path
) -> None:
    for _ in range(2):
        pack.SaveConditioning().run(conditioning(), KEY)
    assert [path.name for path in files.iterdir()] == [KEY]
    assert stat.S_IMODE((files / KEY).stat().st_mode) == 0o600


def test_an_option_that_a_safe_load_would_refuse_is_an_error_and_not_left_out(
    pack: Any, files: Path
) -> None:
    with pytest.raises(pack.Error, match="a SimpleNamespace in it"):
        pack.SaveConditioning().run([[Tensor([1]), {"hooks": SimpleNamespace()}]], KEY)
    assert not list(files.iterdir())


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_is_not_64_hex_characters_is_refused_everywhere(pack: Any, key: str) -> None:
    for node in (pack.SaveConditioning, pack.LoadConditioning):
        assert "64 hex" in node.VALIDATE_INPUTS(key)
    with pytest.raises(pack.Error, match="64 hex"):
        pack.SaveConditioning().run(conditioning(), key)
    with pytest.raises(pack.Error, match="64 hex"):
        pack.LoadConditioning().run(key)


def test_a_missing_file_is_refused_before_anything_runs(pack: Any) -> None:
    assert pack.LoadConditioning.VALIDATE_INPUTS(KEY) == f"Conditioning {KEY} is missing."
    assert pack.SaveConditioning.VALIDATE_INPUTS(KEY) is True
    with pytest.raises(pack.Error, match=f"{KEY} is missing"):
        pack.LoadConditioning().run(KEY)


def test_a_damaged_file_is_an_error_that_says_what_to_do(pack: Any, files: Path) -> None:
    pack.SaveConditioning().run(conditioning(), KEY)
    whole = (files / KEY).read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for damaged in (b"", whole[:20], whole[:-1], bytes(flipped), whole + b"\0", b"\n" + whole):
        (files / KEY).write_bytes(damaged)
        with pytest.raises(pack.Error, match="delete it and encode it again"):
            pack.LoadConditioning().run(KEY)


def test_a_file_of_another_key_or_version_is_never_served(pack: Any, files: Path) -> None:
    pack.SaveConditioning().run(conditioning(), KEY)
    whole = (files / KEY).read_bytes()
    of_next_version = whole.replace(b"%d" % pack.version, b"%d" % (pack.version + 1), 1)
    for strange in (whole.replace(KEY.encode(), OTHER.encode()), of_next_version):
        (files / KEY).write_bytes(strange)
        with pytest.raises(pack.Error, match="damaged"):
            pack.LoadConditioning().run(KEY)


def test_the_cache_of_comfyui_sees_a_file_that_changed_or_went(pack: Any, files: Path) -> None:
    for node in (pack.SaveConditioning, pack.LoadConditioning):
        (files / KEY).unlink(missing_ok=True)
        assert math.isnan(node.IS_CHANGED(KEY))
        pack.SaveConditioning().run(conditioning(), KEY)
        first = node.IS_CHANGED(KEY)
        assert first == node.IS_CHANGED(KEY)
        pack.SaveConditioning().run([[Tensor([9]), {}]], KEY)
        assert node.IS_CHANGED(KEY) != first


def test_holding_an_encoder_does_not_touch_the_gpu(pack: Any, gpu: list[str]) -> None:
    pack.HoldTextEncoder().run(clip=object())
    assert gpu == []


def test_a_resting_encoder_gives_its_memory_back_at_once_and_every_time(
    pack: Any, gpu: list[str]
) -> None:
    pack.RestTextEncoder().run(clip=object(), after=KEY)
    assert gpu == ["unload", "empty"]
    assert math.isnan(pack.RestTextEncoder.IS_CHANGED(clip=None, after=None))


def test_rest_runs_after_the_last_saver(pack: Any) -> None:
    done = pack.SaveConditioning.RETURN_TYPES[0]
    for node in (pack.SaveConditioning, pack.RestTextEncoder):
        assert node.INPUT_TYPES()["optional"] == {"after": (done,)}


def test_every_node_tells_the_version_of_the_pack(pack: Any) -> None:
    for name in ("SaveConditioning", "LoadConditioning", "HoldTextEncoder", "RestTextEncoder"):
        told = getattr(pack, name).DESCRIPTION
        assert told == f"ltx-worker node pack {pack.version}"


def test_the_pack_lies_alone_and_imports_nothing_of_ours() -> None:
    beside = {path.name for path in PACK.parents[1].iterdir()}
    assert beside - {"__pycache__"} == {"ltx_worker_nodes"}
    tree = ast.parse(PACK.read_text())
    names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert not {name for name in names if name and name.split(".")[0] == "ltx"}
