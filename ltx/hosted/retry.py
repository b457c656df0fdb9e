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
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ltx.errors import Unavailable
from ltx.text import log_event, one_line

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

    tries: float
    cap: float = BACKOFF_CAP_S

    def run(
        self,
        call: Callable[[int], T],
        wait: Callable[[float], object],
        on_failure: Callable[[Unavailable, int, float], object] = lambda _error, _tries, _pause: (
            None
        ),
    ) -> T:
        """call(number of the try) until it answers. Raises the last Unavailable.

        on_failure: hears of each failure that is tried again, with tries so far and the pause.
        """
        for tries in itertools.count(1):
            try:
                return call(tries)
            except Unavailable as error:
                if tries >= self.tries or error.lasting:
                    raise
                pause = backoff(tries, self.cap, error.retry_after)
                on_failure(error, tries, pause)
                wait(pause)
        raise AssertionError("the last try returns or raises")


class Outage:
    """Logs the first and every tenth failure in a row, and when it is over."""

    def __init__(self, what: str) -> None:
        self.what, self.tries = what, 0

    def note(self, error: Exception) -> int:
        self.tries += 1
        if self.tries == 1 or self.tries % 10 == 0:
            event, why = f"{self.what}_unavailable", one_line(error)
            log_event(event, why, logging.WARNING, tries=self.tries)
        return self.tries

    def over(self) -> None:
        if self.tries:
            log_event(f"{self.what}_back", tries=self.tries)
        self.tries = 0
