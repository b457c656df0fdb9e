"""Nothing lost: real workers against one sandbox while everything around and in them dies.

    make chaos                                  # 200 jobs, 300 faults, 4 workers
    python -m bench.chaos --jobs 20 --faults 30 --seconds 60 --seed 7

The schedule follows from the seed; how it meets the workers is up to the machine. Ends with 1 when
a job is lost, delivered twice or left in a spool, a film is not the job's own, a job is failed for
good for what happened around it, a worker ends by itself, a process is left over or a stop takes
too long.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from bench.agenda import Agenda
from bench.chaos.crew import STOP_S, enlist, mount_disks
from bench.chaos.faults import Stage, strike
from bench.chaos.report import tell
from sandbox.client import Hosted

LEASE_S, TAIL_S, TICK_S = 4.0, 150.0, 0.1
FILM_S = 1.5  # a look at one, on two slow cores


def play(stage: Stage, jobs: int, faults: int, seconds: float) -> None:
    """Strikes as time passes, and as jobs are done, so that all strikes come before the end."""
    began = time.monotonic()
    pace = faults / (0.8 * seconds)
    while time.monotonic() - began < seconds:
        for member in stage.crew:
            member.tend()
        left = len(stage.open_jobs())
        if not left:
            break
        due = max(
            pace * (time.monotonic() - began), faults * (jobs - left + len(stage.crew)) / jobs
        )
        while stage.faults.total() < min(due, faults):
            strike(stage)
        time.sleep(stage.rng.uniform(0.5, 1.5) * TICK_S)


def settle(stage: Stage) -> None:
    """Peace: what is still open, or waits in a spool, is brought to its end by whoever is there."""
    stage.hosted.clear_faults()
    stage.hosted.clear_comfyui_script()
    for member in stage.crew:
        member.free_disk()
    end = time.monotonic() + TAIL_S
    while (stage.open_jobs() or stage.spooled_jobs()) and time.monotonic() < end:
        for member in stage.crew:
            member.tend()
        time.sleep(5 * TICK_S)
    for member in stage.crew:
        member.ask_to_stop(rest=0.0)
    for member in stage.crew:
        while member.running:
            member.back_at = 1e9
            member.tend()
            time.sleep(TICK_S)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600, help="how long faults strike at most")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--keep", type=Path, help="a new folder for logs, spools and films")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    began = time.monotonic()
    longest = options.seconds + TAIL_S + 2 * STOP_S + FILM_S * options.jobs
    agenda = Agenda(longest, ("striking", "settling", "looking at the films"))
    right = False
    with agenda, contextlib.ExitStack() as stack:
        if options.keep:
            options.keep.mkdir(parents=True)
        base = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory("-chaos")))
        base = base.resolve()
        hosted = stack.enter_context(Hosted(base / "hosted", lease_s=LEASE_S))
        crew = [enlist(hosted, base, number) for number in range(options.workers)]
        stage = Stage(hosted, crew, random.Random(options.seed))
        stage.small_disks = mount_disks(crew, stack, keep=bool(options.keep))
        for member in crew:
            stack.callback(partial(member.kill, 1e9))
        stage.add_jobs(options.jobs)
        with agenda.part("striking"):
            play(stage, options.jobs, options.faults, options.seconds)
        with agenda.part("settling"):
            settle(stage)
        with agenda.part("looking at the films"):
            right = tell(stage, time.monotonic() - began)
    return 0 if right and agenda.complete else 1


if __name__ == "__main__":
    sys.exit(main())
