"""A worker that runs for months gathers nothing from job to job."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from sandbox.launch import Running
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
    serve_three_jobs(box, settings)


def test_no_descriptor_is_left_open_with_a_comfyui_of_somebody_else(box: Box) -> None:
    with foreign_comfyui(box):
        serve_three_jobs(box, {})


def serve_three_jobs(box: Box, settings: dict[str, str]) -> None:
    worker = box.start("run", **settings)
    # The first ones open what lasts.
    for number in range(2):
        serve(box, worker, number)
    before = min(looks(box, worker.process.pid, 5), key=Counter.total)
    serve(box, worker, 2)
    # What ends or begins beside the polls is open for a while.
    after = looks(box, worker.process.pid, 25)
    assert any(found.total() <= before.total() for found in after), (before, worker.log)


def serve(box: Box, worker: Running, number: int) -> None:
    job = box.add_job(text=f"walk {number}")
    assert box.await_outcome(job)["kind"] == "complete", worker.log


def looks(box: Box, pid: int, count: int) -> Iterator[Counter[str]]:
    """What is open at that many polls, which come every 0.2 s."""
    for _ in range(count):
        box.hosted.wait("pending", after=box.hosted.now())
        yield open_files(pid)
