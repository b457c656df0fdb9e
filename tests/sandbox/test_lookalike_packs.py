"""The look-alike imports and runs the worker's own node pack, as the real ComfyUI does."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.conftest import Start
from tests.sandbox.lookalike import (
    CORE_GEMMA,
    PACKS,
    PATIENCE_S,
    Json,
    Lookalike,
    flf2v,
    from_files,
    key_of,
    pack_flags,
    payload,
    texts,
)

NODES = {
    "LTXWorkerSaveConditioning",
    "LTXWorkerLoadConditioning",
    "LTXWorkerHoldTextEncoder",
    "LTXWorkerRestTextEncoder",
}
BOTH = ("walk on", "blurry")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packs")


@pytest.fixture(scope="module")
def packed(home: Path) -> Iterator[Lookalike]:
    """One that has the pack, and has read both texts of the recipe."""
    running = Lookalike(home / "own", *pack_flags(home), "--cache-none").ready().upload_pair()
    running.run(texts(*BOTH))
    yield running
    running.end()


def film(comfyui: Lookalike, graph: Json) -> bytes:
    prompt_id, _ = comfyui.run(graph)
    return Path(comfyui.video(prompt_id)["fullpath"]).read_bytes()


def test_it_knows_the_pack_and_tells_of_it_as_of_any_other(packed: Lookalike) -> None:
    known = packed.get("/object_info").json()
    assert {*known} >= NODES
    save = packed.get("/object_info/LTXWorkerSaveConditioning").json()["LTXWorkerSaveConditioning"]
    assert save["input"]["required"]["conditioning"] == ["CONDITIONING"]
    assert save["input_order"] == {"required": ["conditioning", "key"], "optional": ["after"]}
    assert save["output"] == ["LTX_WORKER_DONE"]
    assert save["output_node"] is True
    assert save["python_module"] == "custom_nodes.ltx_worker_nodes"
    assert save["description"].startswith("ltx-worker node pack ")


def test_without_the_flag_the_pack_is_unknown(comfyui: Lookalike) -> None:
    assert not NODES & {*comfyui.get("/object_info").json()}
    answer = comfyui.submit(texts("walk on"))
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "missing_node_type"


def test_what_it_read_is_kept_in_files_for_the_owner_alone(packed: Lookalike, home: Path) -> None:
    files = {path.name: path for path in (home / "conditioning").iterdir()}
    assert {*files} == {key_of(text) for text in BOTH}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o600}


def test_a_film_from_files_is_the_film_with_the_encoder_in_its_graph(packed: Lookalike) -> None:
    for seed in (1, 2):
        assert film(packed, from_files(seed=seed)) == film(packed, flf2v(seed=seed))


@pytest.mark.parametrize("mixed_up", [("blurry", "blurry"), ("walk on", "walk on"), BOTH[::-1]])
def test_a_text_that_is_not_its_own_makes_another_film(
    packed: Lookalike, mixed_up: tuple[str, str]
) -> None:
    assert film(packed, from_files(*mixed_up)) != film(packed, flf2v())


def test_what_a_saver_drops_makes_another_film(packed: Lookalike, home: Path) -> None:
    file = home / "conditioning" / key_of("walk on")
    whole = file.read_bytes()
    right = film(packed, from_files())
    lossy = home / "lossy.py"
    lossy.write_text(LOSSY.format(pack=str(PACKS / "ltx_worker_nodes").replace(".", "_x_")))
    other = (
        Lookalike(home / "other", *pack_flags(home), *own_flags(home / "lossy", lossy))
        .ready()
        .upload_pair()
    )
    try:
        graph = texts("walk on")
        graph["30"]["class_type"] = "LossySave"
        other.run(graph)
        assert file.read_bytes() != whole
        assert film(other, from_files()) != right
    finally:
        other.end()
        file.write_bytes(whole)


LOSSY = """
import sys
pack = sys.modules[{pack!r}]
class LossySave(pack.LTXWorkerSaveConditioning):
    def run(self, conditioning, key, after=None):
        return super().run([[tensor, {{}}] for tensor, _ in conditioning], key)
