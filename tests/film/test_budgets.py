"""Budgets: a clip and a job have so many seconds, however ComfyUI fails to come back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Box, foreign_comfyui, serving

# Long enough for a busy machine to get as far as the fault; waiting costs no processor.
BUDGET_S = "6"
BUDGET = {"CLIP_TIMEOUT_S": "clip_timeout", "JOB_TIMEOUT_S": "job_timeout"}


def on_prompt(kind: str, **details: Any) -> dict[str, Any]:
    return {"on": "prompt", "kind": kind, **details}


@pytest.fixture(scope="module", params=BUDGET)
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Box, str]]:
    """A serving worker with one short budget, and the code of what exceeds it."""
    with serving(tmp_path_factory.mktemp("budgets"), **{request.param: BUDGET_S}) as box:
        yield box, BUDGET[request.param]


@pytest.mark.parametrize(
    "stuck",
    [on_prompt("hang"), on_prompt("hang", deaf=True), on_prompt("freeze")],
    ids=["hung", "deaf", "frozen"],
)
def test_a_stuck_comfyui_is_interrupted_then_ended_and_the_worker_goes_on(
    stage: tuple[Box, str], stuck: dict[str, Any]
) -> None:
    box, code = stage
    hosted, began = box.hosted, box.hosted.now()
    hosted.script_comfyui(stuck)
    job = box.add_job()
    outcome = box.await_outcome(job)
    assert outcome["kind"] == "fail"
    assert outcome["data"]["error"]["code"] == code
    assert outcome["data"]["error"]["retryable"] is True
    assert f"within {BUDGET_S} s" in outcome["data"]["error"]["message"]
    (prompt,) = hosted.events("comfyui.prompt", after=began)
    asked = [event["data"] for event in hosted.events("comfyui.interrupt", after=began)]
    # A stopped process cannot tell that it was asked.
    assert [(one["promptId"], one["heard"]) for one in asked] == (
        [] if stuck["kind"] == "freeze" else [(prompt["data"]["promptId"], True)]
    )
    assert box.children() == []
    assert "3/8" in box.running[-1].log.partition(f"claimed job={job}")[2]
    hosted.wait("pending", after=outcome["seq"])


def test_a_second_attempt_has_only_what_the_first_left_of_the_clips_time(box: Box) -> None:
    """Each attempt alone would do: the clip is lost because both count."""
    box.hosted.script_comfyui(on_prompt("kill", at=7))
    job = box.add_job()
    worker = box.run_once(CLIP_TIMEOUT_S="7", LOOKALIKE_STEP_S="0.5")
    assert box.failure(job)["code"] == "clip_timeout", worker.log
    assert "clip_retry" in worker.log
    assert box.children() == []


def test_a_job_whose_clips_exceed_its_time_together_is_ended(box: Box) -> None:
    """Each clip alone would do."""
    job = box.add_job(clips=2)
    worker = box.run_once(JOB_TIMEOUT_S="7", LOOKALIKE_STEP_S="0.4")
    assert box.failure(job)["code"] == "job_timeout", worker.log
    assert box.children() == []


def test_a_clip_is_not_begun_when_the_jobs_time_is_over(box: Box) -> None:
    """It runs out while the second clip's ComfyUI boots, which then gets no prompt."""
    box.hosted.script_comfyui(
        {"on": "boot", "kind": "slow", "seconds": 0}, {"on": "boot", "kind": "hang"}
    )
    job = box.add_job(clips=2)
    worker = box.run_once(JOB_TIMEOUT_S="5")
    assert box.failure(job)["code"] == "job_timeout", worker.log
    assert len(box.hosted.events("comfyui.prompt")) <= 1
    assert box.children() == []


def test_downloads_count_towards_the_jobs_time(box: Box) -> None:
    """Nothing is rendered once it is over, and the ComfyUI that waited is ended."""
    box.hosted.fault("GET /frames/*", blackhole=True)
    job = box.add_job()
    worker = box.run_once(JOB_TIMEOUT_S="1.5")
    assert box.failure(job)["code"] == "job_timeout", worker.log
    assert box.hosted.events("comfyui.prompt") == []
    assert box.children() == []


def test_a_stuck_foreign_comfyui_is_interrupted_but_never_ended(box: Box) -> None:
    """The next job is delivered by the same process."""
    box.hosted.script_comfyui(on_prompt("hang"))
    with foreign_comfyui(box) as foreign:
        stuck, good = box.add_job(), box.add_job()
        worker = box.start("run", CLIP_TIMEOUT_S="8")
        outcome = box.await_outcome(stuck)
        assert outcome["data"]["error"]["code"] == "clip_timeout"
        assert box.await_outcome(good)["kind"] == "complete", worker.log
        assert foreign.process.poll() is None
        assert len(box.hosted.events("comfyui.boot")) == 1
