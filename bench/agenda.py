"""Every bench ends by itself: it says at its start when, and at its end what it did not get to."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

CLEAN_UP_S = 120.0


class OutOfTime(BaseException):
    """The bench's time is over; raised wherever its main thread is, as a Ctrl-C would be."""


class Agenda:
    """The parts of a bench, and the time that they have together.

    Its context ends when all is done, at a Ctrl-C, at a SIGTERM or when the time is over; what was
    not reached is then printed. A bench that has not ended CLEAN_UP_S later ends hard, with all
    that it has started.
    """

    def __init__(self, seconds: float, parts: Iterable[str] | Mapping[str, int]) -> None:
        """parts: names, or how often something is to be done by name."""
        self.seconds, self.left = seconds, Counter(parts)
        self.end = time.monotonic() + seconds
        self.cut = ""
        last = seconds + CLEAN_UP_S
        print(f"This ends by itself within {math.ceil(last / 60)} minutes.\n", flush=True)
        self.watchdog = threading.Timer(last, end_hard, (last,))
        self.watchdog.daemon = True
        self.watchdog.start()
        # The way out of a Ctrl-C, on which everything started here is taken away.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGALRM, ring)

    def __enter__(self) -> Self:
        signal.setitimer(signal.ITIMER_REAL, max(0.001, self.seconds_left()))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> bool:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if kind is OutOfTime:
            self.cut = f"the {self.seconds / 60:.1f} minutes were over"
        elif kind is KeyboardInterrupt:
            self.cut = "it was stopped"
        if missed := +self.left:
            names = ", ".join(f"{name} ({n})" if n > 1 else name for name, n in missed.items())
            print(f"not reached, as {self.cut or 'something failed'}: {names}", flush=True)
        return bool(self.cut)

    @property
    def complete(self) -> bool:
        return not self.cut and not +self.left

    def seconds_left(self) -> float:
        """For a wait of another thread than the main one, which no alarm reaches."""
        return max(0.0, self.end - time.monotonic())

    def plan(self, parts: Mapping[str, int]) -> None:
        """What else is to be done."""
        self.left.update(parts)

    def done(self, part: str) -> None:
        self.left[part] -= 1

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Done when its block has come to its end."""
        yield
        self.done(name)


def ring(_number: int, _frame: object) -> None:
    raise OutOfTime


def end_hard(seconds: float) -> None:
    print(f"! it has not ended within {seconds:.0f} s, and is ended hard", file=sys.stderr)
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    os._exit(3)


def descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found[1:]
