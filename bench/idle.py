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
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import usage
from bench.agenda import Agenda
from sandbox.client import ROOT, Event, Hosted
from sandbox.launch import Running, box_settings, environ, pace
from tests.pictures import picture

STILLS = sorted((ROOT / "sandbox" / "frames").glob("[0-9]*.jpg"))
AS_THE_SERVICE = [sys.executable, "-u", "-m", "ltx_worker"]
STARTS = 7
RAW_MB = 140
LONGEST_S = 900.0  # of all but the idling, on two slow cores; a job of 1080p is most of it
ROWS: list[str] = []
QUICK = pace(BOOT=0, LOAD=0, WARM_LOAD=0, STEP=0, DECODE=0, ENCODE=0, SETTLE=0)


@contextlib.contextmanager
def stage(**settings: str) -> Iterator[tuple[Hosted, Running]]:
    with (
        tempfile.TemporaryDirectory(prefix="ltx-bench-") as name,
        Hosted(Path(name) / "hosted", frames=STILLS[0].parent) as hosted,
    ):
        env = environ(box_settings(hosted, Path(name) / "state", **QUICK, **settings))
        with Running(AS_THE_SERVICE, env, Path(name) / "worker.log", cwd=ROOT) as worker:
            yield hosted, worker


def held(pid: int) -> dict[str, float]:
    threads = usage.status(pid, "Threads")
    return {
        "MB": usage.megabytes(pid), "open files": usage.open_files(pid), "threads": threads
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=120.0)
    seconds = parser.parse_args(arguments).seconds
    parts = {
        "idle": lambda: show_idle(seconds), "start": show_start,
        "job": show_job, "served": show_served,
    }  # fmt: skip
    with Agenda(seconds + LONGEST_S, [*parts]) as agenda:
        for name, show_part in parts.items():
            with agenda.part(name):
                show_part()
    # In one go, so that no message of a part stands between its lines.
    print("\n".join([f"{'':44}{'asked':>10}{'seen':>12}", *ROWS]))
    return 0 if agenda.complete else 1


def show(what: str, asked: str, seen: str) -> None:
    ROWS.append(f"{what:44}{asked:>10}{seen:>12}")


def show_idle(seconds: float) -> None:
    with stage() as (hosted, worker):
        pid = worker.process.pid
        hosted.wait("pending", after=hosted.wait("heartbeat")["seq"])
        before, began = usage.cpu_seconds(pid), time.monotonic()
        time.sleep(seconds)
        share = (usage.cpu_seconds(pid) - before) / (time.monotonic() - began)
        show(f"idle for {seconds:g} s: CPU of one core", "< 0.2 %", f"{100 * share:.3f} %")
        show("idle: resident memory", "< 45 MB", f"{usage.megabytes(pid):.1f} MB")


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
        pid = worker.process.pid
        stills = [f"{hosted.url}/frames/{still.name}" for still in STILLS[:6]]
        job = hosted.add_job(stills, ["walk on"] * (len(stills) - 1), watermark=True)
        hosted.wait("complete", job, timeout=LONGEST_S)
        peak = f"{usage.megabytes(pid, 'VmHWM'):.1f} MB"
        show(f"six frames, 1080p, clips of {RAW_MB} MB: peak", "< 60 MB", peak)


def show_served() -> None:
    with stage(VIDEO_SIZE="64x64", POLL_INTERVAL_S="0.1", COMFYUI_STANDBY="0") as (hosted, worker):
        pid = worker.process.pid
        frames = [hosted.put_frame(f"{n}.png", picture((64, 64), n)) for n in range(2)]

        def serve(jobs: int) -> None:
            for _ in range(jobs):
                hosted.wait("complete", hosted.add_job(frames, ["walk on"]), timeout=60)

        serve(5)
        early = held(pid), usage.cpu_seconds(pid)
        serve(45)
        late = held(pid), usage.cpu_seconds(pid)
        for name in early[0]:
            seen = f"{early[0][name]:.4g} {late[0][name]:.4g}"
            show(f"after 5 jobs, after 50: {name}", "no growth", seen)
        show("CPU for each of these jobs", "", f"{1000 * (late[1] - early[1]) / 45:.0f} ms")


if __name__ == "__main__":
    sys.exit(main())
