"""A disk that is full when the worker starts: one sentence, an exit code that is tried again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ltx.state import claim_folder
from sandbox.launch import worker_command
from tests.conftest import Box
from tests.film.test_fitness import TOO_SMALL, degraded, disk, filled
from tests.pictures import picture
from tests.test_service import Notified, notified

__all__ = ["disk", "notified"]

pytestmark = pytest.mark.parametrize("disk", [TOO_SMALL], indirect=True)


def told(box: Box, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """What a command says on its standard error."""
    return subprocess.run(
        worker_command(*arguments),
        env=box.environ(**changes), capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("id_of_worker", ["", "box"])
def test_a_new_state_folder_on_a_full_disk_is_one_sentence_and_a_later_try(
    box: Box, disk: Path, notified: Notified, id_of_worker: str
) -> None:
    state = disk / "own"
    changes = {"STATE_DIR": str(state), "WORKER_ID": id_of_worker}
    with filled(disk):
        ended = told(box, "run", **changes, NOTIFY_SOCKET=notified.address)
        [sentence] = ended.stderr.splitlines()
        assert ended.returncode == 74, sentence
        assert sentence.startswith(f"ltx_worker: STATE_DIR={state}: No space left on device; free")
        assert notified.wait(f"STATUS=failed: STATE_DIR={state}: No space left")
    worker = box.start("run", **changes)
    box.hosted.wait("heartbeat")
    assert worker.process.poll() is None, worker.log


def test_a_state_folder_that_has_become_full_lets_the_worker_start_and_say_so(
    box: Box, disk: Path
) -> None:
    claim_folder(disk)
    box.add_job()
    with filled(disk):
        worker = box.start("run")
        beat = box.hosted.wait("heartbeat", where=degraded)
    assert beat["data"]["progress"]["stage"] == "degraded: media_failed"
    assert "Traceback" not in worker.log
    assert not box.hosted.events("claim")


def test_other_commands_on_a_full_disk_say_it_in_one_sentence(box: Box, disk: Path) -> None:
    frames = [box.folder / f"{n}.png" for n in range(2)]
    for n, frame in enumerate(frames):
        frame.write_bytes(picture((320, 180), n))
    render = ["render", *map(str, frames), "--prompt", "walk", "-o", str(box.folder / "film.mp4")]
    claim_folder(disk)
    with filled(disk):
        ended = told(box, *render)
        assert (ended.returncode, len(ended.stderr.splitlines())) == (74, 1), ended.stderr
        assert f"STATE_DIR={disk}: No space left" in ended.stderr
        doctor = told(box, "doctor", STATE_DIR=str(disk / "own"))
        assert (doctor.returncode, doctor.stderr) == (1, "")
        assert f"FAIL state: STATE_DIR={disk}/own: No space left" in doctor.stdout
        assert told(box, "status").returncode == 0