NODE_CLASS_MAPPINGS = {{"LossySave": LossySave}}
"""


def own_flags(folder: Path, pack: Path) -> list[str]:
    """A configuration as people write it, with a pack of their own in a file."""
    (folder / "packs").mkdir(parents=True)
    pack.rename(folder / "packs" / pack.name)
    file = folder / "extra_model_paths.yaml"
    file.write_text(
        f"# mine\nmine:\n    base_path: {folder}\n    custom_nodes: packs\n"
        "    checkpoints: |\n        models/checkpoints\n        more\n"
    )
    return ["--extra-model-paths-config", str(file)]


def test_the_core_loader_reads_safetensors_and_the_gguf_node_reads_them_wrong(
    packed: Lookalike, start: Start, tmp_path: Path
) -> None:
    loaders = packed.get("/object_info").json()
    core = loaders["DualCLIPLoader"]["input"]["required"]["clip_name1"][0]
    gguf = loaders["DualCLIPLoaderGGUF"]["input"]["required"]["clip_name1"][0]
    assert CORE_GEMMA in core
    assert not [name for name in core if name.endswith(".gguf")]
    assert {*core} < {*gguf}

    def kept(loader: str) -> bytes:
        graph = texts("walk on", encoder=CORE_GEMMA)
        graph["1"]["class_type"] = loader
        file = tmp_path / "conditioning" / key_of("walk on")
        file.unlink(missing_ok=True)
        comfyui.run(graph)
        return file.read_bytes()

    comfyui = start(*pack_flags(tmp_path)).ready()
    assert kept("DualCLIPLoader") == kept("DualCLIPLoader") != kept("DualCLIPLoaderGGUF")


def test_a_key_that_is_none_and_a_file_that_is_missing_are_refused(packed: Lookalike) -> None:
    graph = from_files()
    for key, reason in ((key_of("unread"), "is missing."), ("../etc", "is 64 hex characters")):
        graph["3"]["inputs"]["key"] = key
        answer = packed.submit(graph)
        assert answer.status_code == 400
        (error,) = answer.json()["node_errors"]["3"]["errors"]
        assert error["type"] == "custom_validation_failed"
        assert error["extra_info"] == {"input_name": "key"}
        assert reason in error["details"]


def test_a_damaged_file_is_an_error_of_the_node_that_loads_it(
    packed: Lookalike, home: Path
) -> None:
    file = home / "conditioning" / key_of("walk on")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    try:
        _, messages = packed.run(from_files())
    finally:
        file.write_bytes(whole)
    error = payload(messages, "execution_error")
    assert (error["node_type"], error["node_id"]) == ("LTXWorkerLoadConditioning", "3")
    assert "delete it and encode it again" in error["exception_message"]
    assert error["exception_type"].endswith("ltx_worker_nodes.ConditioningError")


def test_a_known_text_is_not_read_twice_and_a_lost_file_is_written_again(
    start: Start, tmp_path: Path
) -> None:
    comfyui = start(*pack_flags(tmp_path)).ready()

    def executed() -> set[str]:
        _, messages = comfyui.run(texts("walk on"))
        return {data["node"] for kind, data in messages if kind == "executing"} - {None}

    file = tmp_path / "conditioning" / key_of("walk on")
    assert executed() == {"1", "20", "30", "4"}
    # The file was not there when the cache was asked, so its second run is the last.
    assert executed() == {"30", "4"}
    assert executed() == {"4"}
    file.unlink()
    assert executed() == {"30", "4"}
    assert file.exists()


def test_what_cannot_be_imported_is_logged_and_left_out_and_the_rest_comes(
    start: Start, tmp_path: Path
) -> None:
    packs = tmp_path / "packs"
    (packs / "broken").mkdir(parents=True)
    (packs / "broken" / "__init__.py").write_text("import no_such_module")
    (packs / "good.py").write_text("NODE_CLASS_MAPPINGS = {}")
    (packs / "old.py.disabled").write_text("import no_such_module")
    (packs / "no_pack.py").write_text("")
    (packs / "notes.txt").write_text("no module")
    (packs / "__pycache__").mkdir()
    comfyui = start(*pack_flags(tmp_path, packs))
    seen = comfyui.wait_for_line("To see the GUI go to")
    assert f"Cannot import {packs / 'broken'} module for custom nodes: No module named" in seen
    assert f"seconds (IMPORT FAILED): {packs / 'broken'}\n" in seen
    assert f"Skip {packs / 'no_pack.py'} module" in seen
    assert f"seconds: {packs / 'good.py'}\n" in seen
    assert not [name for name in ("old.py", "notes.txt", "__pycache__") if name in seen]


def test_packs_can_be_switched_off_but_for_some(start: Start, tmp_path: Path) -> None:
    off = ["--disable-all-custom-nodes"]
    kept = ["--whitelist-custom-nodes", "ltx_worker_nodes"]
    without = start(*pack_flags(tmp_path), *off).ready()
    alone = start(*pack_flags(tmp_path), *off, *kept).ready()
    assert without.get("/object_info/LTXWorkerLoadConditioning").json() == {}
    assert alone.get("/object_info/LTXWorkerLoadConditioning").json()


@pytest.mark.parametrize("content", [None, '{"a": {"custom_nodes": "/\x7f"}}', "no yaml"])
def test_a_file_of_folders_that_cannot_be_read_ends_it(
    start: Start, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "paths.yaml"
    if content is not None:
        file.write_text(content)
    assert start("--extra-model-paths-config", str(file)).process.wait(PATIENCE_S) == 1


def test_a_pack_does_not_take_the_place_of_a_node_that_is_there(
    start: Start, tmp_path: Path
) -> None:
    packs = tmp_path / "packs"
    packs.mkdir()
    (packs / "greedy.py").write_text(GREEDY)
    comfyui = start(*pack_flags(tmp_path, packs)).ready()
    known = comfyui.get("/object_info/LoadImage").json()["LoadImage"]
    assert known["python_module"] == "nodes"


GREEDY = """
class Greedy:
    RETURN_TYPES = ()
    FUNCTION = "run"
    @classmethod
    def INPUT_TYPES(cls):
        return {}
NODE_CLASS_MAPPINGS = {"LoadImage": Greedy}
"""
