"""A worker that runs for months gathers nothing from job to job."""

from __future__ import annotations

import os
import re
from collections import Counter

import pytest

from tests.conftest import Box, foreign_comfyui


def open_files(pid: int) -> Counter[str]:
    """What a process has open, without the numbers that tell one from the next."""
    found = Counter[str]()
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[re.sub(r"[0-9a-f]+", "N", os.readlink(f"/proc/{pid}/fd/{number}"))] += 1
        except FileNotFoundError:
            continue
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"COMFYUI_STANDBY": "1"},
        {"LTX_TEXT": "job", "LTX_TEXT_KEEP_GB": "0", "COMFYUI_STANDBY": "1"},
        {"LTX_TEXT": "job"},
    ],
    ids=["plain", "standby", "texts kept", "texts ended"],
)
def test_no_descriptor_is_left_open_by_a_job(box: Box, settings: dict[str, str]) -> None:
    serve_five_jobs(box, settings)


def test_no_descriptor_is_left_open_with_a_comfyui_of_somebody_else(box: Box) -> None:
    with foreign_comfyui(box):
        serve_five_jobs(box, {})


def serve_five_jobs(box: Box, settings: dict[str, str]) -> None:
    worker, seen = box.start("run", **settings), list[Counter[str]]()
    for number in range(5):
        job = box.add_job(text=f"walk {number}")
        assert box.await_outcome(job)["kind"] == "complete", worker.log
        box.hosted.wait("pending", after=box.hosted.now())
        seen.append(open_files(worker.process.pid))
    # The first ones open what lasts.
    assert sum(seen[4].values()) <= sum(seen[1].values()), seen[4] - seen[1]
