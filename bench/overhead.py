"""What the worker adds to ComfyUI's own time: plain restart, standby and one process for a job.

    make bench                  # a tenth of a GPU's times
    python -m bench.overhead --scale 1 --clips 3 4 5 --at-once 9

The real worker renders with the look-alike, which takes as long over each thing as ComfyUI took on
a real GPU for 1280x704 with the default sampler, divided by the scale. The film itself is small,
because drawing and encoding it is this machine's work and not what is measured.

    wall    from the claim to the first byte for the store
    ideal   the first boot, ComfyUI's own execution of every prompt, and the last clip's encode
    before  from the claim to the first prompt, without the boot
    after   from the end of the last prompt to the store, without the encode
    gap     from the end of a prompt to the start of the next, and its parts (medians)
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from bench import usage
from bench.agenda import Agenda
from sandbox.client import ROOT, Hosted
from sandbox.launch import Running, box_settings, environ, pace, worker_command

MODES = {
    "plain restart": {"COMFYUI_STANDBY": "0"},
    "standby": {"COMFYUI_STANDBY": "1"},
    "job": {"COMFYUI_RESTART": "job"},
}
# Seconds on a real GPU: boot alone and beside a rendering clip; loading for the first prompt of a
# process (text encoder, two texts, checkpoint, NAG, two pictures, model) and for a later one (one
# text, two pictures, what of the model had to leave); what ends with a process.
BOOT_S, BOOT_BESIDE_S = 15.2, 20.6
PROFILE = {
    "BOOT": BOOT_S,
    "LOAD": 0.7 + 4.0 + 1.0 + 2.4 + 0.4 + 4.2,
    "WARM_LOAD": 2.6 + 0.2 + 1.6,
    "STEP": 1.64,
    "DECODE": 1.6,
    "ENCODE": 4.2,
    "TERM": 0.4,
}
SIZE = "256x144"
STILLS = sorted((ROOT / "sandbox" / "frames").glob("[0-9]*.jpg"))
LOG_LINE = re.compile(r"^(\S+ \S+) INFO (\w+) (.*)$", re.MULTILINE)
PARTS = ("noticed", "safe and ended", "next one ready", "prompt sent", "begun")


Case = tuple[str, int]  # mode, clips


class Usage(NamedTuple):
    """Of the worker alone, without its children: seconds of CPU, the most memory in MB."""

    cpu: float
    peak: float


@dataclass(frozen=True)
class Run:
    mode: str
    clips: int
    wall: float
    ideal: float
    before: float
    after: float
    gaps: list[list[float]]
    ready_seen: float
    used: Usage

    @property
    def ratio(self) -> float:
        return self.wall / self.ideal


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--scale", type=float, default=10.0, help="divide the GPU's times by this")
    parser.add_argument("--clips", type=int, nargs="+", default=[1, 2, 3, 4, 5], metavar="N")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--at-once", type=int, default=1, help="workers side by side")
    options = parser.parse_args(arguments)
    cases = [(mode, clips) for clips in options.clips for mode in options.modes]
    print(f"times of a GPU divided by {options.scale:g}, {options.at_once} at once; in seconds\n")
    names = {case: f"{case[0]} of {case[1]}" for case in cases}
    runs: list[Run] = []
    with Agenda(longest(cases, options.scale, options.at_once), names.values()) as agenda:
        for case, run in run_all(cases, options, agenda):
            runs.append(run)
            agenda.done(names[case])
    if runs:
        show_totals(runs)
        show_gaps(runs)
    return 0 if agenda.complete else 1


def longest(cases: Sequence[Case], scale: float, at_once: int) -> float:
    """Seconds: twice what plain restarts take, and what this machine does for itself."""
    clip = sum(PROFILE.values()) + 8 * PROFILE["STEP"]
    each = [2 * clips * clip / scale + 30 + 5 * clips for _, clips in cases]
    return max(sum(each) / at_once, *each)


def run_all(
    cases: Sequence[Case], options: argparse.Namespace, agenda: Agenda
) -> Iterator[tuple[Case, Run]]:
    """Those that come to their end in time."""
    pool = ThreadPoolExecutor(options.at_once)
    try:
        yield from zip(
            cases,
            pool.map(lambda case: measure(case[0], case[1], options.scale, agenda), cases),
            strict=True,
        )
    finally:
        pool.shutdown(cancel_futures=True)


def measure(mode: str, clips: int, scale: float, agenda: Agenda) -> Run:
    with tempfile.TemporaryDirectory(prefix="ltx-bench-") as name:
        folder = Path(name)
        with Hosted(folder / "hosted", frames=STILLS[0].parent) as hosted:
            beside = {"on": "boot", "kind": "slow", "seconds": (BOOT_BESIDE_S - BOOT_S) / scale}
            first = {"on": "boot", "kind": "slow", "seconds": 0}
            if mode == "standby":
                hosted.script_comfyui(first, *[beside] * (clips + 1))
            env = worker_environ(hosted, mode, scale, folder / "state")
            with Running(worker_command(), env, folder / "worker.log") as worker:
                hosted.wait("heartbeat")
                stills = [
                    f"{hosted.url}/frames/{STILLS[n % len(STILLS)].name}" for n in range(clips + 1)
                ]
                job = hosted.add_job(stills, [f"walk on, part {n}" for n in range(clips)])
                outcome = hosted.wait_outcome(job, agenda.seconds_left())
                pid = worker.process.pid
                used = Usage(usage.cpu_seconds(pid), usage.megabytes(pid, "VmHWM"))
            if outcome["kind"] != "complete":
                raise RuntimeError(f"{mode}, {clips} clips: {outcome['data']}")
            return read_run(mode, clips, hosted, worker.log, used)


def worker_environ(hosted: Hosted, mode: str, scale: float, state: Path) -> dict[str, str]:
    times = pace(**{name: seconds / scale for name, seconds in PROFILE.items()})
    own = {"VIDEO_SIZE": SIZE, "POLL_INTERVAL_S": "0.2"}
    return environ(box_settings(hosted, state, **MODES[mode], **times, **own))


def read_run(mode: str, clips: int, hosted: Hosted, log: str, used: Usage) -> Run:
    """Puts together what the hosted side, the look-alike and the worker each noted."""
    at = {
        name: [event["t"] for event in hosted.events(f"comfyui.{name}")]
        for name in ("boot", "ready", "prompt", "start", "done")
    }
    claimed = hosted.events("claim")[0]["t"]
    stored = min(one["t"] for one in hosted.requests("* /api/blob*"))
    logged = read_log(log)
    encode = float(logged["encode_done"][-1][1]["ms"]) / 1000
    executions = sum(done - start for start, done in zip(at["start"], at["done"], strict=True))
    # From its first instruction, which comes before the look-alike can tell of itself.
    boot = at["ready"][0] - logged["comfyui_booting"][0][0]
    gaps = []
    for clip, (before, after) in enumerate(pairwise(range(clips))):
        rendered, _ = logged["render_done"][clip]
        changed, change = logged["boot_done"][clip + 1]
        moments = [
            at["done"][before], rendered, changed - float(change["ms"]) / 1000, changed,
            at["prompt"][after], at["start"][after],
        ]  # fmt: skip
        gaps.append([end - start for start, end in pairwise(moments)])
    ideal = boot + executions + encode
    before, after = at["start"][0] - claimed - boot, stored - at["done"][-1] - encode
    ready_seen = logged["boot_done"][0][0] - at["ready"][0]
    return Run(mode, clips, stored - claimed, ideal, before, after, gaps, ready_seen, used)


def read_log(log: str) -> dict[str, list[tuple[float, dict[str, str]]]]:
    """The worker's events in their order: when each was logged, by the monotonic clock that the
    sandbox uses, and its fields.
    """
    epoch = time.time() - time.monotonic()
    found: dict[str, list[tuple[float, dict[str, str]]]] = {}
    for stamp, event, fields in LOG_LINE.findall(log):
        moment = datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp() - epoch
        pairs = dict(re.findall(r"(\w+)=(\S+)", fields))
        found.setdefault(event, []).append((moment, pairs))
    return found


def show_totals(runs: Sequence[Run]) -> None:
    print(
        "mode           clips    wall   ideal  wall/ideal   before  gaps  after"
        "   worker CPU   peak memory"
    )
    for run in runs:
        print(
            f"{run.mode:14} {run.clips:5} {run.wall:7.2f} {run.ideal:7.2f} {run.ratio:11.3f}"
            f" {run.before:8.2f} {sum(map(sum, run.gaps)):5.2f} {run.after:6.2f}"
            f" {run.used.cpu:10.2f} s {run.used.peak:10.1f} MB"
        )


def show_gaps(runs: Sequence[Run]) -> None:
    """Medians over all gaps of a mode; the end of a prompt is when its history is written."""
    print(f"\ngap between clips{'':8}{'total':>8}" + "".join(f"{part:>17}" for part in PARTS))
    for mode in dict.fromkeys(run.mode for run in runs):
        gaps = [gap for run in runs if run.mode == mode for gap in run.gaps]
        if gaps:
            medians = [statistics.median(part) for part in zip(*gaps, strict=True)]
            total = statistics.median(map(sum, gaps))
            print(f"{mode:25}{total:8.3f}" + "".join(f"{median:17.3f}" for median in medians))
    seen = statistics.median(run.ready_seen for run in runs)
    print(f"\na ComfyUI that has booted is seen after (median of first boots): {seen:.3f}")


if __name__ == "__main__":
    sys.exit(main())
