"""A ComfyUI that no longer fits is noticed before a customer does, and so is its mending."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import Box
from tests.film.test_fitness import degraded

LACKS = {
    "a pack": ("MISSING_NODES", "LTX2_NAG", "comfyui_missing_node", "install ComfyUI-KJNodes"),
    "a model file": (
        *("MISSING_MODELS", "gemma-3-12b-it-qat-Q4_K_M.gguf", "comfyui_missing_model"),
        "Put gemma-3-12b-it-qat-Q4_K_M.gguf into ComfyUI's models/text_encoders",
    ),
    "an input of ours": (
        *("ADDED_INPUTS", "LTX2_NAG.strength", "comfyui_rejected"),
        "LTX2_NAG of ComfyUI-KJNodes wants an input strength",
    ),
}


@pytest.fixture
def environ(box: Box) -> Path:
    """What every ComfyUI that boots from here on finds in its environment."""
    environ, python = box.folder / "environ", box.folder / "python"
    environ.touch()
    python.write_text(f'#!/bin/sh\n. "{environ}"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    box.settings["COMFYUI_PYTHON"] = str(python)
    return environ


@pytest.mark.parametrize(("what", "name", "code", "told"), LACKS.values(), ids=LACKS)
def test_no_job_is_taken_with_a_comfyui_that_does_not_fit_until_it_is_mended(
    box: Box, environ: Path, what: str, name: str, code: str, told: str
) -> None:
    environ.write_text(f"export LOOKALIKE_{what}={name}\n")
    job = box.add_job(maxAttempts=1)
    worker = box.start("run")
    beat = box.hosted.wait("heartbeat", where=degraded)
    assert beat["data"]["progress"]["stage"] == f"degraded: {code}"
    assert told in worker.log
    assert "To see the GUI" in worker.log, "the last lines of ComfyUI's log are not told"
    assert not box.hosted.events("claim")
    environ.write_text("")
    assert box.await_outcome(job)["kind"] == "complete", worker.log
    assert worker.log.count(" degraded ") == worker.log.count(" recovered") == 1
    assert box.hosted.job(job)["attempts"] == 1


def test_a_pack_that_changes_between_two_jobs_is_noticed_before_the_second_is_taken(
    box: Box, environ: Path
) -> None:
    first = box.add_job()
    worker = box.start("run")
    assert box.await_outcome(first)["kind"] == "complete", worker.log
    environ.write_text("export LOOKALIKE_ADDED_INPUTS=LTX2_NAG.strength\n")
    second = box.add_job()
    box.hosted.wait("heartbeat", where=degraded)
    assert not box.hosted.events("claim", job=second)


def test_run_once_ends_with_1_and_takes_no_job_that_it_cannot_make(box: Box, environ: Path) -> None:
    environ.write_text("export LOOKALIKE_MISSING_NODES=VHS_VideoCombine\n")
    box.add_job()
    worker = box.run_once()
    assert worker.process.returncode == 1, worker.log
    assert "install ComfyUI-VideoHelperSuite" in worker.log
    assert not box.hosted.events("claim")
