"""The doctor says whether a job's texts are read once and, where not, what to type."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ltx.cancellation import Cancellation
from ltx.operator.checks import CHECKS
from ltx.operator.doctor import examine
from ltx.operator.findings import DoctorContext, Finding
from ltx.settings import Settings
from sandbox.client import ROOT, Hosted
from tests.comfyui.test_model_files import yaml_python
from tests.conftest import Box, foreign_comfyui

LOOKALIKE = ROOT / "sandbox" / "comfyui"
GEMMA = "gemma-3-12b-it-qat-Q4_K_M.gguf"


@pytest.fixture
def box(tmp_path: Path, session_hosted: Hosted) -> Iterator[Box]:
    box = Box(tmp_path, session_hosted)
    box.settings["LTX_TEXT"] = "job"
    yield box
    session_hosted.clear_comfyui_script()


def look(box: Box, **changes: str) -> Finding:
    """What is said of texts, with a ComfyUI that was booted for the look."""
    context = DoctorContext(Settings.load(box.environ(**changes)), Cancellation())
    asked = [check for check in CHECKS if check.name in ("state", "comfyui", "texts")]
    with context.undo:
        found = list(examine(context, asked))
    *others, finding = found
    assert [one.status for one in others] == ["OK", "OK"], others
    return finding


def own_comfyui(box: Box) -> Path:
    """A look-alike that may be changed."""
    return Path(shutil.copytree(LOOKALIKE, box.folder / "ComfyUI"))


def test_a_good_box_reads_texts_once(box: Box) -> None:
    found = look(box)
    assert (found.status, found.next) == ("OK", "")
    assert "ltx-worker node pack 1" in found.detail


def test_ltx_text_clip_is_no_complaint(box: Box) -> None:
    found = look(box, LTX_TEXT="clip")
    assert (found.status, found.detail[:14]) == ("OK", "LTX_TEXT=clip:")


def test_a_foreign_comfyui_is_no_complaint(box: Box) -> None:
    with foreign_comfyui(box):
        found = look(box)
    assert found.status == "OK"
    assert "not the worker's own" in found.detail


def test_nodes_that_comfyui_did_not_load_are_told_with_what_shows_why(box: Box) -> None:
    found = look(box, LOOKALIKE_MISSING_NODES="LTXWorkerLoadConditioning")
    assert found.status == "WARN"
    assert "did not load the worker's nodes" in found.detail
    # What it says to type boots ComfyUI with the pack, and its log tells of it.
    done = subprocess.run(found.next, shell=True, capture_output=True, text=True, env=box.environ())
    assert done.returncode == 0, done.stderr
    assert "ltx_worker_nodes" in done.stderr


def test_other_nodes_of_the_same_name_are_told_with_what_finds_them(box: Box) -> None:
    nodes = box.folder / "packs" / "copied"
    nodes.mkdir(parents=True)
    pack = (ROOT / "ltx/comfyui/nodes/ltx_worker_nodes/__init__.py").read_text()
    (nodes / "__init__.py").write_text(pack.replace("\nVERSION = 1\n", "\nVERSION = 0\n"))
    paths = box.folder / "mine.yaml"
    paths.write_text(f'{{"mine": {{"custom_nodes": "{nodes.parent}"}}}}')
    python = yaml_python(box.folder)
    found = look(box, COMFYUI_ARGS=f"--extra-model-paths-config {paths}", COMFYUI_PYTHON=python)
    assert found.status == "WARN"
    assert "node pack 0" in found.detail
    lines = subprocess.run(found.next, shell=True, capture_output=True, text=True).stdout
    assert str(nodes) in lines


def test_a_folder_that_cannot_be_used_is_told(box: Box) -> None:
    look(box)
    folder = box.state / "conditioning"
    folder.rmdir()
    folder.write_text("in the way")
    found = look(box)
    assert (found.status, str(folder) in found.detail) == ("WARN", True)
    assert found.next.startswith(f"ls -ld {folder};")


def test_an_encoder_that_comfyui_finds_and_the_worker_does_not_is_told(box: Box) -> None:
    comfyui = own_comfyui(box)
    (comfyui / "models" / "text_encoders" / GEMMA).unlink()
    found = look(box, COMFYUI_DIR=str(comfyui))
    assert found.status == "WARN"
    assert f"{GEMMA} is in no folder" in found.detail
    assert found.next == f"ls -lL {comfyui}/models/text_encoders"


def test_model_files_that_lie_elsewhere_are_not_called_whole(box: Box) -> None:
    comfyui = own_comfyui(box)
    shutil.rmtree(comfyui / "models")
    context = DoctorContext(Settings.load(box.environ(COMFYUI_DIR=str(comfyui))), Cancellation())
    [found] = examine(context, [check for check in CHECKS if check.name == "models"])
    assert (found.status, "none was looked at" in found.detail) == ("OK", True)


@pytest.mark.parametrize("cut", [4, -1])
def test_a_model_file_that_is_cut_short_fails_with_its_name(box: Box, cut: int) -> None:
    comfyui = own_comfyui(box)
    files = [
        path
        for path in (comfyui / "models").rglob("*-*")
        if path.name != "gemma-3-12b-it-Q4_K_M.gguf"
    ]
    for path in files:
        path.write_bytes(path.read_bytes()[:cut])
    context = DoctorContext(Settings.load(box.environ(COMFYUI_DIR=str(comfyui))), Cancellation())
    found = list(examine(context, [check for check in CHECKS if check.name == "models"]))
    assert [one.status for one in found] == ["FAIL"] * 3
    assert {one.next for one in found} == {f"ls -lL {path}" for path in files}
