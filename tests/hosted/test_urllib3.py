"""The worker runs on the oldest urllib3 that requests allows, which distributions may bring."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Box, made_once

OLDEST = "1.26.20"


def install_oldest(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, f"urllib3=={OLDEST}"], check=True, capture_output=True)


@pytest.fixture
def oldest(shared_folder: Path) -> str:
    return str(made_once(shared_folder / "urllib3", install_oldest))


def test_a_job_is_served_and_a_broken_call_made_again_with_urllib3_1(box: Box, oldest: str) -> None:
    script = "import urllib3; print(urllib3.__version__)"
    used = subprocess.run(
        [sys.executable, "-c", script], env=box.environ(PYTHONPATH=oldest), capture_output=True
    )
    assert used.stdout.decode().strip() == OLDEST
    job = box.add_job()
    box.hosted.fault("PATCH */claim", reset=True)
    box.hosted.fault("PUT /api/blob*", landThenReset=True)
    box.forked = False
    worker = box.run_once(PYTHONPATH=oldest)
    assert box.hosted.job(job)["state"] == "completed", worker.log
    assert {"claim_retry", "upload_retry"} <= set(worker.log.split())
    assert box.hosted.events("heartbeat")
    assert "Error: " not in worker.log.replace("ConnectionError: ", "")
