"""What the worker adds to ComfyUI's own time, and what it saves by reading texts once per job.

    make bench                  # a tenth of a GPU's times
    python -m bench.overhead --scale 1 --clips 3 4 5 --at-once 21
    python -m bench.overhead --scale 1 --clips 5 --size 1920x1080    # what frames of 1080p cost

The real worker makes two jobs of texts that nobody has read before, one behind the other: with a
plain restart per clip, with a standby, and with one process for a job; with LTX_TEXT=job and clip.
It renders with the look-alike, which takes as long over each thing as ComfyUI took on a real GPU
for 1280x704 with the default sampler, divided by the scale. The film itself is small, because
drawing and encoding it is this machine's work and not what is measured.

Beside it a warm peer: one process with the text encoder in every graph, which is handed a job's
prompts all at once. Nothing is fetched, looked at, cut, joined or stored, so that no program that
renders in this way is faster.

    wall    from the claim to the first byte for the store; a peer's to the end of its last prompt
    ideal   ComfyUI's own execution of every prompt, the last clip's pass, and for the first job the
            boot, which is there for the second one
    start   from the claim to the first clip's prompt
    gap     from the end of a clip's prompt to the start of the next
    end     from the end of the last prompt to the store
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.agenda import Agenda
from bench.overhead.modes import JOBS, MODES, PEER, PROFILES, SHOWN, STILLS, Case, Made
from bench.overhead.peer import run_peer
from bench.overhead.worker import run_worker
from sandbox.client import Hosted

PARTS = {
    "start": ("frames here", "frames made", "texts read", "ComfyUI ready", "prompt sent"),
    "gap": ("noticed", "kept and ended", "next one ready", "prompt sent", "begun"),
    "end": ("noticed", "pass and keep", "joined", "store called"),
}
BASE = "clip/standby"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--scale", type=float, default=10.0, help="divide the GPU's times by this")
    parser.add_argument("--clips", type=int, nargs="+", default=[2, 5], metavar="N")
    every = [*MODES, PEER]
    parser.add_argument("--modes", nargs="+", default=[*SHOWN, PEER], choices=every, metavar="MODE",
                        help=", ".join(every))  # fmt: skip
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
    clip = sum(times.values()) + 8 * times["STEP"] + times["TEXT"]
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
    with (
        tempfile.TemporaryDirectory(prefix="ltx-bench-") as name,
        Hosted(Path(name) / "hosted", frames=STILLS[0].parent) as hosted,
    ):
        run = run_peer if case.mode == PEER else run_worker
        return list(run(case, hosted, Path(name), options, agenda))


def show_totals(made: Sequence[Made]) -> None:
    print(
        f"mode            clips  job    wall  of {BASE}   ideal  wall/ideal   start   gaps    end"
        "   worker CPU   peak memory"
    )
    walls = {(one.case, one.number): one.wall for one in made}
    for one in made:
        base = walls.get((one.case._replace(mode=BASE), one.number))
        share = f"{one.wall / base:16.2f}" if base else " " * 16
        row = f"{one.case.mode:15} {one.case.clips:5} {one.number:4} {one.wall:7.2f}{share}"
        row += f"{one.ideal:8.2f}{one.wall / one.ideal:12.3f}"
        if one.used:
            row += "".join(f"{one.spent(what):7.2f}" for what in PARTS)
            row += f"{one.used.cpu:11.2f} s {one.used.peak:10.1f} MB"
        print(row)


def show_parts(what: str, made: Sequence[Made]) -> None:
    """Medians over all jobs of a mode, first and second ones apart."""
    print(f"\n{what:15}  job   n{'total':>9}" + "".join(f"{part:>17}" for part in PARTS[what]))
    for mode in dict.fromkeys(one.case.mode for one in made):
        for number in range(1, JOBS + 1):
            own = [one for one in made if (one.case.mode, one.number) == (mode, number)]
            rows = [row for one in own for row in one.parts.get(what, ())]
            if rows:
                medians = [statistics.median(part) for part in zip(*rows, strict=True)]
                total = statistics.median(map(sum, rows))
                cells = "".join(f"{median:17.3f}" for median in medians)
                print(f"{mode:15} {number:4}{len(rows):4}{total:9.3f}{cells}")


if __name__ == "__main__":
    sys.exit(main())
