"""The workers, each with a state folder of its own on a small disk, and what becomes of them."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from ltx.job import job_bytes
from ltx.settings import Size
from ltx.state import has_mark
from sandbox.client import Hosted
from sandbox.launch import Running, box_settings, environ, started_on, worker_command

SIZE = (128, 64)
BEAT_S = 0.5
STOP_S, ORPHAN_S = 20.0, 5.0
# What a job may need, without which none is claimed, and room for logs and what waits.
DISK_BYTES = job_bytes(Size(*SIZE)) + 48 * 2**20
ZEROS = bytes(4096)
TIMES = {
    "COMFYUI_BOOT_TIMEOUT_S": "8",
    "CLIP_TIMEOUT_S": "10",
    "JOB_TIMEOUT_S": "40",
    "POLL_INTERVAL_S": "0.3",
    "HEARTBEAT_INTERVAL_S": str(BEAT_S),
    "LOOKALIKE_TIME_SCALE": "0.2",
}


@dataclass
class Member:
    """One worker with a state folder of its own, started again whenever it has died."""

    number: int
    folder: Path
    environ: dict[str, str]
    running: Running | None = None
    back_at: float = 0.0
    stop_by: float = 0.0
    spans: list[list[float]] = field(default_factory=list)
    orphans: int = 0
    slow_stops: int = 0
    crashes: list[int] = field(default_factory=list)
    free_at: float = 0.0
    log_begins: int = 0

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def filler(self) -> Path:
        return self.state / "filler"

    def fill_disk(self, seconds: float) -> None:
        """Leaves no room in the state folder for a while, once a worker has made it its own."""
        if not has_mark(self.state):
            return
        self.free_at = time.monotonic() + seconds
        with contextlib.suppress(OSError), self.filler.open("ab", buffering=0) as file:
            # The bulk at once, then to the last byte.
            os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(self.state).free - 2**20))
            while True:
                file.write(ZEROS)

    def free_disk(self) -> None:
        self.free_at = 0.0
        self.filler.unlink(missing_ok=True)

    def start(self) -> None:
        log = self.folder / "worker.log"
        self.log_begins = log.stat().st_size if log.exists() else 0
        self.running = Running(worker_command(), self.environ, log)
        self.spans.append([self.running.began, 0.0])
        self.stop_by = 0.0

    def kill(self, rest: float) -> None:
        """kill -9; whatever of it lives on after that is an orphan."""
        if self.running is None:
            return
        before = started_on(self.state)
        self.running.end()
        self.ended(rest)
        self.orphans += count_living(before)

    def ask_to_stop(self, rest: float) -> None:
        if self.running and not self.stop_by:
            self.running.signal(signal.SIGTERM)
            self.stop_by = time.monotonic() + STOP_S
            self.back_at = rest

    def ended(self, rest: float) -> None:
        assert self.running
        self.running.end()
        self.spans[-1][1] = time.monotonic()
        self.running, self.back_at = None, time.monotonic() + rest

    def tend(self) -> None:
        """Notices its end, holds it to the time of a stop, and starts it again when due."""
        if self.free_at and time.monotonic() >= self.free_at:
            self.free_disk()
        if self.running is None:
            if time.monotonic() >= self.back_at:
                self.start()
        elif (code := self.running.process.poll()) is not None:
            # A signal may come before the worker has got as far as listening for one.
            young = b" started " not in (self.folder / "worker.log").read_bytes()[self.log_begins :]
            if not self.stop_by or code not in (0, -signal.SIGTERM if young else 0):
                self.crashes.append(code)
            self.orphans += count_living(started_on(self.state))
            self.ended(self.back_at if self.stop_by else 1.0)
        elif self.stop_by and time.monotonic() > self.stop_by:
            self.slow_stops += 1
            self.kill(0.0)


def count_living(pids: list[int]) -> int:
    """How many of them outlive a short while; the kernel needs a moment to end a child."""
    alive, end = 0, time.monotonic() + ORPHAN_S
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            left = max(0.0, end - time.monotonic())
            alive += not select.select([handle], [], [], left)[0]
            os.close(handle)
    return alive


def enlist(hosted: Hosted, base: Path, number: int) -> Member:
    folder = base / f"worker-{number}"
    state = folder / "state"
    state.mkdir(parents=True)
    own = {"VIDEO_SIZE": f"{SIZE[0]}x{SIZE[1]}", "WORKER_ID": f"worker-{number}"}
    return Member(number, folder, environ(box_settings(hosted, state, **TIMES, **own)))


def mount_disk(state: Path) -> bool:
    """A small file system for a state folder, where we may make one."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(state)]
    return subprocess.run(mount, capture_output=True).returncode == 0


def unmount_disk(state: Path, keep: bool) -> None:
    if keep:
        shutil.copytree(state, state.with_name("state-at-the-end"))
    # Lazy, as a process that outlived its worker may be in it.
    subprocess.run(["umount", "--lazy", str(state)], check=True)


def mount_disks(crew: list[Member], stack: contextlib.ExitStack, keep: bool) -> bool:
    """One small disk for each worker, gone at the end; False when that is not permitted."""
    for member in crew:
        if not mount_disk(member.state):
            print("Nobody here may mount a tmpfs, so no disk gets full.", flush=True)
            return False
        stack.callback(unmount_disk, member.state, keep)
    return True
