"""Every bench ends by itself, says when, and names what it did not get to."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import subprocess
import sys

import pytest

from sandbox.client import ROOT

# A bench of three parts, the second of which hangs, in the way that is put in.
BENCH = """
import subprocess, sys, time
from bench import agenda
agenda.CLEAN_UP_S = {clean_up}
with agenda.Agenda({seconds}, {{"first": 1, "second": 1, "cases": 3}}) as plan:
    with plan.part("first"):
        pass
    plan.done("cases")
    print("at work", flush=True)
    {hang}
sys.exit(0 if plan.complete else 1)
"""
# In short steps: a signal just before a long one would be heard of at its end.
ASLEEP = "while True: time.sleep(0.1)"
DEAF = """
    child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
    print("child", child.pid, flush=True)
    while True:
        try:
            time.sleep(600)
        except BaseException:
            pass
"""


def start(hang: str, seconds: float, clean_up: float = 60) -> subprocess.Popen[str]:
    program = BENCH.format(hang=hang.strip(), seconds=seconds, clean_up=clean_up)
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.parametrize(("seconds", "stopped"), [(0.5, False), (600, True)])
def test_a_bench_that_is_cut_short_says_what_it_did_not_get_to(
    seconds: float, stopped: bool
) -> None:
    with start(ASLEEP, seconds) as bench:
        assert bench.stdout
        told = bench.stdout.readline()
        while stopped and bench.stdout.readline() != "at work\n":
            pass
        if stopped:
            bench.send_signal(signal.SIGTERM)
        rest = bench.stdout.read()
    assert told == f"This ends by itself within {math.ceil((seconds + 60) / 60)} minutes.\n"
    assert "second, cases (2)" in rest
    assert ("it was stopped" if stopped else "minutes were over") in rest
    assert "Traceback" not in rest
    assert bench.returncode == 1


def test_a_bench_that_does_not_heed_its_end_is_ended_with_all_it_started() -> None:
    with start(DEAF, 0.2, clean_up=1) as bench:
        told, _ = bench.communicate(timeout=60)
    child = next(line.split()[1] for line in told.splitlines() if line.startswith("child"))
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(int(child))
        assert select.select([pidfd], [], [], 10)[0], "what it had started still runs"
        os.close(pidfd)
    assert bench.returncode == 3, told
