"""A small piece of `make chaos`: everything dies at any moment, and nothing is lost."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from sandbox.client import ROOT

SLICE = ("--jobs", "6", "--faults", "12", "--seconds", "12", "--seed", "3")
LONGEST_S = 170


@pytest.mark.long
@pytest.mark.timeout(180)
def test_nothing_is_lost_doubled_or_left_over_when_everything_dies_at_any_moment() -> None:
    command = [sys.executable, "-m", "bench.chaos", *SLICE]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as chaos:
        try:
            table = chaos.communicate(timeout=LONGEST_S)[0]
        except subprocess.TimeoutExpired:
            # Not a kill: it has workers to end and disks to unmount.
            chaos.terminate()
            raise
    assert chaos.returncode == 0, table
    rows = dict(re.findall(r"^(\S.*?) {2,}(\S.*?) *$", table, re.MULTILINE))
    assert rows["jobs"] == "6"
    assert int(rows["faults"]) >= 8
    for name in ("lost", "delivered twice", "orphan processes"):
        assert rows[name] == "0", table
    ends = ("delivered", "failed with a reason", "cancelled")
    assert sum(int(rows[name].split()[0]) for name in ends) == 6, table
