"""How well the clip gate tells good clips from bad ones, and what a look costs.

`make clip-gate`: makes some 470 labelled clips from photographs, has the worker's own code look
at each, and prints who was refused, what was measured, and the margins. The thresholds were chosen
on one half of the photographs ("tuned"); what counts is the other half ("held out").

The photographs are those that scikit-image and scikit-learn ship, and the sandbox's drawn rooms:
see PHOTOS for whose they are.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from bench.agenda import Agenda
from bench.clip_gate.clips import Case, cases
from bench.clip_gate.look import Result, time_look, try_case
from ltx.film.clip_gate import ALIKE, ClipMeasures, limits


def print_confusion(results: Sequence[Result]) -> None:
    print(f"\n{'kind':24} {'clips':>5} {'refused':>7}  by")
    by_kind: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_kind[result.case.name].append(result)
    for name, found in by_kind.items():
        checks = Counter(check for one in found for check in one.failed)
        why = ", ".join(f"{check} {count}" for check, count in checks.most_common())
        print(f"{name:24} {len(found):5} {sum(bool(one.failed) for one in found):7}  {why}")
    for label in ("good", "gross", "mild"):
        found = [one for one in results if one.case.label == label]
        refused = sum(bool(one.failed) for one in found)
        share = 100 * refused / max(1, len(found))
        print(f"all {label:20} {len(found):5} {refused:7}  {share:.1f} %")


MEASURES = tuple(ClipMeasures.__dataclass_fields__)[1:]


def spread(results: Iterable[Result], measure: str) -> str:
    values = [float(getattr(one.look, measure)) for one in results if one.look]
    if not values:
        return f"{'-':>17}"
    return "/".join(f"{v:5.2f}" for v in (min(values), statistics.median(values), max(values)))


def print_measures(results: Sequence[Result]) -> None:
    print("\nmeasured, least/median/most:")
    print(f"{'':24} " + " ".join(f"{name:>17}" for name in MEASURES))
    groups: dict[str, list[Result]] = {"all good": [r for r in results if r.case.label == "good"]}
    for result in results:
        groups.setdefault(result.case.name, []).append(result)
    for name, found in groups.items():
        print(f"{name:24} " + " ".join(f"{spread(found, measure):>17}" for measure in MEASURES))


def print_margins(results: Sequence[Result]) -> None:
    print("\nmargins: the good clip nearest to each limit")
    looks = [r.look for r in results if r.look and r.case.label == "good"]
    least, most = limits(differ=True)
    for name, limit in {**least, **most}.items():
        counted = [
            look
            for look in looks
            if look.alike < ALIKE or name in limits(differ=False)[name in most]
        ]
        values = [float(getattr(look, name)) for look in counted]
        if not values:
            continue
        worst = min(values) if name in least else max(values)
        print(f"  {name:8} limit {limit:5.2f}  nearest good {worst:5.2f}")


def try_all(chosen: Sequence[Case], jobs: int) -> Iterator[Result]:
    """Every kind in turn, so that what was not reached in time lacks no kind."""
    pool = ProcessPoolExecutor(jobs, get_context("forkserver"))
    try:
        yield from pool.map(try_case, sorted(chosen, key=lambda case: case.number))
    finally:
        pool.shutdown(cancel_futures=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--good", type=int, default=28, help="clips of each good kind")
    parser.add_argument("--bad", type=int, default=10, help="clips of each bad kind and strength")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=60, help="end the set after this long")
    parser.add_argument("--no-time", action="store_true", help="do not time a clip of 1080p")
    parser.add_argument("--only", default="", help="only kinds that contain this")
    options = parser.parse_args()
    chosen = [case for case in cases(options.good, options.bad) if options.only in case.name]
    results: list[Result] = []
    parts = {"clips": len(chosen), "the time of a look": int(not options.no_time)}
    with Agenda(60 * options.minutes, parts) as agenda:
        for result in try_all(chosen, options.jobs):
            results.append(result)
            agenda.done("clips")
            if len(results) % 20 == 0:
                print(f"{len(results)} of {len(chosen)}", file=sys.stderr, flush=True)
        if not options.no_time:
            with agenda.part("the time of a look"), tempfile.TemporaryDirectory() as folder:
                time_look(Path(folder))
    print(f"{len(results)} of {len(chosen)} clips were looked at")
    print_results(results)
    refused = any(one.failed for one in results if one.case.label == "good")
    return int(refused or not agenda.complete)


def print_results(results: Sequence[Result]) -> None:
    for half, title in enumerate(("tuned", "held out")):
        print(f"\n=== {title} ===")
        ours = [one for one in results if one.case.half == half]
        print_confusion(ours)
        print_measures(ours)
        print_margins(ours)
    for one in results:
        if (one.case.label == "good") == bool(one.failed):
            print("wrong:", one.case, one.told or one.look)


if __name__ == "__main__":
    sys.exit(main())
