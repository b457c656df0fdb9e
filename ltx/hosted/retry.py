"""How often, and after which pauses, something is asked again: the policy for all of the worker.

What gave no answer (Unavailable: no connection, a 429, a 5xx, a page of somebody in between) is
asked again after about 1 s, then 2 s, 4 s and so on, at most `cap` apart. Each pause is shortened
at random by up to a half, so that workers that failed together do not come back together. A
Retry-After is honoured up to the same cap. A refusal is an answer and never asked again.
"""

from __future__ import annotations

import email.utils
import itertools
import logging
import math
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ltx.errors import Unavailable
from ltx.text import format_utc, log_event, one_line

T = TypeVar("T")
BACKOFF_CAP_S = 60.0


def backoff(tries: int, cap: float = BACKOFF_CAP_S, asked: float | None = None) -> float:
    """Seconds to wait after `tries` failures in a row; asked: what Retry-After said."""
    seconds = min(cap, 2.0 ** min(tries - 1, 16)) * random.uniform(0.5, 1.0)  # noqa: S311
    return seconds if asked is None else min(cap, max(seconds, asked))


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds from a Retry-After (or Date) header, as a number or from its date."""
    if not value:
        return None
    if re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - now
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True)
class Retry:
    """The policy of this module for one kind of call: at most `tries`, at most `cap` s apart."""

    tries: float = math.inf
    cap: float = BACKOFF_CAP_S

    def pause(self, tries: int, error: Unavailable) -> float:
        """Seconds until the next try, after `tries` failures in a row."""
        return backoff(tries, self.cap, error.retry_after)

    def run(
        self,
        call: Callable[[int], T],
        wait: Callable[[float], object],
        on_failure: Callable[[Unavailable, int, float], object] = lambda _error, _tries, _pause: (
            None
        ),
    ) -> T:
        """call(number of the try) until it answers. Raises the last Unavailable.

        on_failure: hears of each failure, with tries so far and the pause before another one.
        """
        for tries in itertools.count(1):
            try:
                return call(tries)
            except Unavailable as error:
                pause = self.pause(tries, error)
                on_failure(error, tries, pause)
                if tries >= self.tries or error.lasting:
                    raise
                wait(pause)
        raise AssertionError("the last try returns or raises")


class Outage:
    """Logs the first and every tenth failure in a row, and when it is over.

    now: since when (seconds since 1970) and why, while it lasts; another thread may read it.
    """

    def __init__(self, what: str) -> None:
        self.what, self.tries = what, 0
        self.now: tuple[float, str] | None = None

    def note(self, error: Exception) -> int:
        self.tries += 1
        since, why = self.now[0] if self.now else time.time(), one_line(error)
        self.now = (since, why)
        if self.tries == 1 or self.tries % 10 == 0:
            log_event(f"{self.what}_unavailable", why, logging.WARNING, tries=self.tries)
        return self.tries

    def describe(self, address: str, to: str = "") -> str:
        """Since when and why there is no answer from this address, if there is none."""
        now = self.now
        return f"no answer{to} from {address} since {format_utc(now[0])}: {now[1]}" if now else ""

    def over(self) -> bool:
        """Whether there was one until now."""
        if was := self.tries > 0:
            log_event(f"{self.what}_back", tries=self.tries)
        self.tries, self.now = 0, None
        return was
