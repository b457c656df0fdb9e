"""Films and outcomes on their way to the hosted side."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ltx.cancellation import Cancellation
from ltx.errors import ConfigError, JobError, NoSuchCall, Refusal, Unavailable
from ltx.files import read_json, write_json_durably
from ltx.hosted.blob import Blob
from ltx.hosted.queue_api import QueueApi
from ltx.hosted.retry import backoff
from ltx.job import CLIP_SECONDS, FPS, KEPT_FRAMES, Job, parse_stage_data
from ltx.progress import Progress
from ltx.settings import Settings
from ltx.state import set_aside
from ltx.text import as_dict, as_list, log_event, one_line

OUTCOME_RETRIES = 3
PARKED_CAP_S = 300.0
# Some 130 kB of ids at most; an API that cannot hear of failures offers few of them for long.
LET_GO_KEPT = 1000
Probe = Callable[[Path], Mapping[str, Any]]


class Outbox:
    """Films and outcomes on their way to the hosted side, for as long as that takes.

    probe: what is known of a film's video stream.
    `parked`: by job id, how often it was tried in vain and when it is due again.
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
        self.state_dir = settings.state_dir
        self.parked: dict[str, tuple[int, float]] = {}
        self.delivered = 0
        # Jobs whose failure could not be reported; they are not taken again, also after a restart.
        self.let_go = as_list(read_json(self.state_dir / "let-go.json").get("jobs"))

    def park(self, job: Job, tries: int, pause: float) -> None:
        self.parked[job.id] = (tries, time.monotonic() + pause)

    def take(self, job: Job) -> None:
        """The job is in the worker's hands again."""
        self.parked.pop(job.id, None)

    def forget(self, job: Job) -> None:
        self.take(job)
        job.remove()

    def set_aside(self, job: Job, why: object) -> None:
        """Takes a job that cannot be gone on with out of the spool, so that the others go on."""
        self.take(job)
        there = set_aside(job.folder, self.state_dir)
        message = f"What is kept of it cannot be read ({one_line(why)}); it was moved to {there}."
        log_event("job_set_aside", message, logging.ERROR, job=job.id)

    def deliver(self, job: Job, retries: int) -> None:
        """Uploads and reports, with retries; what still fails stays in the spool for later.

        Later is between polls and at every start, until a 2xx or a final refusal.
        """
        tries, _ = self.parked.get(job.id, (0, 0.0))
        for again in range(retries + 1):
            try:
                self._tell(job)
                return self.forget(job)
            except Unavailable as error:
                tries += 1
                if tries == 1 or tries % 10 == 0:
                    log_event(
                        "deliver_retry", one_line(error), logging.WARNING, job=job.id, tries=tries
                    )
                pause = backoff(tries, PARKED_CAP_S, error.retry_after)
                self.park(job, tries, pause)
                # An upload has had its tries; other jobs need not wait for the store to come back.
                if again == retries or self.cancellation.stopping or not job.outcome.exists():
                    return
                self.cancellation.wait(backoff(tries, asked=error.retry_after))

    def _tell(self, job: Job) -> None:
        if not read_json(job.outcome).get("verb"):
            self._upload(job)
        outcome = read_json(job.outcome)
        verb = str(outcome.get("verb"))
        self.progress.update("reporting")
        try:
            self._report(job, verb, as_dict(outcome.get("body")))
        except NoSuchCall:
            self._let_go(job, as_dict(as_dict(outcome.get("body")).get("error")))
        except Refusal as refusal:
            message = f"The hosted side decided otherwise: {refusal}."
            log_event("outcome_refused", message, logging.WARNING, job=job.id, verb=verb)
        except ConfigError as error:
            # The next poll ends the worker with this; the outcome waits for the right secret.
            raise Unavailable(str(error)) from error
        else:
            self.delivered += verb == "complete"
            log_event("delivered", job=job.id, verb=verb)

    def _let_go(self, job: Job, error: Mapping[str, Any]) -> None:
        """Ends with a failure that the API has no call to hear of; a stop is no such failure."""
        message = f"The API has no fail, so nobody is told: {one_line(error.get('message'))}"
        log_event("let_go", message, logging.WARNING, job=job.id)
        if error.get("code") != "shutdown":
            self.let_go = [*self.let_go, job.id][-LET_GO_KEPT:]
            write_json_durably(self.state_dir / "let-go.json", {"jobs": self.let_go})

    def _report(self, job: Job, verb: str, body: Mapping[str, object]) -> None:
        try:
            self.api.finish(job.id, verb, body)
        except Refusal as refusal:
            # The lease may have run out in an outage; a film is worth asking for the job again.
            if verb != "complete" or refusal.status != 409:
                raise
            self.api.claim(job.id)
            self.api.finish(job.id, verb, body)

    def _upload(self, job: Job) -> None:
        """Puts the film where the hosted side expects it and writes the outcome down."""
        size = job.output.stat().st_size

        def on_sent(sent: int, size: int) -> None:
            self.progress.update("uploading", step=round(100 * sent / size), steps=100)

        try:
            with self.progress.timed("upload", job=job.id, bytes=size):
                url = self.blob.put(job.output, f"spatial-story/output/{job.id}.mp4", on_sent)
        except Refusal as refusal:
            log_event("upload_refused", str(refusal), logging.ERROR, job=job.id)
            error = JobError("upload_failed", one_line(refusal))
            return job.conclude("fail", {"error": error.report()})
        job.conclude("complete", self._describe(job, url))

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
