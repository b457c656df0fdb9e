"""Starting a worker on the sandbox: command line, settings of its box, log, wait and end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import dotenv

from sandbox.client import LIGHT, ROOT, Hosted, Process

WORKER = ROOT / "ltx_worker.py"
INHERITED = ("PATH", "HOME", "LANG", "TERM", "TMPDIR")
STOP_S = 25.0  # it gives up its clip and hands its job back within 20


def inherited() -> dict[str, str]:
    """What a worker takes over from our environment, which may have the operator's settings."""
    return {name: os.environ[name] for name in INHERITED if name in os.environ}


def pace(**seconds: float) -> dict[str, str]:
    """How long things take the look-alike, such as `BOOT=0.1`."""
    return {f"LOOKALIKE_{name}_S": f"{value:g}" for name, value in seconds.items()}


def box_settings(hosted: Hosted, state: Path, **settings: str) -> dict[str, str]:
    """A box on this sandbox that renders with the look-alike; `settings` come on top."""
    own = {**hosted.worker_settings(), **hosted.lookalike_settings(), "STATE_DIR": str(state)}
    return {**own, **settings}


def environ(settings: Mapping[str, str]) -> dict[str, str]:
    """What a worker with these settings is started in; one given as '' is unset."""
    given = {name: value for name, value in settings.items() if value}
    # Set but empty, a name of the operator's .env counts as unset.
    unset = dict.fromkeys(dotenv.dotenv_values(ROOT / ".env"), "")
    return {**inherited(), **LIGHT, **unset, **given}


def worker_command(*arguments: str) -> list[str]:
    return [sys.executable, "-u", str(WORKER), *arguments]


class Running:
    """A process and its log, where it has one; leaving the context stops it."""

    def __init__(
        self, command: list[str], env: Mapping[str, str], log: Path | None = None, **options: Any
    ) -> None:
        self.path = log
        self.began = time.monotonic()
        with log.open("ab") if log else contextlib.nullcontext() as output:
            given = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output, **options}
            self.process: Process = subprocess.Popen(command, env=env, **given)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        return self.path.read_text() if self.path else ""

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float | None = 60) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker still runs:\n{self.log[-4000:]}") from None

    def stop(self, timeout: float = STOP_S) -> int:
        """Asks it to stop, and makes it when it does not; the exit code."""
        code = self.process.poll()
        if code is None:
            self.signal(signal.SIGTERM)
            try:
                code = self.process.wait(timeout)
            finally:
                self.end()
        return code

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def started_on(state: Path) -> list[int]:
    """The processes that a worker has started on this state folder, or on one below it."""
    mark = f"LTX_WORKER_STATE={state}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            names = (entry / "environ").read_bytes().split(b"\0")
            if any(name == mark or name.startswith(mark + b"/") for name in names):
                found.append(int(entry.name))
    return found
