"""What the doctor asks of systemd about the service, each answer with the command to type."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from ltx.operator.findings import EDIT, Answer, DoctorContext
from ltx.operator.status import lock_holders
from ltx.process import ask
from ltx.settings import ENV_FILE, Settings
from ltx.text import one_line

UNIT = "ltx-worker.service"
SOURCE = ENV_FILE.parent / "systemd" / UNIT
USER_UNIT = f"~/.config/systemd/user/{UNIT}"
RELOAD = "systemctl --user daemon-reload"
ENABLE = "systemctl --user enable --now ltx-worker"
RESTART = "systemctl --user restart ltx-worker"
JOURNAL = "journalctl --user -u ltx-worker -n 50"
ASKED = (
    *("LoadState", "UnitFileState", "ActiveState", "Result", "ExecMainStatus"),
    *("WorkingDirectory", "FragmentPath", "NeedDaemonReload"),
)
# How it ended, by the worker's exit code, and what to type.
ENDED = {
    "74": ("its state folder cannot be written: is the disk full?", JOURNAL),
    "75": ("another worker, or `render` by hand, uses its state folder", "ltx_worker.py status"),
    "78": ("a setting is wrong, see the FAILs above", f"{EDIT} && {RESTART}"),
}
# The same in systemd's words.
DOWN = {
    "start-limit-hit": (
        "it was started too often and stays down",
        "systemctl --user reset-failed ltx-worker && systemctl --user start ltx-worker",
    ),
    "exit-code": ("it ended with an error", JOURNAL),
    "watchdog": ("it was stuck and was ended", JOURNAL),
    "oom-kill": ("the kernel ended it for want of memory", JOURNAL),
}


def check_service(context: DoctorContext) -> Iterator[Answer]:
    unit = show_unit(context.settings)
    if not unit:
        yield "WARN", "no systemd user manager answers, so nothing restarts the worker", ""
    elif unit.get("LoadState") != "loaded":
        told = one_line(unit.get("LoadState"))
        yield "WARN", f"{UNIT} is not installed ({told})", install_unit()
    else:
        yield from check_state_of(unit, bool(lock_holders(context.settings.state_dir)))
        yield from check_files_of(unit)
        if ask(context.settings, "loginctl", "show-user", str(os.getuid()), "-p", "Linger") != (
            "Linger=yes"
        ):
            why = "without lingering it stops when you log out"
            yield "WARN", why, 'sudo loginctl enable-linger "$USER"'
        yield "OK", f"{UNIT} is enabled and lingers, {unit.get('ActiveState', 'unknown')}", ""


def show_unit(settings: Settings) -> dict[str, str]:
    """What systemd tells of the unit; nothing when no user manager answers."""
    told = ask(settings, "systemctl", "--user", "show", UNIT, "-p", ",".join(ASKED))
    return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)


def install_unit() -> str:
    return f"install -Dm644 {shlex.quote(str(SOURCE))} {USER_UNIT} && {RELOAD} && {RESTART}"


def check_state_of(unit: Mapping[str, str], is_by_hand: bool) -> Iterator[Answer]:
    """Whether it runs, and if not why. is_by_hand: a worker runs, if not as the service."""
    state, result = unit.get("ActiveState"), unit.get("Result", "success")
    code, down = unit.get("ExecMainStatus", ""), "WARN" if is_by_hand else "FAIL"
    is_enabled = unit.get("UnitFileState") == "enabled"
    start = "systemctl --user start ltx-worker" if is_enabled else ENABLE
    if state == "failed" or (state == "activating" and result != "success"):
        why, fix = DOWN.get(result, (f"it is {state} ({one_line(result)})", JOURNAL))
        if code in ENDED and result == "exit-code":
            why, fix = f"it ended with {code}: {ENDED[code][0]}", ENDED[code][1]
        yield "FAIL", why, fix
    elif state not in ("active", "activating", "reloading"):
        yield down, f"it is installed but does not run ({one_line(state)})", start
    elif not is_enabled:
        yield "WARN", f"{UNIT} is not enabled", ENABLE


def check_files_of(unit: Mapping[str, str]) -> Iterator[Answer]:
    """Whether it is this folder's, as this version has it, and as systemd has read it."""
    folder = unit.get("WorkingDirectory", "")
    if folder and Path(folder).resolve() != ENV_FILE.parent:
        why = f"it runs the worker in {one_line(folder)}, not this one in {ENV_FILE.parent}"
        yield "FAIL", why, f"cd {shlex.quote(folder)} && .venv/bin/python ltx_worker.py doctor"
    installed = Path(unit.get("FragmentPath") or "/nonexistent")
    if installed.is_file() and SOURCE.is_file() and rules(installed) != rules(SOURCE):
        why = f"{installed} is not what this version brings"
        yield "WARN", why, f"diff {shlex.quote(str(installed))} {shlex.quote(str(SOURCE))}"
    if unit.get("NeedDaemonReload") == "yes":
        yield "WARN", "systemd has not read the unit since it changed", f"{RELOAD} && {RESTART}"


def rules(path: Path) -> list[str]:
    """A unit's lines, without comments and where the clone lies."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    places = re.compile("^(WorkingDirectory|ExecStart)=")
    return [line for line in lines if line and line[0] not in "#;" and not places.match(line)]
