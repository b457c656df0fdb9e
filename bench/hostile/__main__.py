"""Everything hostile that may reach a worker, case by case, against the running worker.

    make hostile                                   # all cases, some minutes
    python -m bench.hostile --only "no pictures"   # one group; names as the table has them

Ends with 1 when a case comes out otherwise than expected or is not reached, a worker ends by
itself, a file is written outside of the state folder, or a secret is seen anywhere it does not
belong.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.agenda import Agenda
from bench.hostile.cases import cases, quick_slice
from bench.hostile.play import OWN, play_all
from bench.hostile.report import tell
from bench.hostile.stage import Stage

QUICK_S, LONGEST_S = 150.0, 2400.0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", help="a group of cases; may be given again")
    parser.add_argument("--quick", action="store_true", help="a slice of every kind, no waiting")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    began, quick = time.monotonic(), options.quick or bool(options.only)
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory("-hostile"))).resolve()
        agenda = Agenda(QUICK_S if options.quick else LONGEST_S, ())
        stage = Stage(base, stack, agenda, trace=not options.quick)
        table = [one for one in cases(stage.place) if not options.only or one.group in options.only]
        table = quick_slice(table) if options.quick else table
        agenda.plan(Counter(case.group for case in table) + Counter({} if quick else {OWN: 1}))
        with agenda:
            play_all(stage, table, quick)
        stage.stop_workers()
        right = tell(stage, table, time.monotonic() - began)
        return 0 if right and agenda.complete else 1


if __name__ == "__main__":
    sys.exit(main())
