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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from sandbox.client import LIGHT, ROOT, Hosted, inherited

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
    usage: Usage

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
    with ThreadPoolExecutor(options.at_once) as pool:
        runs = list(pool.map(lambda case: measure(case[0], case[1], options.scale), cases))
    show_totals(runs)
    show_gaps(runs)
    return 0


def measure(mode: str, clips: int, scale: float) -> Run:
    with tempfile.TemporaryDirectory(prefix="ltx-bench-") as name:
        folder = Path(name)
        with Hosted(folder / "hosted", frames=STILLS[0].parent) as hosted:
            beside = {"on": "boot", "kind": "slow", "seconds": (BOOT_BESIDE_S - BOOT_S) / scale}
            first = {"on": "boot", "kind": "slow", "seconds": 0}
            if mode == "standby":
                hosted.script_comfyui(first, *[beside] * (clips + 1))
            with working(hosted, mode, scale, folder) as worker:
                hosted.wait("heartbeat")
                stills = [
                    f"{hosted.url}/frames/{STILLS[n % len(STILLS)].name}" for n in range(clips + 1)
                ]
                job = hosted.add_job(stills, [f"walk on, part {n}" for n in range(clips)])
                outcome = hosted.wait("*", job, timeout=3600, where=is_outcome)
                usage = read_usage(worker.pid)
            if outcome["kind"] != "complete":
                raise RuntimeError(f"{mode}, {clips} clips: {outcome['data']}")
            return read_run(mode, clips, hosted, (folder / "worker.log").read_text(), usage)


def is_outcome(event: dict[str, Any]) -> bool:
    return event["kind"] in ("complete", "fail")


@contextlib.contextmanager
def working(
    hosted: Hosted, mode: str, scale: float, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    environ = {
        **inherited(),
        **LIGHT,
        **hosted.worker_settings(),
        **hosted.lookalike_settings(),
        **MODES[mode],
        **{f"LOOKALIKE_{name}_S": str(seconds / scale) for name, seconds in PROFILE.items()},
        "VIDEO_SIZE": SIZE,
        "STATE_DIR": str(folder / "state"),
        "POLL_INTERVAL_S": "0.2",
    }
    with (folder / "worker.log").open("wb") as log:
        command = [sys.executable, "-u", str(ROOT / "ltx_worker.py")]
        worker = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:
        yield worker
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait()


def read_usage(pid: int) -> Usage:
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    peak = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert peak
    return Usage(sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), int(peak[1]) / 1024)


def read_run(mode: str, clips: int, hosted: Hosted, log: str, usage: Usage) -> Run:
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
    return Run(mode, clips, stored - claimed, ideal, before, after, gaps, ready_seen, usage)


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
            f" {run.usage.cpu:10.2f} s {run.usage.peak:10.1f} MB"
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
