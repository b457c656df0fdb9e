"""The graph is checked against /object_info: what ComfyUI would refuse, or silently leave out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltx.comfyui.answers import Misfit, find_gaps
from ltx.comfyui.workflow import ClipSpec, build_workflow
from ltx.errors import JobError
from ltx.operator.comfyui_checks import name_the_older
from ltx.settings import Settings, Size
from sandbox.client import ROOT
from tests.ground.test_settings import NEEDED

sys.path.insert(0, str(ROOT / "sandbox" / "comfyui"))

from schemas import VERSIONS, load_schemas

Info = dict[str, Any]
SPEC = ClipSpec(0, "first.png", "last.png", "", 0, "probe", Size(256, 160))


def gaps(info: Info) -> list[JobError]:
    return list(find_gaps(build_workflow(SPEC, Settings.load(NEEDED)), info))


def add_required(info: Info) -> None:
    info["LTX2_NAG"]["input"]["required"]["strength"] = ["FLOAT", {"default": 1.0}]


def add_required_to_option(info: Info) -> None:
    pins = info["LTXVImgToVideoInplaceKJ"]["input"]["required"]["num_images"]
    for option in pins[1]["options"]:
        option["inputs"]["required"]["mode"] = ["STRING", {}]


def rename_input(info: Info) -> None:
    required = info["LTX2_NAG"]["input"]["required"]
    required["scale"] = required.pop("nag_scale")


def drop_choice(info: Info) -> None:
    info["ImageScale"]["input"]["required"]["crop"] = [["disabled"]]


def drop_key(info: Info) -> None:
    pins = info["LTXVImgToVideoInplaceKJ"]["input"]["required"]["num_images"]
    pins[1]["options"] = [one for one in pins[1]["options"] if one["key"] != "2"]


def change_type(info: Info) -> None:
    info["CFGGuider"]["input"]["required"]["model"] = ["MODEL_V2"]


def drop_output(info: Info) -> None:
    info["LTXVConditioning"]["output"] = ["CONDITIONING"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (add_required, ["LTX2_NAG of ComfyUI-KJNodes wants an input strength"]),
        (add_required_to_option, ["wants an input num_images.mode"]),
        (rename_input, ["wants an input scale", "has no input nag_scale"]),
        (drop_choice, ["ImageScale of ComfyUI knows no crop 'center'"]),
        (drop_key, ["knows no num_images '2'"]),
        (change_type, ["CFGGuider of ComfyUI takes no output 0 of LTX2_NAG as model"]),
        (drop_output, ["CFGGuider of ComfyUI takes no output 1 of LTXVConditioning as negative"]),
    ],
)
def test_a_graph_that_comfyui_would_refuse_is_told(
    version: str, spoil: Callable[[Info], None], words: list[str]
) -> None:
    info = json.loads(json.dumps(load_schemas(version)))
    assert gaps(info) == []
    spoil(info)
    found = gaps(info)
    for word in words:
        assert [gap for gap in found if word in gap.detail], (word, found)
    for gap in found:
        assert (gap.code, gap.machine, gap.report()["retryable"]) == (
            "comfyui_rejected", True, True
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["*", "MODEL,OTHER", "COMFY_MATCHTYPE_V3"])
def test_a_link_to_an_input_of_several_types_is_right(kind: str) -> None:
    info = json.loads(json.dumps(load_schemas()))
    info["CFGGuider"]["input"]["required"]["model"] = [kind]
    assert gaps(info) == []


def clone(folder: Path, date: str) -> Path:
    """A repository whose last commit is of this date."""
    folder.mkdir(parents=True)
    who = dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "n")
    who |= dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "e@example")
    who |= dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), f"{date}T12:00:00Z")
    environ = {"PATH": os.environ["PATH"], **who}
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", str(folder), *command], env=environ, check=True)
    return folder


@pytest.mark.parametrize(
    ("pack", "worker", "older"),
    [
        ("2026-01-02", "2026-03-04", "ComfyUI-KJNodes"),
        ("2026-03-04", "2026-01-02", "ltx-worker"),
        ("", "2026-01-02", "ltx-worker"),
    ],
)
def test_the_doctor_says_which_side_is_older_and_how_to_update_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: str, worker: str, older: str
) -> None:
    comfyui = clone(tmp_path / "ComfyUI", "2020-01-01")
    if pack:
        clone(comfyui / "custom_nodes" / "ComfyUI-KJNodes", pack)
    (comfyui / "custom_nodes" / "ComfyUI-KJNodes").mkdir(parents=True, exist_ok=True)
    (comfyui / "main.py").touch()
    ours = clone(tmp_path / "ltx-worker", worker)
    monkeypatch.setattr("ltx.operator.comfyui_checks.ENV_FILE", ours / ".env")
    settings = Settings.load({**NEEDED, "COMFYUI_DIR": str(comfyui), "PATH": os.environ["PATH"]})
    info = {"python_module": "custom_nodes.ComfyUI-KJNodes"}
    detail, then = name_the_older(Misfit("LTX2_NAG", info, "has no input x"), settings)
    assert f"ComfyUI-KJNodes is of {pack or 'an unknown date'}, ltx-worker is of {worker}" in detail
    [folder] = [path for path in tmp_path.rglob(older) if path.is_dir()]
    assert then == f"git -C {folder} pull"
