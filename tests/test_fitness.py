"""A box that cannot do the work takes none, says why, and comes back by itself."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ltx_worker import Size, job_bytes
from tests.conftest import Box

FAILS_TO_BOOT = {"on": "boot", "kind": "exit", "rc": 1, "message": "CUDA driver is too old"}


@pytest.fixture
def small_disk(box: Box) -> Iterator[Path]:
    """A state folder on a file system of its own that is too small for a job."""
    box.state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(box.state)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield box.state
    for worker in box.running:
        worker.end()
    subprocess.run(["umount", str(box.state)], check=True)


def degraded(event: dict[str, Any]) -> bool:
    return bool(event["data"]["status"] == "degraded")


def test_three_failures_of_the_box_in_a_row_end_claiming_until_a_probe_passes(box: Box) -> None:
    box.hosted.script_comfyui(*[FAILS_TO_BOOT] * (2 * 3 + 1))
    failing = [box.add_job() for _ in range(3)]
    worker = box.start("run")
    for job in failing:
        assert box.hosted.wait("fail", job=job)["data"]["error"]["code"] == "comfyui_unavailable"
    waiting = box.add_job()
    beat = box.hosted.wait("heartbeat", where=degraded)
    assert beat["data"]["progress"]["stage"] == "degraded: comfyui_unavailable"
    probe = box.hosted.wait("comfyui.ready")
    claim = box.hosted.wait("claim", job=waiting)
    assert probe["seq"] < claim["seq"]
    box.hosted.wait("complete", job=waiting)
    assert worker.log.count(" degraded ") == 1
    assert worker.log.count(" fit_again") == 1
    assert "CUDA driver is too old" in worker.log
    box.hosted.wait("heartbeat", after=box.hosted.now(), where=lambda event: not degraded(event))


def test_bad_jobs_say_nothing_about_the_box(box: Box) -> None:
    for _ in range(4):
        box.hosted.add_stage({"frames": "none"})
    good = box.add_job()
    box.start("run")
    box.hosted.wait("complete", job=good)
    assert not [beat for beat in box.hosted.events(kind="heartbeat") if degraded(beat)]


def test_no_job_is_claimed_when_the_disk_cannot_hold_one(box: Box, small_disk: Path) -> None:
    box.add_job()
    worker = box.start("run")
    beat = box.hosted.wait("heartbeat", where=degraded)
    assert beat["data"]["progress"]["stage"] == "degraded: media_failed"
    box.hosted.wait("heartbeat", after=beat["seq"], where=degraded)
    assert not box.hosted.events(kind="claim")
    assert "MB are free in STATE_DIR" in worker.log


def test_what_a_job_may_need_follows_the_size_of_the_film() -> None:
    assert 2 * 2**30 < job_bytes(Size(1920, 1080)) < 3 * 2**30
    assert job_bytes(Size(256, 144)) < 2**29
