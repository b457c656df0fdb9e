"""What the doctor says of the service, from what systemd tells of it."""

from __future__ import annotations

import fcntl
import json
import subprocess
from pathlib import Path

import pytest

from ltx.state import claim_folder
from sandbox.client import ROOT, Hosted
from sandbox.launch import worker_command
from tests.conftest import Box
from tests.operator.test_doctor import look, only
from tests.programs import stand_in

HEALTHY = {
    "LoadState": "loaded",
    "UnitFileState": "enabled",
    "ActiveState": "active",
    "Result": "success",
    "ExecMainStatus": "0",
    "WorkingDirectory": str(ROOT),
    "FragmentPath": "",
    "NeedDaemonReload": "no",
}


@pytest.fixture
def box(tmp_path: Path, session_hosted: Hosted) -> Box:
    return Box(tmp_path, session_hosted)


def told_by(box: Box, linger: str = "yes", **changes: str) -> tuple[str, str, str]:
    """The one finding when systemd tells this of the unit."""
    shown = "\\n".join(f"{name}={value}" for name, value in {**HEALTHY, **changes}.items())
    stand_in(box.folder, "systemctl", f"printf '{shown}\\n'")
    path = stand_in(box.folder, "loginctl", f"echo Linger={linger}")
    return only(look(box, "service", PATH=path))


@pytest.mark.parametrize(
    ("changes", "status", "words", "then"),
    [
        ({}, "OK", "enabled and lingers, active", ""),
        ({"LoadState": "not-found"}, "WARN", "not installed", "install -Dm644 "),
        ({"UnitFileState": "disabled"}, "WARN", "not enabled", "systemctl --user enable"),
        (
            {"UnitFileState": "disabled", "ActiveState": "inactive"},
            *("FAIL", "does not run", "systemctl --user enable --now"),
        ),
        ({"linger": "no"}, "WARN", "lingering", "sudo loginctl enable-linger"),
        ({"ActiveState": "inactive"}, "FAIL", "does not run", "systemctl --user start"),
        ({"ActiveState": "deactivating"}, "FAIL", "does not run", "systemctl --user start"),
        (
            {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "78"},
            *("FAIL", "ended with 78", "nano "),
        ),
        (
            {"ActiveState": "failed", "Result": "start-limit-hit"},
            *("FAIL", "too often", "systemctl --user reset-failed ltx-worker"),
        ),
        (
            {"ActiveState": "activating", "Result": "exit-code", "ExecMainStatus": "74"},
            *("FAIL", "ended with 74: its state folder", "journalctl"),
        ),
        (
            {"ActiveState": "activating", "Result": "exit-code", "ExecMainStatus": "75"},
            *("FAIL", "ended with 75: another worker", "ltx_worker.py status"),
        ),
        (
            {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "1"},
            *("FAIL", "ended with an error", "journalctl --user -u ltx-worker"),
        ),
        ({"ActiveState": "failed", "Result": "watchdog"}, "FAIL", "stuck", "journalctl"),
        ({"ActiveState": "failed", "Result": "oom-kill"}, "FAIL", "memory", "journalctl"),
        ({"WorkingDirectory": "/srv/a b"}, "FAIL", "/srv/a b", "cd '/srv/a b' && "),
        ({"NeedDaemonReload": "yes"}, "WARN", "not read", "systemctl --user daemon-reload"),
    ],
)
def test_the_service_is_told_with_the_command_to_type(
    box: Box, changes: dict[str, str], status: str, words: str, then: str
) -> None:
    found = told_by(box, **changes)
    assert (found[0], words in found[1]) == (status, True), found
    assert found[2].startswith(then)


def test_a_worker_that_runs_by_hand_is_no_service_that_is_down(box: Box) -> None:
    claim_folder(box.state)
    with (box.state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert told_by(box, ActiveState="inactive")[0] == "WARN"


def test_the_doctor_exits_with_1_for_a_service_that_is_down(box: Box) -> None:
    shown = "\\n".join(f"{n}={v}" for n, v in {**HEALTHY, "ActiveState": "inactive"}.items())
    stand_in(box.folder, "loginctl", "echo Linger=yes")
    path = stand_in(box.folder, "systemctl", f"printf '{shown}\\n'")
    ended = subprocess.run(
        worker_command("doctor", "--json"),
        env=box.environ(PATH=path), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    failed = [one["check"] for one in json.loads(ended.stdout) if one["status"] == "FAIL"]
    assert (ended.returncode, failed) == (1, ["service"])


@pytest.mark.parametrize("is_old", [True, False])
def test_an_installed_unit_that_is_an_older_one_is_told(box: Box, is_old: bool) -> None:
    source = ROOT / "systemd" / "ltx-worker.service"
    installed = box.folder / "ltx-worker.service"
    text = source.read_text().replace("%h/ltx-worker", "/srv/clone")
    installed.write_text(text.replace("StartLimitIntervalSec=0", "") if is_old else f"#own\n{text}")
    status, detail, then = told_by(box, FragmentPath=str(installed))
    assert status == ("WARN" if is_old else "OK"), detail
    assert then == (f"diff {installed} {source}" if is_old else "")
