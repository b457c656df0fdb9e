"""The sandbox's process by a fork of one that has imported it: the imports are most of a start."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.context import ForkServerProcess

from sandbox.client import Hosted
from sandbox.hosted import main_of_fork

# Not a fork of pytest itself, whose threads may hold locks at that moment.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["sandbox.hosted"])


class ForkedHosted(Hosted):
    """As its parent: a process of its own with its own port, state folder, log and exit code."""

    _fork: ForkServerProcess | None = None

    @property
    def pid(self) -> int:
        assert self._fork is not None, "the sandbox is not running"
        assert self._fork.pid is not None
        return self._fork.pid

    def start(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        reader, writer = FORKS.Pipe(duplex=False)
        with reader:
            with writer:
                given = (self._arguments(), writer, self.log)
                self._fork = FORKS.Process(target=main_of_fork, args=given)
                self._fork.start()
            with open(reader.fileno(), "rb", closefd=False) as output:
                self._arrive(output.readline())

    def _end(self, number: signal.Signals) -> int | None:
        process, self._fork = self._fork, None
        if process is None:
            return None
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, number)
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
        code = process.exitcode
        process.close()
        return code
