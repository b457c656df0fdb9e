"""What the worker adds to ComfyUI's own time: plain restart, standby and one process for a job.

    make bench                  # a tenth of a GPU's times
    python -m bench.overhead --scale 1 --clips 3 4 5 --at-once 6
    python -m bench.overhead --scale 1 --clips 5 --size 1920x1080    # what frames of 1080p cost

The real worker makes two jobs, one behind the other. It renders with the look-alike, which takes as
long over each thing as ComfyUI took on a real GPU for 1280x704 with the default sampler, divided by
the scale. The film itself is small, because drawing and encoding it is this machine's work and not
what is measured.

    wall    from the claim to the first byte for the store
    ideal   ComfyUI's own execution of every prompt, the last clip's pass, and for the first job the
            boot, which is there for the second one
    start   from the claim to the first prompt
    gap     from the end of a prompt to the start of the next
    end     from the end of the last prompt to the store
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from bench import usage
from bench.agenda import Agenda
from sandbox.client import ROOT, Event, Hosted
from sandbox.launch import Running, box_settings, environ, pace, worker_command

MODES = {
    "plain restart": {"COMFYUI_STANDBY": "0"},
    "standby": {"COMFYUI_STANDBY": "1"},
    "job": {"COMFYUI_STANDBY": "1", "COMFYUI_RESTART": "job"},
}
JOBS = 2
# Seconds on a real GPU: how much longer a boot takes beside a rendering clip; what ends with a
# process; what its first prompt loads (text encoder, two texts, checkpoint, NAG, two pictures,
# model) and a later one (one text, two pictures, what of the model had to leave).
BESIDE_S = 20.6 - 15.2
PROFILES = {
    # The owner's text encoder, through the GGUF node.
    "gguf": {
        "BOOT": 16.3, "TERM": 0.4, "STEP": 1.66, "DECODE": 1.9, "ENCODE": 5.2,
        "LOAD": 27.5 + 4.5 + 1.2 + 3.7 + 0.4 + 15.8, "WARM_LOAD": 3.5 + 0.2 + 9.5,
    },
    # Gemma in fp8, through the core's loader.
    "fp8": {
        "BOOT": 15.2, "TERM": 0.4, "STEP": 1.64, "DECODE": 1.6, "ENCODE": 4.2,
        "LOAD": 0.7 + 4.0 + 1.0 + 2.4 + 0.4 + 4.2, "WARM_LOAD": 2.6 + 0.2 + 1.6,
    },
}  # fmt: skip
STILLS = sorted((ROOT / "sandbox" / "frames").glob("[0-9]*.jpg"))
LOG_LINE = re.compile(r"^(\S+ \S+) INFO (\w+) (.*)$", re.MULTILINE)
PARTS = {
    "start": ("frames here", "frames made", "ComfyUI ready", "prompt sent"),
    "gap": ("noticed", "kept and ended", "next one ready", "prompt sent", "begun"),
    "end": ("noticed", "pass and keep", "joined", "store called"),
}


class Case(NamedTuple):
    mode: str
    clips: int

    def __str__(self) -> str:
        return f"{self.mode} of {self.clips}"


class Usage(NamedTuple):
    """Of the worker alone, without its children: seconds of CPU, the most memory in MB."""

    cpu: float
    peak: float


@dataclass(frozen=True)
class Made:
    """One job of a worker; `parts` has one row for its start, each gap, and its end."""

    case: Case
    number: int
    wall: float
    ideal: float
    parts: Mapping[str, Sequence[Sequence[float]]]
    used: Usage

    def spent(self, what: str) -> float:
        return sum(map(sum, self.parts[what]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--scale", type=float, default=10.0, help="divide the GPU's times by this")
    parser.add_argument("--clips", type=int, nargs="+", default=[1, 3, 5], metavar="N")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--profile", default="gguf", choices=PROFILES, help="whose times")
    parser.add_argument("--size", default="256x144", help="of the film")
    parser.add_argument("--at-once", type=int, default=1, help="workers side by side")
    options = parser.parse_args(arguments)
    cases = [Case(mode, clips) for clips in options.clips for mode in options.modes]
    print(
        f"{options.profile}, a GPU's times divided by {options.scale:g}, film {options.size},"
        f" {options.at_once} at once; in seconds\n"
    )
    made: list[Made] = []
    with Agenda(longest(cases, options), map(str, cases)) as agenda:
        for case, jobs in run_all(cases, options, agenda):
            made += jobs
            agenda.done(str(case))
    if made:
        show_totals(made)
        for what in PARTS:
            show_parts(what, made)
    return 0 if agenda.complete else 1


def longest(cases: Sequence[Case], options: argparse.Namespace) -> float:
    """Seconds: twice what plain restarts take, and what this machine does for itself."""
    times = PROFILES[options.profile]
    clip = sum(times.values()) + 8 * times["STEP"]
    each = [JOBS * (2 * case.clips * clip / options.scale + 30 + 15 * case.clips) for case in cases]
    return float(max(sum(each) / options.at_once, *each))


def run_all(
    cases: Sequence[Case], options: argparse.Namespace, agenda: Agenda
) -> Iterator[tuple[Case, list[Made]]]:
    """Those that come to their end in time."""
    pool = ThreadPoolExecutor(options.at_once)
    try:
        runs = pool.map(lambda case: measure(case, options, agenda), cases)
        yield from zip(cases, runs, strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def measure(case: Case, options: argparse.Namespace, agenda: Agenda) -> list[Made]:
    with tempfile.TemporaryDirectory(prefix="ltx-bench-") as name:
        folder = Path(name)
        with Hosted(folder / "hosted", frames=STILLS[0].parent) as hosted:
            if case.mode != "plain restart":
                slow = {"on": "boot", "kind": "slow", "seconds": BESIDE_S / options.scale}
                hosted.script_comfyui({**slow, "seconds": 0}, *[slow] * JOBS * (case.clips + 1))
            env = worker_environ(hosted, case.mode, options, folder / "state")
            with Running(worker_command(), env, folder / "worker.log") as worker:
                hosted.wait("heartbeat")
                jobs = [add_job(hosted, case.clips) for _ in range(JOBS)]
                for job in jobs:
                    outcome = hosted.wait_outcome(job, agenda.seconds_left())
                    if outcome["kind"] != "complete":
                        raise RuntimeError(f"{case}: {outcome['data']}")
                pid = worker.process.pid
                used = Usage(usage.cpu_seconds(pid), usage.megabytes(pid, "VmHWM"))
            return list(read_jobs(case, jobs, hosted, worker.log, used))


def worker_environ(
    hosted: Hosted, mode: str, options: argparse.Namespace, state: Path
) -> dict[str, str]:
    times = PROFILES[options.profile].items()
    own = pace(**{name: seconds / options.scale for name, seconds in times})
    more = {"VIDEO_SIZE": options.size, "POLL_INTERVAL_S": "0.2"}
    return environ(box_settings(hosted, state, **MODES[mode], **own, **more))


def add_job(hosted: Hosted, clips: int) -> str:
    stills = [STILLS[number % len(STILLS)].name for number in range(clips + 1)]
    urls = [f"{hosted.url}/frames/{still}" for still in stills]
    return hosted.add_job(urls, [f"walk on, part {number}" for number in range(clips)])


def read_jobs(
    case: Case, jobs: Sequence[str], hosted: Hosted, log: str, used: Usage
) -> Iterator[Made]:
    """Puts together what the hosted side, the look-alike and the worker each noted."""
    logged = read_log(log)
    booting = float(logged["comfyui_booting"][0]["at"])
    boot = hosted.events("comfyui.ready")[0]["t"] - booting
    begins = [event["t"] for event in hosted.events("claim")]
    for number, (job, begin) in enumerate(zip(jobs, begins, strict=True)):
        end = hosted.events("complete", job=job)[0]["t"]
        told = {
            event: [fields for fields in lines if fields.get("job") == job]
            for event, lines in logged.items()
        }
        at = {
            name: times(hosted.events(f"comfyui.{name}"), begin, end)
            for name in ("prompt", "start", "done")
        }
        stored = min(times(hosted.requests("* /api/blob*"), begin, end))
        executions = sum(done - start for start, done in zip(at["start"], at["done"], strict=True))
        encode = told["encode_done"][-1]["ms"] / 1000
        parts = read_parts(begin, stored, at, told)
        ideal = executions + encode + (0 if number else boot)
        yield Made(case, number + 1, stored - begin, ideal, parts, used)


def times(events: Iterable[Event], begin: float, end: float) -> list[float]:
    return [event["t"] for event in events if begin <= event["t"] <= end]


Told = Mapping[str, Sequence[Mapping[str, Any]]]


def read_parts(
    begin: float, stored: float, at: Mapping[str, Sequence[float]], told: Told
) -> dict[str, list[list[float]]]:
    """The seconds of each of PARTS."""
    logged = {event: [fields["at"] for fields in lines] for event, lines in told.items()}
    start = [
        begin, logged["download_done"][0], logged["check_done"][0], logged["boot_done"][0],
        at["prompt"][0],
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


def show_totals(made: Sequence[Made]) -> None:
    print(
        "mode           clips  job    wall   ideal  wall/ideal   start   gaps    end"
        "   worker CPU   peak memory"
    )
    for one in made:
        spent = "".join(f"{one.spent(what):7.2f}" for what in PARTS)
        print(
            f"{one.case.mode:14} {one.case.clips:5} {one.number:4} {one.wall:7.2f} {one.ideal:7.2f}"
            f" {one.wall / one.ideal:11.3f} {spent}"
            f" {one.used.cpu:10.2f} s {one.used.peak:10.1f} MB"
        )


def show_parts(what: str, made: Sequence[Made]) -> None:
    """Medians over all jobs of a mode, first and second ones apart."""
    print(f"\n{what:14}  job   n{'total':>9}" + "".join(f"{part:>17}" for part in PARTS[what]))
    for mode in dict.fromkeys(one.case.mode for one in made):
        for number in range(1, JOBS + 1):
            own = [one for one in made if (one.case.mode, one.number) == (mode, number)]
            rows = [row for one in own for row in one.parts[what]]
            if rows:
                medians = [statistics.median(part) for part in zip(*rows, strict=True)]
                total = statistics.median(map(sum, rows))
                cells = "".join(f"{median:17.3f}" for median in medians)
                print(f"{mode:14} {number:4}{len(rows):4}{total:9.3f}{cells}")


if __name__ == "__main__":
    sys.exit(main())
