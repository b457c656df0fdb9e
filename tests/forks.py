"""Processes by a fork of one that has imported everything: the imports are most of a start.

Each is a process of its own, with its own arguments, environment, log and exit code. What depends
on how a process is started, or on how large it is, starts it as the operator does.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import ltx
from sandbox.client import ROOT, Hosted
from sandbox.hosted import main_of_fork
from sandbox.launch import Running

# Not a fork of pytest itself, whose threads may hold locks at that moment.
FORKS = multiprocessing.get_context("forkserver")
ROOMS = [room.name for room in pkgutil.walk_packages(ltx.__path__, "ltx.")]
FORKS.set_forkserver_preload(["tests.forks", "PIL.Image", *ROOMS])


class Fork:
    """What tests use of subprocess.Popen, for a process that was forked."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self.process = FORKS.Process(target=target, args=arguments)
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        wait([self.process.sentinel], timeout)
        code = self.returncode
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_script(words: Sequence[str], env: Mapping[str, str], log: Path, home: Path) -> None:
    """A script and its arguments, as `python -u` runs them in `home` with only this environment."""
    os.chdir(home)
    os.environ.clear()
    os.environ.update(env)
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", write_through=True)
        for number in (1, 2)
    )
    sys.argv = list(words)
    sys.path.insert(0, str(Path(words[0]).parent.absolute()))
    runpy.run_path(words[0], run_name="__main__")


class ForkedWorker(Running):
    """As its parent, for `python -u` and this tree's script."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.path = log
        self.process = Fork(run_script, command[2:], dict(env), log, ROOT)


class ForkedHosted(Hosted):
    """As its parent, the hosted side."""

    def start(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        reader, writer = FORKS.Pipe(duplex=False)
        with reader:
            with writer:
                self._process = Fork(main_of_fork, self._arguments(), writer, self.log)
            with open(reader.fileno(), "rb", closefd=False) as output:
                self._arrive(output.readline())
