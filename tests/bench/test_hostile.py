"""A slice of `make hostile`: whatever comes in, the worker refuses it properly and goes on."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from sandbox.client import ROOT


@pytest.mark.long
@pytest.mark.timeout(170)
def test_hostile_input_is_refused_or_rendered_properly_and_nothing_leaks() -> None:
    command = [sys.executable, "-m", "bench.hostile", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=160)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = dict(re.findall(r"^(\S.*?) {2,}(\S+)", done.stdout, re.MULTILINE))
    assert int(rows["cases"]) >= 150
    for name in ("wrong", "worker restarts", "files outside the state folder", "secrets seen"):
        assert rows[name] == "0", done.stdout
