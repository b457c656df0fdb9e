"""Films and outcomes on their way to the hosted side."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ltx.cancellation import Cancellation
from ltx.errors import (
    ConfigError,
    DiskFull,
    JobError,
    LeaseLost,
    NoSuchCall,
    Refusal,
    StoreClosed,
    Unavailable,
)
from ltx.files import read_json, write_json_durably
from ltx.hosted.blob import Blob
from ltx.hosted.queue_api import QueueApi
from ltx.hosted.retry import Retry
from ltx.job import CLIP_SECONDS, FPS, KEPT, KEPT_FRAMES, Job, Outcome, parse_stage_data
from ltx.progress import Progress
from ltx.settings import Settings
from ltx.state import set_aside
from ltx.text import as_dict, as_list, log_event, one_line

ONCE, AT_ONCE, LATER = Retry(tries=1), Retry(tries=4), Retry(cap=300.0)
# Some 130 kB of ids at most; an API that cannot hear of failures offers few of them for long.
LET_GO_KEPT = 1000
# What becomes of a job that is neither delivered nor failed.
WAITS_FOR_STORE, NOT_REPORTED = "waits_for_store", "not_reported"
DECIDED_OTHERWISE, LET_GO = "refused", "let_go"
Probe = Callable[[Path], Mapping[str, Any]]


def failure(error: JobError) -> Outcome:
    return Outcome("fail", {"error": error.report()})


def decide(job: Job, error: JobError) -> Outcome:
    """A failure, unless the job may still come to a good end."""
    has_film = job.output.exists() and (error.code == "shutdown" or isinstance(error, DiskFull))
    may_end_well = job.outcome.exists() or has_film or isinstance(error, LeaseLost)
    return KEPT if may_end_well else failure(error)


class Outbox:
    """Films and outcomes on their way to the hosted side, for as long as that takes.

    probe: what is known of a film's video stream.
    `parked`: by job id, how often its delivery was tried in vain and when it is due again.
    `closed`: why the store takes no film of this account, while it does so.
    """

    def __init__(
        self,
        settings: Settings,
        cancellation: Cancellation,
        api: QueueApi,
        progress: Progress,
        probe: Probe,
    ) -> None:
        self.cancellation, self.api, self.progress, self.probe = cancellation, api, progress, probe
        self.blob = Blob(settings, cancellation)
        self.state_dir, self.pause = settings.state_dir, settings.poll_interval
        self.parked: dict[str, tuple[int, float]] = {}
        self.closed: JobError | None = None
        self.delivered = 0
        # Jobs whose failure could not be reported; they are not taken again, also after a restart.
        self.let_go = as_list(read_json(self.state_dir / "let-go.json").get("jobs"))

    @property
    def trouble(self) -> JobError | None:
        """Why no job should be taken: films wait for a store that refuses us."""
        return self.closed if self.parked else None

    def park(self, job: Job, pause: float, tries: int | None = None) -> None:
        """tries: as before when None, so that the pauses go on growing after another claim."""
        known, _ = self.parked.get(job.id, (0, 0.0))
        self.parked[job.id] = (known if tries is None else tries, time.monotonic() + pause)

    def wake(self) -> None:
        """What waits is due now, as whoever it waits for may be back."""
        self.parked = {job: (tries, 0.0) for job, (tries, _) in self.parked.items()}

    def forget(self, job: Job) -> None:
        self.parked.pop(job.id, None)
        job.remove()

    def set_aside(self, job: Job, why: object) -> None:
        """Takes a job that cannot be gone on with out of the spool, so that the others go on."""
        self.parked.pop(job.id, None)
        there = set_aside(job.folder, self.state_dir)
        message = f"What is kept of it cannot be read ({one_line(why)}); it was moved to {there}."
        log_event("job_set_aside", message, logging.ERROR, job=job.id)

    def settle(self, job: Job, outcome: Outcome) -> str:
        """Writes down what becomes of a job and tells it; returns the outcome as deliver does."""
        if outcome is KEPT:
            self.park(job, self.pause)
            last_word = job.decided and self.cancellation.stopping
            return self.deliver(job, ONCE) if last_word else outcome.verb
        try:
            job.conclude(outcome)
        except OSError as trouble:
            # A disk so full that not even this fits: what can be told is told now.
            log_event("outcome_unwritten", one_line(trouble), logging.ERROR, job=job.id)
            with contextlib.suppress(Unavailable, Refusal, ConfigError):
                self.api.finish(job.id, *outcome)
            self.forget(job)
            return outcome.word
        return self.deliver(job)

    def deliver(self, job: Job, retry: Retry = AT_ONCE) -> str:
        """Uploads and reports; what fails again and again stays in the spool for later.

        Later is between polls and at every start, until a 2xx or a final refusal. Returns the
        outcome in a word: `complete` for a film that was delivered, the code of a failure that
        was reported, else one of the words above.
        """

        def note(error: Unavailable, _tries: int, _pause: float) -> None:
            tries = self.parked.get(job.id, (0, 0.0))[0] + 1
            if isinstance(error, StoreClosed):
                self.closed = JobError("upload_failed", str(error))
            if tries == 1 or tries % 10 == 0:
                why = one_line(error)
                log_event("deliver_retry", why, logging.WARNING, job=job.id, tries=tries)
            self.park(job, LATER.pause(tries, error), tries)

        # Whatever ends this, a full disk too, it is gone on with later.
        self.park(job, self.pause)
        try:
            retry = ONCE if self.cancellation.stopping else retry
            outcome = retry.run(lambda _tries: self._tell(job), self.cancellation.wait, note)
        except Unavailable:
            return NOT_REPORTED if job.decided else WAITS_FOR_STORE
        self.forget(job)
        return outcome

    def _tell(self, job: Job) -> str:
        outcome = job.decided
        if outcome is None:
            outcome = self._upload(job)
        elif outcome.verb == "complete" and not self.cancellation.stopping:
            self._put_again(job)
        self.progress.update("reporting")
        try:
            self._report(job, outcome)
        except NoSuchCall:
            self._let_go(job, outcome)
            return LET_GO
        except Refusal as refusal:
            message = f"The hosted side decided otherwise: {refusal}."
            log_event("outcome_refused", message, logging.WARNING, job=job.id, verb=outcome.verb)
            return DECIDED_OTHERWISE
        except ConfigError as error:
            # The next poll ends the worker with this; the outcome waits for the right secret.
            raise Unavailable(str(error)) from error
        self.delivered += outcome.verb == "complete"
        log_event("delivered", job=job.id, verb=outcome.verb)
        return outcome.word

    def _let_go(self, job: Job, outcome: Outcome) -> None:
        """Ends with a failure that the API has no call to hear of; a stop is no such failure."""
        why = one_line(as_dict(outcome.body.get("error")).get("message"))
        message = f"The API has no fail, so nobody is told: {why}"
        log_event("let_go", message, logging.WARNING, job=job.id)
        if outcome.word != "shutdown":
            self.let_go = [*self.let_go, job.id][-LET_GO_KEPT:]
            write_json_durably(self.state_dir / "let-go.json", {"jobs": self.let_go})

    def _report(self, job: Job, outcome: Outcome) -> None:
        """Raises Refusal for a final no, but not for one that means that it was heard before."""
        was_asked = job.asked.exists()
        # Still there after a crash before the answer. A full disk only costs the right word.
        with contextlib.suppress(OSError):
            job.asked.touch()
        try:
            self._finish(job, outcome, was_asked)
        except Unavailable as error:
            if not (error.lost or was_asked):
                job.asked.unlink(missing_ok=True)
            raise

    def _finish(self, job: Job, outcome: Outcome, was_asked: bool) -> None:
        try:
            return self.api.finish(job.id, *outcome)
        except Refusal as refusal:
            if outcome.verb != "complete" or refusal.status != 409:
                raise
            conflict = refusal
        try:
            # The lease may have run out in an outage; a film is worth asking for the job again.
            self.api.claim(job.id)
            self._put_again(job)
            self.api.finish(job.id, *outcome)
        except Refusal:
            # What was reported without an answer, and is nobody's to claim, is done by that report.
            if not was_asked:
                raise conflict from None

    def _put(self, job: Job) -> str:
        """Puts the film where the hosted side expects it, unless it is there; gives its URL."""

        def on_sent(sent: int, size: int) -> None:
            self.progress.update("uploading", step=round(100 * sent / size), steps=100)

        return self.blob.put(job.output, f"spatial-story/output/{job.id}.mp4", on_sent)

    def _put_again(self, job: Job) -> None:
        """Whoever had the job while our lease was over may have put another film there.

        A store that does not answer now holds up no report of a film that it has taken.
        """
        with contextlib.suppress(Unavailable, Refusal, FileNotFoundError):
            self._put(job)

    def _upload(self, job: Job) -> Outcome:
        """The outcome of a film that is put or refused, which is written down."""
        size = job.output.stat().st_size
        try:
            with self.progress.timed("upload", job=job.id, bytes=size):
                url = self._put(job)
            outcome = Outcome("complete", self._describe(job, url))
        except Unavailable as error:
            # It has had its tries; other jobs need not wait for the store to come back.
            error.lasting = True
            raise
        except Refusal as refusal:
            log_event("upload_refused", str(refusal), logging.ERROR, job=job.id)
            outcome = failure(JobError("upload_failed", one_line(refusal)))
        self.closed = None
        job.conclude(outcome)
        return outcome

    def _describe(self, job: Job, url: str) -> dict[str, object]:
        """The body of `complete`."""
        plan = parse_stage_data(job.stage_data)
        film = self.probe(job.output)
        clips = [read_json(job.record(clip)) for clip in range(plan.clips)]
        for clip in clips:
            clip.pop("refused", None)
        return {
            "outputUrl": url,
            "durationSec": plan.clips * CLIP_SECONDS,
            "frames": plan.clips * KEPT_FRAMES,
            "fps": FPS,
            "width": film["width"],
            "height": film["height"],
            "sizeBytes": job.output.stat().st_size,
            "watermarked": plan.watermark,
            "renderSec": round(sum(clip.get("renderSec", 0) for clip in clips), 1),
            "clips": clips,
        }
