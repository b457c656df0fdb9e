"""What a person sees while the worker runs: log lines, the progress bar, systemd's status."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ltx.cancellation import Cancellation
from ltx.progress import Progress
from ltx.settings import Settings
from ltx.text import log, one_line, redact


class Systemd:
    """Tells systemd how the service is (sd_notify); says nothing when it did not start us."""

    def __init__(self, settings: Settings) -> None:
        address = settings.notify_socket
        # Only a leading @ stands for the abstract namespace; elsewhere it is a character.
        self.address = f"\0{address[1:]}" if address.startswith("@") else address
        self.interval = settings.watchdog_usec / 1e6 / 3
        self.fed, self.status, self.is_ready = 0.0, "", False

    def send(self, *lines: str) -> None:
        if self.address:
            with (
                contextlib.suppress(OSError),
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier,
            ):
                notifier.sendto("\n".join(lines).encode(), self.address)

    def ready(self) -> None:
        """The service has started; until then `systemctl start` waits."""
        if not self.is_ready:
            self.is_ready = True
            self.send("READY=1")

    def tell(self, status: str) -> None:
        if status != self.status:
            self.status = status
            self.send(f"STATUS={status}")

    def feed(self) -> None:
        """Feeds the watchdog; called by the main loop's waits, so it starves when they stop."""
        if self.interval and time.monotonic() - self.fed >= self.interval:
            self.fed = time.monotonic()
            self.send("WATCHDOG=1")


PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4}


class LogFormat(logging.Formatter):
    """Lines without secrets; further lines of a message are indented, so none can be forged."""

    def __init__(self, settings: Settings) -> None:
        self.has_journal = bool(settings.journal_stream)
        # journald has the time already.
        time_part = "" if self.has_journal else "%(asctime)s "
        super().__init__(f"{time_part}%(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        lines = [one_line(line, 2000) for line in redact(super().format(record)).splitlines()]
        # journald reads the priority of each line, as sd-daemon(3) has it.
        priority = f"<{PRIORITIES.get(record.levelno, 6)}>" if self.has_journal else ""
        return priority + f"\n{priority}    ".join(lines)


class LogLines(logging.StreamHandler[Any]):
    """Logs to standard error; on a terminal a progress bar stays on the last line."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(sys.stderr)
        self.bar = ""
        self.has_bar = sys.stderr.isatty()
        self.setFormatter(LogFormat(settings))

    def emit(self, record: logging.LogRecord) -> None:
        bar = self.bar
        self.draw("")
        super().emit(record)
        self.draw(bar)

    def draw(self, bar: str) -> None:
        if self.has_bar and bar != self.bar:
            self.stream.write(f"\r\x1b[K{bar}")
            self.stream.flush()
            self.bar = bar


class Bar:
    """The progress as one line that fits the terminal, with the sampler's seconds a step."""

    WIDTH = 30

    def __init__(self, progress: Progress, lines: LogLines) -> None:
        self.progress, self.lines = progress, lines
        # Where this clip's steps were seen first: clip, step and the moment.
        self.first = (0, 0, 0.0)
        self.step, self.rate = 0, ""

    def draw(self) -> None:
        self.lines.draw(self.line(terminal_width(), time.monotonic()) if self.lines.has_bar else "")

    def line(self, columns: int, now: float) -> str:
        """At most `columns` - 1 characters, so that it never wraps; empty when idle."""
        if not self.progress.job_id:
            return ""
        snapshot = self.progress.snapshot()
        self._time_steps(snapshot, now)
        text = f"{self.progress.sentence()}{self.rate}"
        width = min(self.WIDTH, columns - len(text) - 4)
        full = round(max(0, width) * snapshot["percent"] / 100)
        bar = f"[{'█' * full}{'░' * (width - full)}] " if width >= 5 else ""
        return f"{bar}{text}"[: columns - 1]

    def _time_steps(self, snapshot: Mapping[str, Any], now: float) -> None:
        clip, step = (
            (snapshot["clip"], snapshot["step"]) if snapshot["stage"] == "rendering" else (0, 0)
        )
        if not step:
            self.first, self.rate = (0, 0, now), ""
        elif clip != self.first[0]:
            self.first = (clip, step, now)
        elif step > max(self.step, self.first[1]):
            # Only a new step tells; decoding the frames after the last one is none.
            self.rate = f", {(now - self.first[2]) / (step - self.first[1]):.2f} s/step"
        self.step = step


def terminal_width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


@contextlib.contextmanager
def signals(cancellation: Cancellation) -> Iterator[None]:
    """The first SIGTERM or SIGINT drains, a second one ends at once."""
    numbers = (signal.SIGTERM, signal.SIGINT)

    def stop(_number: int, _frame: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        cancellation.stop()

    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def start_logging(settings: Settings) -> LogLines:
    redact.hide(settings.secrets)
    handler = LogLines(settings)
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    return handler
