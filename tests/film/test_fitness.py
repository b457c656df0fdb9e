"""A box that cannot do the work takes none, says why, and comes back by itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ltx.errors import DISK_FULL
from ltx.job import job_bytes
from ltx.settings import Size
from tests.conftest import SIZE, Box
from tests.programs import preceded

# What tells ffmpeg's call of this moment from its others.
FFMPEG_AT = {"cutting": "*/0.part*", "encoding": "*trim=*"}
FAILS_TO_BOOT = {"on": "boot", "kind": "exit", "rc": 1, "message": "CUDA driver is too old"}


@pytest.fixture
def disk(box: Box, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The state folder, on a file system of its own of so many bytes."""
    box.state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(box.state)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield box.state
    for worker in box.running:
        worker.end()
    # Lazy, as a child of the worker may still be on its way out of it.
    subprocess.run(["umount", "--lazy", str(box.state)], check=True)


TOO_SMALL = 64 * 2**20
ROOMY = job_bytes(Size(*SIZE)) + 32 * 2**20


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """No room in there, to the last byte."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - 2**20)
        while True:
            file.write(bytes(2**12))
    yield
    filler.unlink()


def stop_at(box: Box, moment: str) -> str:
    """Has the job stopped, or slowed, at this moment; the PATH on which that works."""
    if moment == "downloading":
        box.hosted.fault("GET /frames/frame-1*", delay=4)
    elif moment == "rendering":
        box.hosted.script_comfyui({"on": "prompt", "kind": "slow", "factor": 10})
    for name in ("reached", "go"):
        os.mkfifo(box.folder / name)
    once = f'mkdir "{box.folder}/once" && echo up > "{box.folder}/reached"'
    stop = f'if {once}; then read -r _ < "{box.folder}/go"; fi'
    case = f'case "$*" in {FFMPEG_AT.get(moment, "never")}) {stop};; esac'
    return preceded(box.folder, "ffmpeg", case)


def await_moment(box: Box, moment: str) -> None:
    if moment in FFMPEG_AT:
        assert (box.folder / "reached").read_text() == "up\n"
    else:
        box.hosted.wait("fault" if moment == "downloading" else "comfyui.step")


def degraded(event: dict[str, Any]) -> bool:
    return bool(event["data"]["status"] == "degraded")


def test_three_failures_of_the_box_in_a_row_end_claiming_until_a_probe_passes(box: Box) -> None:
    box.hosted.script_comfyui(*[FAILS_TO_BOOT] * 50)
    failing = [box.add_job() for _ in range(3)]
    # The boots are counted, and one that reads texts would take some of the failures.
    worker = box.start("run")
    for job in failing:
        assert box.hosted.wait("fail", job=job)["data"]["error"]["code"] == "comfyui_unavailable"
    waiting = box.add_job()
    beat = box.hosted.wait("heartbeat", where=degraded)
    assert beat["data"]["progress"]["stage"] == "degraded: comfyui_unavailable"
    box.hosted.clear_comfyui_script()
    probe = box.hosted.wait("comfyui.ready")
    claim = box.hosted.wait("claim", job=waiting)
    assert probe["seq"] < claim["seq"]
    box.hosted.wait("complete", job=waiting)
    assert worker.log.count(" degraded ") == 1
    assert worker.log.count(" recovered") == 1
    assert "CUDA driver is too old" in worker.log
    box.hosted.wait("heartbeat", after=box.hosted.now(), where=lambda event: not degraded(event))


def test_bad_jobs_say_nothing_about_the_box(box: Box) -> None:
    for _ in range(4):
        box.hosted.add_stage({"frames": "none"})
    good = box.add_job()
    box.start("run")
    box.hosted.wait("complete", job=good)
    assert not [beat for beat in box.hosted.events(kind="heartbeat") if degraded(beat)]


@pytest.mark.parametrize("disk", [TOO_SMALL], indirect=True)
@pytest.mark.usefixtures("disk")
def test_no_job_is_claimed_when_the_disk_cannot_hold_one(box: Box) -> None:
    box.add_job()
    worker = box.start("run")
    beat = box.hosted.wait("heartbeat", where=degraded)
    assert beat["data"]["progress"]["stage"] == "degraded: media_failed"
    box.hosted.wait("heartbeat", after=beat["seq"], where=degraded)
    assert not box.hosted.events(kind="claim")
    assert "MB are free in STATE_DIR" in worker.log


@pytest.mark.parametrize("disk", [ROOMY], indirect=True)
def test_films_that_wait_count_before_the_next_job_is_taken(box: Box, disk: Path) -> None:
    box.hosted.fault("PATCH */complete", times=-1, status=503)
    box.hosted.fault("GET */pending", times=-1, after=1, status=503)
    kept = box.add_job()
    worker = box.start("run")
    box.hosted.wait("fault", after=box.hosted.wait("blob.put", kept, timeout=60)["seq"])
    with (disk / "filler").open("ab") as file:
        # Not full, but too full for another job.
        spare = shutil.disk_usage(disk).free - job_bytes(Size(*SIZE))
        os.posix_fallocate(file.fileno(), 0, spare + 2**20)
    box.hosted.wait("heartbeat", where=degraded, timeout=60)
    waiting = box.add_job()
    box.hosted.clear_faults()
    # It is delivered although no job is taken.
    box.hosted.wait("complete", kept, timeout=60)
    assert not box.hosted.events("claim", job=waiting)
    assert "; 1 films that wait hold 0." in worker.log
    (disk / "filler").unlink()
    box.hosted.wait("complete", waiting, timeout=60)


@pytest.mark.parametrize("disk", [ROOMY], indirect=True)
@pytest.mark.parametrize("moment", ["downloading", "rendering", *FFMPEG_AT])
def test_a_disk_that_fills_up_mid_job_is_a_clear_failure_and_the_worker_goes_on(
    box: Box, disk: Path, moment: str
) -> None:
    job = box.add_job(maxAttempts=1)
    worker = box.start("run", PATH=stop_at(box, moment))
    await_moment(box, moment)
    with filled(disk):
        if moment in FFMPEG_AT:
            (box.folder / "go").write_text("on\n")
        error = box.hosted.wait("fail", job=job)["data"]["error"]
    assert (error["code"], error["retryable"]) == ("media_failed", True), worker.log
    assert DISK_FULL in error["message"]
    box.hosted.wait("complete", job=box.add_job())
    assert worker.process.poll() is None, worker.log
    assert not (disk / "jobs" / job).exists()


def test_what_a_job_may_need_follows_the_size_of_the_film() -> None:
    assert 2 * 2**30 < job_bytes(Size(1920, 1080)) < 3 * 2**30
    assert job_bytes(Size(256, 144)) < 2**29
