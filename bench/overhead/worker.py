"""The real worker on the sandbox, and its two jobs put together from what everybody noted."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench import usage
from bench.agenda import Agenda
from bench.overhead.modes import (
    BESIDE_S,
    JOBS,
    MODES,
    STILLS,
    Case,
    Made,
    Usage,
    executions,
    is_of,
    own_pace,
    own_settings,
    prompt_of,
)
from sandbox.client import Event, Hosted
from sandbox.launch import Running, box_settings, environ, worker_command

LOG_LINE = re.compile(r"^(\S+ \S+) INFO (\w+) (.*)$", re.MULTILINE)


def run_worker(
    case: Case, hosted: Hosted, folder: Path, options: argparse.Namespace, agenda: Agenda
) -> Iterator[Made]:
    if not case.mode.endswith("plain"):
        slow = {"on": "boot", "kind": "slow", "seconds": BESIDE_S / options.scale}
        hosted.script_comfyui({**slow, "seconds": 0}, *[slow] * JOBS * (case.clips + 2))
    env = worker_environ(hosted, case.mode, options, folder / "state")
    with Running(worker_command(), env, folder / "worker.log") as worker:
        hosted.wait("heartbeat")
        jobs = [add_job(hosted, case.clips, number) for number in range(JOBS)]
        for job in jobs:
            outcome = hosted.wait_outcome(job, agenda.seconds_left())
            if outcome["kind"] != "complete":
                raise RuntimeError(f"{case}: {outcome['data']}")
        pid = worker.process.pid
        used = Usage(usage.cpu_seconds(pid), usage.megabytes(pid, "VmHWM"))
    yield from read_jobs(case, jobs, hosted, worker.log, used)


def worker_environ(
    hosted: Hosted, mode: str, options: argparse.Namespace, state: Path
) -> dict[str, str]:
    more = {**own_settings(options), "POLL_INTERVAL_S": "0.2"}
    return environ(box_settings(hosted, state, **MODES[mode], **own_pace(options), **more))


def add_job(hosted: Hosted, clips: int, number: int) -> str:
    urls = [f"{hosted.url}/frames/{still.name}" for still in STILLS[: clips + 1]]
    return hosted.add_job(urls, [prompt_of(clip, number) for clip in range(clips)])


def read_jobs(
    case: Case, jobs: Sequence[str], hosted: Hosted, log: str, used: Usage
) -> Iterator[Made]:
    """Puts together what the hosted side, the look-alike and the worker each noted."""
    logged = read_log(log)
    booting = float(logged["comfyui_booting"][0]["at"])
    boot = hosted.events("comfyui.ready")[0]["t"] - booting
    begins = [event["t"] for event in hosted.events("claim")]
    prompts = hosted.events("comfyui.prompt")
    for number, (job, begin) in enumerate(zip(jobs, begins, strict=True)):
        end = hosted.events("complete", job=job)[0]["t"]
        told = {
            event: [fields for fields in lines if fields.get("job") == job]
            for event, lines in logged.items()
        }
        clips = {event["data"]["promptId"] for event in prompts if begin <= event["t"] <= end}
        at = {
            name: times(filter(is_of(clips), hosted.events(f"comfyui.{name}")), begin, end)
            for name in ("prompt", "start", "done")
        }
        stored = min(times(hosted.requests("* /api/blob*"), begin, end))
        ideal = executions(hosted, begin, end) + told["encode_done"][-1]["ms"] / 1000
        parts = read_parts(begin, stored, at, told)
        yield Made(case, number + 1, stored - begin, ideal + (0 if number else boot), parts, used)


def times(events: Iterable[Event], begin: float, end: float) -> list[float]:
    return [event["t"] for event in events if begin <= event["t"] <= end]


Told = Mapping[str, Sequence[Mapping[str, Any]]]


def read_parts(
    begin: float, stored: float, at: Mapping[str, Sequence[float]], told: Told
) -> dict[str, list[list[float]]]:
    """The seconds of each of PARTS."""
    logged = {event: [fields["at"] for fields in lines] for event, lines in told.items()}
    checked = logged["check_done"][0]
    start = [
        begin, logged["download_done"][0], checked, *logged.get("text_done", [checked])[:1],
        logged["boot_done"][0], at["prompt"][0],
    ]  # fmt: skip
    gaps = []
    for before, after in pairwise(range(len(at["done"]))):
        ready = told["boot_done"][after]
        gaps.append([
            at["done"][before], logged["render_done"][before], ready["at"] - ready["ms"] / 1000,
            ready["at"], at["prompt"][after], at["start"][after],
        ])  # fmt: skip
    end = [
        at["done"][-1], logged["render_done"][-1], logged["encode_done"][-1],
        logged["join_done"][0], stored,
    ]  # fmt: skip
    moments = {"start": [start], "gap": gaps, "end": [end]}
    return {
        what: [[later - sooner for sooner, later in pairwise(row)] for row in rows]
        for what, rows in moments.items()
    }


def read_log(log: str) -> dict[str, list[dict[str, Any]]]:
    """The worker's events in their order, each with its fields; `at` is the monotonic clock that
    the sandbox uses.
    """
    epoch = time.time() - time.monotonic()
    found: dict[str, list[dict[str, Any]]] = {}
    for stamp, event, fields in LOG_LINE.findall(log):
        moment = datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp() - epoch
        pairs: dict[str, Any] = dict(re.findall(r"(\w+)=(\S+)", fields))
        pairs |= {"at": moment, "ms": float(pairs.get("ms", 0))}
        found.setdefault(event, []).append(pairs)
    return found
