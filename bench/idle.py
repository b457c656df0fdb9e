"""What the worker itself takes: idling, starting, and through the largest job; without children.

python -m bench.idle [--seconds 120]

idle    CPU of one core and memory over some time of polling every 5 s, beating every 15 s
start   from the start of the process to the first poll, as the hosted side sees it
job     the most memory through a job of six 1080p frames and raw clips of 140 MB
served  memory, files and threads after 5 jobs and after 50, and CPU for each job in between
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sandbox.client import LIGHT, ROOT, Event, Hosted, inherited
from tests.pictures import picture

STILLS = sorted((ROOT / "sandbox" / "frames").glob("[0-9]*.jpg"))
STARTS = 7
RAW_MB = 140
QUICK = {
    f"LOOKALIKE_{name}_S": "0"
    for name in ("BOOT", "LOAD", "WARM_LOAD", "STEP", "DECODE", "ENCODE", "SETTLE")
}


class Worker:
    """A running worker and what the kernel tells of it."""

    def __init__(self, hosted: Hosted, folder: Path, **settings: str) -> None:
        environ = {
            **inherited(), **LIGHT, **hosted.worker_settings(), **hosted.lookalike_settings(),
            **QUICK, "STATE_DIR": str(folder / "state"), **settings,
        }  # fmt: skip
        # As the service starts it.
        command = [sys.executable, "-u", "-m", "ltx_worker"]
        self.log = folder / "worker.log"
        self.began = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log)

    @property
    def proc(self) -> Path:
        return Path(f"/proc/{self.process.pid}")

    def cpu(self) -> float:
        ticks = (self.proc / "stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def status(self, name: str) -> int:
        found = re.search(rf"^{name}:\s*(\d+)", (self.proc / "status").read_text(), re.MULTILINE)
        assert found
        return int(found[1])

    def memory(self, name: str = "VmRSS") -> float:
        """Megabytes; VmHWM is the most it ever was."""
        return self.status(name) / 1024

    def held(self) -> dict[str, float]:
        files, threads = len(list((self.proc / "fd").iterdir())), self.status("Threads")
        return {"MB": self.memory(), "open files": files, "threads": threads}

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


@contextlib.contextmanager
def stage(**settings: str) -> Iterator[tuple[Hosted, Worker]]:
    with (
        tempfile.TemporaryDirectory(prefix="ltx-bench-") as name,
        Hosted(Path(name) / "hosted", frames=STILLS[0].parent) as hosted,
    ):
        worker = Worker(hosted, Path(name), **settings)
        try:
            yield hosted, worker
        finally:
            worker.end()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=120.0)
    seconds = parser.parse_args(arguments).seconds
    # The way out of a Ctrl-C, on which everything started here is taken away.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"{'':44}{'asked':>10}{'seen':>12}")
    show_idle(seconds)
    show_start()
    show_job()
    show_served()
    return 0


def show(what: str, asked: str, seen: str) -> None:
    print(f"{what:44}{asked:>10}{seen:>12}", flush=True)


def show_idle(seconds: float) -> None:
    with stage() as (hosted, worker):
        hosted.wait("pending", after=hosted.wait("heartbeat")["seq"])
        before, began = worker.cpu(), time.monotonic()
        time.sleep(seconds)
        share = (worker.cpu() - before) / (time.monotonic() - began)
        show(f"idle for {seconds:g} s: CPU of one core", "< 0.2 %", f"{100 * share:.3f} %")
        show("idle: resident memory", "< 45 MB", f"{worker.memory():.1f} MB")


def show_start() -> None:
    spent = []
    for _ in range(STARTS):
        with stage() as (hosted, worker):
            # The sandbox tells the time by the same clock.
            polled = hosted.wait("request.start", where=is_poll)["t"]
            spent.append(polled - worker.began)
    median = f"{statistics.median(spent):.2f} s"
    show(f"start to first poll, median of {STARTS}", "< 0.5 s", median)


def is_poll(event: Event) -> bool:
    return str(event["data"]["path"]).endswith("/pending")


def show_job() -> None:
    pad = {"LOOKALIKE_PAD_MB": str(RAW_MB)}
    with stage(VIDEO_SIZE="1920x1080", **pad) as (hosted, worker):
        stills = [f"{hosted.url}/frames/{still.name}" for still in STILLS[:6]]
        job = hosted.add_job(stills, ["walk on"] * (len(stills) - 1), watermark=True)
        hosted.wait("complete", job, timeout=1800)
        peak = f"{worker.memory('VmHWM'):.1f} MB"
        show(f"six frames, 1080p, clips of {RAW_MB} MB: peak", "< 60 MB", peak)


def show_served() -> None:
    with stage(VIDEO_SIZE="64x64", POLL_INTERVAL_S="0.1", COMFYUI_STANDBY="0") as (hosted, worker):
        frames = [hosted.put_frame(f"{n}.png", picture((64, 64), n)) for n in range(2)]

        def serve(jobs: int) -> None:
            for _ in range(jobs):
                hosted.wait("complete", hosted.add_job(frames, ["walk on"]), timeout=60)

        serve(5)
        early = worker.held(), worker.cpu()
        serve(45)
        late = worker.held(), worker.cpu()
        for name in early[0]:
            seen = f"{early[0][name]:.4g} {late[0][name]:.4g}"
            show(f"after 5 jobs, after 50: {name}", "no growth", seen)
        show("CPU for each of these jobs", "", f"{1000 * (late[1] - early[1]) / 45:.0f} ms")


if __name__ == "__main__":
    sys.exit(main())
