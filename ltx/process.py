"""Programs that run for us and end with us."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import resource
import select
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from ltx.cancellation import Cancellation
from ltx.errors import ToolFailed
from ltx.settings import Settings
from ltx.text import log_event

END_GRACE_S, UNKILLABLE_S = 3.0, 3.0
LOG_TAIL_LINES = 40
# Every child of a worker carries this, so that the next start knows its own leftovers.
OWNER_MARK = "LTX_WORKER_STATE"
# What becomes the program: it asks to die with the worker, then makes sure that the worker had not
# died before it could ask.
LAUNCHER = ("setpriv", "--pdeathsig", "KILL", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')


class Child:
    """A program that dies with us, in a process group of its own.

    It has to be started from the main thread: the kernel's parent-death signal fires when the
    thread that started it ends.
    """

    def __init__(
        self, command: Sequence[str], settings: Settings, output: IO[bytes],
        cwd: Path | None = None, niceness: int = 0, oom_score: int = 0,
        errors: IO[bytes] | None = None,
    ) -> None:  # fmt: skip
        """errors: where its standard error goes, with `output` when there is no such file.

        niceness: behind the desktop. oom_score: goes before the worker when memory is short.
        """
        self.output, self.errors = output, errors or output
        yielding = ["nice", "-n", str(niceness)] if niceness else []
        expendable = ["choom", "-n", str(oom_score), "--"] if oom_score else []
        self.process = subprocess.Popen(
            [*LAUNCHER, str(os.getpid()), *yielding, *expendable, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=self.errors,
            cwd=cwd,
            env={**settings.child_environ, OWNER_MARK: str(settings.state_dir)},
            start_new_session=True,
        )
        self.pidfd = os.pidfd_open(self.process.pid)

    @property
    def alive(self) -> bool:
        return self.pidfd >= 0 and not select.select([self.pidfd], [], [], 0)[0]

    def finish(self, cancellation: Cancellation, seconds: float = math.inf) -> int:
        """Waits for the program's own end and returns its exit code; after `seconds` ends it."""
        in_time = self.pidfd < 0 or cancellation.wait(seconds, self.pidfd)
        self.end()
        if not in_time:
            raise ToolFailed(f"it takes more than {seconds:g} s to read")
        return self.process.returncode

    def memory(self) -> int:
        """Bytes of RAM that are its own; mapped model files are not. 0 when it is gone."""
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            if found := re.search(r"^RssAnon:\s*(\d+) kB", status, re.MULTILINE):
                return int(found[1]) * 1024
        return 0

    def listens_on(self, port: int) -> bool:
        """Whether the socket that listens on a TCP port is held by a process of its group."""
        root = Path(f"/proc/{self.process.pid}/net")
        return any(
            f"socket:[{inode}]" in open_files(pid)
            for inode in listening_inodes(root, port)
            for pid in group_of(self.process.pid)
        )

    def ask_to_end(self) -> None:
        if self.alive:
            os.killpg(self.process.pid, signal.SIGTERM)

    def end(self, grace: float = 0.0) -> None:
        """Ends the whole group: SIGTERM, after `grace` seconds SIGKILL. Safe to call twice."""
        if self.pidfd < 0:
            return
        if grace:
            self.ask_to_end()
            select.select([self.pidfd], [], [], grace)
        # Not reaped yet, so the group's number cannot have been given to anybody else.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        # A process that the driver holds cannot be waited for; systemd's cgroup keeps it in sight.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(UNKILLABLE_S)
        os.close(self.pidfd)
        self.pidfd = -1

    def last_words(self) -> str:
        """How an ended program ended, for people."""
        self.end()
        code = self.process.returncode
        if code is None:
            return "it cannot be ended"
        if code == -signal.SIGKILL:
            return "killed; the machine may have run out of memory"
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name

    def tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The last lines it printed on standard error, without colours."""
        size = os.fstat(self.errors.fileno()).st_size
        start = max(0, size - 16_384)
        text = os.pread(self.errors.fileno(), 16_384, start).decode(errors="replace")
        text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
        return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def listening_inodes(root: Path, port: int) -> Iterator[str]:
    """The inodes of the sockets that listen on a TCP port, from /proc/net as proc(5) has it."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (root / table).read_text().splitlines()[1:]:
                # sl local_address rem_address st tx_rx tr_tm retrnsmt uid timeout inode
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def is_listened_on(port: int) -> bool:
    """Whether anybody on this machine listens on a TCP port."""
    return any(listening_inodes(Path("/proc/net"), port))


def group_of(leader: int) -> Iterator[int]:
    """The processes of a process group, its leader first."""
    yield leader
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(entry.name) != leader and os.getpgid(int(entry.name)) == leader:
                yield int(entry.name)


def open_files(pid: int) -> set[str]:
    found = set[str]()
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(os.readlink(file))
    return found


def sweep_leftovers(state_dir: Path) -> None:
    """Ends what an earlier worker on this state folder left running, and nothing else.

    A leftover is known by the mark in its environment, so a reused process number means nothing.
    """
    mark = f"{OWNER_MARK}={state_dir}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(int(entry.name))
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    log_event("leftover_ended", pid=entry.name)
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    select.select([pidfd], [], [], END_GRACE_S)
            finally:
                os.close(pidfd)


def ask(settings: Settings, *command: str, seconds: float = 10.0) -> str:
    """What a quick program prints, whatever its exit code; '' when it cannot be run."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds,
            env=dict(settings.child_environ),
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""


def ask_gpu(settings: Settings, *fields: str) -> list[str]:
    """These fields of the first GPU as nvidia-smi tells them; empty without one."""
    form = "--format=csv,noheader,nounits"
    answer = ask(settings, "nvidia-smi", f"--query-gpu={','.join(fields)}", form, seconds=5)
    values = answer.split("\n")[0].rsplit(",", len(fields) - 1)
    return [field.strip() for field in values] if len(values) == len(fields) else []


def read_gpu(settings: Settings) -> dict[str, object] | None:
    """Name and memory of the first GPU as nvidia-smi tells; None without one."""
    match ask_gpu(settings, "name", "memory.total"):
        case [name, megabytes] if megabytes.isdecimal():
            return {"name": name, "vramBytes": int(megabytes) * 2**20}
    return None


def available_memory() -> int:
    """Bytes of RAM that can be had without swapping, as the kernel reckons; 0 if it does not."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def harden_process() -> None:
    """Lets nobody else read our files, nor our memory: not by a core file, not through /proc."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A program that gets core files through a pipe is not stopped by the limit.
    pr_set_dumpable = 4
    ctypes.CDLL(None).prctl(pr_set_dumpable, 0)
