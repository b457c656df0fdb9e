"""Whether this box should take jobs."""

from __future__ import annotations

import logging
import shutil
import time

from ltx.comfyui.answers import Gap
from ltx.errors import JobError
from ltx.film.film import RenderContext
from ltx.hosted.outbox import Outbox
from ltx.job import describe_films, job_bytes
from ltx.settings import Settings
from ltx.text import log_event

# After three jobs in a row that failed for reasons of this box, the worker takes no more until a
# probe passes; the first probe comes after 6 poll intervals, then twice as late up to 120.
OPEN_AFTER, PROBE_FIRST, PROBE_CAP = 3, 6, 120


class CircuitBreaker:
    """Whether this box should take jobs: not on a full disk, nor while films wait for
    a store that refuses us, nor with a ComfyUI that does not fit, nor after failures of its own.
    """

    def __init__(self, settings: Settings, context: RenderContext, outbox: Outbox) -> None:
        self.settings, self.context, self.progress = settings, context, context.progress
        self.outbox = outbox
        self.failures: list[JobError] = []
        self.probe_due, self.refused = 0.0, False

    def is_open(self) -> bool:
        """Whether this box should take no job now; says so once, and once when it is over."""
        trouble = self._find_trouble()
        message = (
            f"No job is taken until this is mended: {trouble}\n{trouble.tail}" if trouble else ""
        )
        self._show(trouble.code if trouble else "api_refused" if self.refused else "", message)
        return bool(trouble)

    def admits_rendering(self) -> bool:
        """Whether the next job's ComfyUI fits our graph, looked at before the job is claimed.

        One that does not opens the circuit at once; one that does not boot is the job's to tell.
        """
        try:
            self.context.check_graph()
        except Gap as gap:
            for _ in range(max(1, OPEN_AFTER - len(self.failures))):
                self.note(gap)
            return not self.is_open()
        except JobError as error:
            if error.code == "shutdown":
                raise
        return True

    def hear(self, refusal: object = "") -> None:
        """What the API said when it refused us, who go on asking; nothing once it answers."""
        self.refused = bool(refusal)
        self._show("api_refused" if refusal else "", str(refusal))

    def _show(self, code: str, message: str) -> None:
        if code and not self.progress.trouble:
            log_event("degraded", message.strip(), logging.ERROR)
        elif self.progress.trouble and not code:
            log_event("recovered")
        self.progress.trouble = code

    def _find_trouble(self) -> JobError | None:
        free = shutil.disk_usage(self.settings.state_dir).free
        needed = job_bytes(self.settings.size)
        if free < needed:
            message = f"{free >> 20} MB are free in STATE_DIR; a job may need {needed >> 20}"
            return JobError("media_failed", message + describe_films(self.settings.state_dir) + ".")
        if self.outbox.trouble:
            return self.outbox.trouble
        if len(self.failures) < OPEN_AFTER:
            return None
        if time.monotonic() >= self.probe_due:
            try:
                self.context.probe()
                self.failures.clear()
                return None
            except JobError as error:
                if error.code == "shutdown":
                    raise
                self.note(error)
        return self.failures[-1]

    def note(self, error: JobError | None) -> None:
        """Counts failures of this box in a row; a bad job never counts, a film ends the row."""
        if error is None:
            self.failures.clear()
        elif error.machine:
            self.failures.append(error)
            beyond = max(0, len(self.failures) - OPEN_AFTER)
            pause = min(PROBE_CAP, PROBE_FIRST * 2 ** min(beyond, 16)) * self.settings.poll_interval
            self.probe_due = time.monotonic() + pause
