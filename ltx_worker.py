#!/usr/bin/env python3
"""Turn queued stills into walkthrough videos on the GPU of this machine.

The life of a job, and the room of each step:

1.  The worker registers, then polls the hosted queue (ltx/hosted/queue_api).
2.  ComfyUI boots (ltx/comfyui/standby) and is asked whether it fits (ltx/film/circuit_breaker),
    then the job is claimed; it has a folder of its own in the spool (ltx/job).
3.  Stage data and watermark are checked before anything costs time (ltx/job, ltx/film/pictures).
4.  The frames are downloaded (ltx/hosted/frames), checked and cut to size (ltx/film/pictures), and
    a process of its own reads the texts (ltx/film/texts).
5.  Every adjacent pair of frames becomes one clip, each on a fresh ComfyUI (ltx/film/film).
6.  A finished clip is measured, trimmed to exactly 5.0 s and watermarked in one pass while the next
    one renders (ltx/film/finishing).
7.  The clips are joined without encoding again (ltx/film/clips).
8.  The film goes to Vercel Blob; the outcome is written down, then reported (ltx/hosted/outbox).
9.  A thread sends heartbeats throughout.

Here are the loop, one job's story, the heartbeat and the arguments;
docs/design.md says where everything else is.

Exit codes: 0 clean stop or success, 1 the work failed, 2 usage, 74 the state folder cannot be
written now, 75 another worker uses it, 78 configuration. systemd starts again after all but 0, 78.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltx.cancellation import Cancellation
from ltx.comfyui.workflow import NEGATIVE_PROMPT
from ltx.errors import (
    ApiRefused,
    ConfigError,
    DiskFull,
    JobError,
    NoSuchCall,
    Refusal,
    ToolFailed,
    Unavailable,
    UsageError,
    is_disk_full,
)
from ltx.files import write_json
from ltx.film.circuit_breaker import CircuitBreaker
from ltx.film.film import Film, RenderContext
from ltx.hosted.env_secret import EnvSecret
from ltx.hosted.frames import FrameHost
from ltx.hosted.outbox import ONCE, Outbox, decide
from ltx.hosted.queue_api import QueueApi, api_secret
from ltx.hosted.retry import Outage, Retry
from ltx.job import JOB_ID, KEPT, MAX_FRAMES, Job, parse_stage_data
from ltx.operator.checks import GATE
from ltx.operator.commands import render_command, workflow_command
from ltx.operator.console import Bar, LogLines, Systemd, signals, start_logging
from ltx.operator.doctor import check_box, doctor_command
from ltx.operator.status import status_command
from ltx.process import harden_process, read_gpu, sweep_leftovers
from ltx.progress import Progress, StageDurations
from ltx.settings import VERSION, Settings, read_environ
from ltx.state import state_folder, with_worker_id
from ltx.text import as_dict, as_list, format_utc, log, log_event, one_line

# What is left of a lease when a stop comes must outlast the stop (20 s) and the next start.
RESTART_S = 30.0
ALWAYS, CLAIM = Retry(), Retry(tries=4)


class Heartbeat:
    """A thread that tells the hosted side every 15 s how we are, and hears what it wants.

    It has an HTTP session of its own, keeps to a fixed grid of moments however long a call
    takes, and never stops or delays the job when a call fails.
    """

    def __init__(
        self,
        settings: Settings,
        cancellation: Cancellation,
        progress: Progress,
        secret: EnvSecret,
    ) -> None:
        self.settings, self.cancellation, self.progress = settings, cancellation, progress
        self.api = QueueApi(settings, None, secret)
        self.outage = Outage("heartbeat")
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.last_beat: str | None = None

    @property
    def alive(self) -> bool:
        return self.thread.is_alive()

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.ended.set()
        self.thread.join(timeout=1.0)

    def _run(self) -> None:
        interval = self.settings.heartbeat_interval
        due = time.monotonic()
        while not self.ended.wait(max(0.0, due - time.monotonic())):
            self.tick()
            missed = max(0.0, time.monotonic() - due) // interval
            due += interval * (missed + 1)

    def tick(self) -> None:
        try:
            self.beat(self.api)
            self.outage.over()
            self.last_beat = format_utc(time.time())
        except Exception as error:
            # Whatever a beat meets, the next one is due: a silent worker loses its jobs.
            self.outage.note(error)

    def beat(self, api: QueueApi) -> None:
        """Tells how we are and hears the answer; api: the session to tell it with."""
        now, sent = self.progress.snapshot(), time.monotonic()
        job_id = now.pop("jobId")
        status = "degraded" if self.progress.trouble else "busy" if job_id else "idle"
        status = "draining" if self.cancellation.stopping else status
        answer = api.heartbeat({"status": status, "jobId": job_id, "progress": now})
        self.hear(answer, job_id, sent)

    def hear(self, answer: Mapping[str, Any], job_id: str | None, sent: float) -> None:
        """Honours `cancel` and `leaseUntil` for the job that this heartbeat spoke of."""
        if job_id and job_id in as_list(answer.get("cancel")):
            self.cancellation.cancel(job_id, JobError("cancelled", "The hosted side cancelled it."))
        lease = self.api.lease_seconds(answer)
        if job_id and lease is not None:
            self.cancellation.hold_lease(job_id, lease - (time.monotonic() - sent))


class Worker:
    """Polls the queue and takes each job from the claim to the delivered outcome."""

    def __init__(self, settings: Settings, lines: LogLines) -> None:
        self.settings = settings
        self.cancellation = cancellation = Cancellation(self._on_tick)
        self.progress = Progress(StageDurations(settings))
        self.bar = Bar(self.progress, lines)
        secret = api_secret(settings)
        self.api = QueueApi(settings, cancellation, secret)
        self.frames = FrameHost(settings, cancellation)
        self.context = RenderContext(settings, cancellation, self.progress)
        self.outbox = Outbox(
            settings, cancellation, self.api, self.progress, self.context.media.probe
        )
        self.breaker = CircuitBreaker(settings, self.context, self.outbox)
        self.heartbeat = Heartbeat(settings, cancellation, self.progress, secret)
        self.systemd = Systemd(settings)
        self.spool = settings.state_dir / "jobs"
        self.outage, self.disk = Outage("api"), Outage("disk")
        url = settings.api_url
        self.progress.silence = lambda: (
            self.outage.describe(url) or self.heartbeat.outage.describe(url, " to heartbeats")
        )
        self.idle_since = time.monotonic()
        self.claim_skip_logged = False
        self.ignored: object = None
        self.outcomes: list[dict[str, str]] = []
        self.status: dict[str, object] = {}

    def run(self, once: bool = False) -> int:
        """Serves jobs until a signal comes (with `once`: one job); returns the exit code."""
        served = False
        self.context.expects_more = not once
        try:
            self.start()
            while not self.cancellation.stopping and not (once and served):
                served = self.tick() or bool(self.progress.trouble)
        except JobError as error:
            if error.code != "shutdown":
                raise
        finally:
            self.stop()
        return 0 if self.outbox.delivered or not once or self.cancellation.stopping else 1

    def start(self) -> None:
        sweep_leftovers(self.settings.state_dir)
        log_event("started", worker=self.settings.worker_id, version=VERSION, pid=os.getpid())
        self._register()
        self.systemd.ready()
        self.heartbeat.start()
        # What the last run left, the oldest first.
        orders = sorted(self.spool.glob("*/job.json"), key=lambda path: path.stat().st_mtime)
        self.outbox.parked = {order.parent.name: (0, 0.0) for order in orders}

    def stop(self) -> None:
        self.systemd.send("STOPPING=1", "STATUS=stopping")
        self.context.processes.stop()
        if self.heartbeat.alive:
            self.heartbeat.stop()
        self._write_status()
        self.systemd.tell("failed" if sys.exc_info()[1] else "stopped")
        log_event("stopped")

    def tick(self) -> bool:
        """What waits in the spool, else one poll and its job; True when there was a job."""
        try:
            served = self._tick()
            self.disk.over()
            return served
        except OSError as error:
            # The disk, as everything else speaks through Unavailable. The spool stays as it is.
            tries = self.disk.note(error)
            self.cancellation.wait(ALWAYS.pause(tries, Unavailable("")))
            return False

    def _tick(self) -> bool:
        if not self.heartbeat.alive:
            raise RuntimeError("the heartbeat thread has died")
        if self.breaker.is_open():
            self._take_up_parked(render=False)
            self._rest(None)
            return False
        if self._take_up_parked():
            return True
        try:
            answer = self.api.pending()
        except Unavailable as error:
            if isinstance(error, ApiRefused):
                self.breaker.hear(error)
            self._rest(ALWAYS.pause(self.outage.note(error), error))
            return False
        if self.outage.over():
            self.outbox.wake()
        self.breaker.hear()
        job = self._claim(answer["job"]) if answer["job"] else None
        if job:
            self._work(job)
            return True
        self._rest(answer.get("nextPollSec"))
        return False

    def _on_tick(self) -> None:
        if self.heartbeat.alive or not self.heartbeat.thread.ident:
            self.systemd.feed()
        self.systemd.tell(self.progress.sentence())
        self._write_status()
        self.bar.draw()

    def _write_status(self) -> None:
        """What the `status` command shows; written when it has changed, lost without harm."""
        status = {
            "pid": os.getpid(),
            "workerId": self.settings.worker_id,
            "progress": self.progress.snapshot(),
            "silence": self.progress.silence(),
            "lastHeartbeatAt": self.heartbeat.last_beat,
            "lastOutcomes": self.outcomes,
        }
        if status != self.status:
            self.status = status
            with contextlib.suppress(OSError):
                write_json(self.settings.state_dir / "status.json", status)

    def _rest(self, asked: object) -> None:
        """Waits for the next poll; gives the GPU back when nothing has come for long."""
        if time.monotonic() - self.idle_since >= self.settings.comfyui_idle_stop:
            self.context.processes.stop()
        else:
            self.context.texts.rest()
        valid = isinstance(asked, (int, float)) and 0.05 <= asked <= 3600
        self.cancellation.wait(float(asked) if valid else self.settings.poll_interval)  # type: ignore[arg-type]

    def _register(self) -> None:
        """Makes the first call that the API takes. Raises ConfigError for a wrong secret.

        The service has started when the secret was taken, or when nobody is there to tell.
        """
        gpu = read_gpu(self.settings)
        try:
            ALWAYS.run(
                lambda _tries: self.api.register(gpu), self.cancellation.wait, self._note_silence
            )
        except Refusal as refusal:
            log_event("register_skipped", f"The API has no register: {one_line(refusal, 60)}.")
            # A secret that is wrong is heard of now all the same.
            with contextlib.suppress(Unavailable, Refusal):
                self.heartbeat.beat(self.api)
        self.outage.over()

    def _note_silence(self, error: Unavailable, _tries: int, _pause: float) -> None:
        self.outage.note(error)
        self.systemd.ready()

    def _claim(self, offer: object) -> Job | None:
        """The offered job, ours from here on; None when it is somebody else's or unusable."""
        job_id = as_dict(offer).get("id")
        if not isinstance(job_id, str) or not JOB_ID.fullmatch(job_id):
            if job_id != self.ignored:
                message = "Its id is no plain name of letters, digits, - and _; it is left alone."
                log_event("job_ignored", message, logging.ERROR, job=one_line(repr(job_id), 80))
            self.ignored = job_id
            return None
        if job_id in self.outbox.let_go:
            # A claim takes it out of the queue for a while, so that those behind it come up.
            with contextlib.suppress(Unavailable, Refusal):
                self.api.claim(job_id)
            return None
        job, stage_data = Job(self.spool / job_id), as_dict(offer).get("stageData")
        # Offered anew with other data, it begins anew; an outcome that waits is told first.
        decided = job.output.exists() or job.outcome.exists()
        if not decided and not self._foresee(stage_data):
            return None
        if not decided and job.stage_data != stage_data:
            job.remove()
        if not job.order.exists():
            job.create(stage_data)
        return job if self._claim_job(job) else None

    def _foresee(self, stage_data: object) -> bool:
        """Whether to claim a job; one that looks as if it will be rendered needs a ComfyUI."""
        try:
            plan = parse_stage_data(stage_data)
        except JobError:
            return True
        mark = self.settings.watermark
        if plan.watermark and not (mark.is_file() and mark.stat().st_size > 0):
            return True
        with contextlib.suppress(JobError):
            self.context.foresee(plan.prompts)
        return self.breaker.admits_rendering()

    def _claim_job(self, job: Job) -> bool:
        """Claims a job, again after a restart; one that is not ours leaves the spool.

        One whose claim is not answered stays there, parked.
        """

        def claim(_tries: int) -> dict[str, Any]:
            self.cancellation.begin(job.id)
            return self.api.claim(job.id)

        def note(error: Unavailable, tries: int, pause: float) -> None:
            self.cancellation.end()
            log_event("claim_retry", one_line(error), logging.WARNING, job=job.id, tries=tries)
            self.outbox.park(job, pause)

        try:
            lease = self.api.lease_seconds(CLAIM.run(claim, self.cancellation.wait, note))
            self.cancellation.hold_lease(job.id, math.inf if lease is None else lease)
            log_event("claimed", job=job.id)
            return True
        except NoSuchCall:
            if not self.claim_skip_logged:
                log_event("claim_skipped", "The API has no claim of its own; a poll claims.")
            self.claim_skip_logged = True
            return True
        except Refusal as refusal:
            self.cancellation.end()
            log_event("not_ours", one_line(refusal), job=job.id)
            self.outbox.forget(job)
        except Unavailable:
            pass  # noted, and parked
        return False

    def _take_up_parked(self, render: bool = True) -> bool:
        """Goes on with what waits in the spool; True when a job came to its end.

        Without `render` only finished films are taken up.
        """
        ended = False
        for job_id, (_, due) in list(self.outbox.parked.items()):
            self.cancellation.check()
            job = Job(self.spool / job_id)
            if time.monotonic() < due:
                continue
            try:
                ended |= self._take_up(job, render)
            except (ValueError, ToolFailed, FileNotFoundError) as error:
                self.outbox.set_aside(job, error)
        return ended

    def _take_up(self, job: Job, render: bool) -> bool:
        job.check()
        if job.outcome.exists():
            self.outbox.deliver(job, ONCE)
            return not job.order.exists()
        taken = (render or job.output.exists()) and self._claim_job(job)
        if taken:
            self._work(job)
        return taken

    def _work(self, job: Job) -> None:
        """Takes a claimed job to its outcome and delivers that."""
        started, outcome = time.monotonic(), KEPT.verb
        self.progress.begin(job.id)
        try:
            outcome = self._serve(job)
        finally:
            self._sum_up(job, outcome, time.monotonic() - started)
            self.progress.begin("")
            self.cancellation.end()
            self.idle_since = time.monotonic()

    def _serve(self, job: Job) -> str:
        try:
            self._make(job)
            self.breaker.note(None)
            return self.outbox.deliver(job)
        except JobError as error:
            return self._end(job, error)
        except Exception as error:
            log.exception("unexpected job=%s", job.id)
            other = JobError("media_failed", f"Unexpected: {one_line(repr(error))}.")
            return self._end(job, DiskFull() if is_disk_full(error) else other)

    def _make(self, job: Job) -> None:
        seconds = self.settings.job_timeout
        late = JobError("job_timeout", f"It was not done within {seconds:g} s.")
        with self.cancellation.deadline("job", seconds, late):
            if not job.outcome.exists() and not job.output.exists():
                plan = parse_stage_data(job.stage_data)
                Film(self.context, job, plan).make(self.frames.fetch)

    def _end(self, job: Job, error: JobError) -> str:
        """Ends a job that could not be gone on with; what becomes of it, in a word."""
        self.breaker.note(error)
        for_restart = error.code == "shutdown" and self._is_worth_keeping(job)
        # What ended the job must not end the report of it; a stop shortens it.
        self.cancellation.end()
        outcome = KEPT if for_restart else decide(job, error)
        if outcome is KEPT:
            log_event("job_kept", error.detail or "The next start goes on with it.", job=job.id)
        elif error.code == "shutdown":
            log_event("handed_back", "Stopping; somebody else may take the job.", job=job.id)
        else:
            log_event("job_failed", f"{error}\n{error.tail}".strip(), logging.ERROR, job=job.id)
        return self.outbox.settle(job, outcome)

    def _is_worth_keeping(self, job: Job) -> bool:
        """Whether a stop keeps a job's clips for the next start rather than hand it back.

        If no start comes, the lease runs out and the hosted side offers the job to others.
        """
        restarts = self.context.expects_more and self.cancellation.lease_left() >= RESTART_S
        return restarts and job.has_clips()

    def _sum_up(self, job: Job, outcome: str, total: float) -> None:
        """The job in one line: seconds by stage, for stages of a clip one number a clip."""
        stages = {
            name: ",".join(f"{seconds:.1f}" for seconds in spent)
            for name, spent in self.progress.seconds.items()
        }
        done = {"jobId": job.id, "outcome": outcome, "at": format_utc(time.time())}
        others = [one for one in self.outcomes if one["jobId"] != job.id]
        self.outcomes = [*others[-4:], done]
        log_event("job_done", job=job.id, outcome=outcome, **stages, total=round(total, 1))


def run_command(options: argparse.Namespace) -> int:
    settings = Settings.load(read_environ())
    handler = start_logging(settings)
    try:
        return serve(settings, handler, options.once)
    except ConfigError as error:
        Systemd(settings).tell(f"failed: {one_line(error)}")
        raise


def serve(settings: Settings, handler: LogLines, once: bool) -> int:
    """Serves the queue and returns the exit code. Raises ConfigError."""
    check_box(settings, Cancellation(), GATE)
    if not settings.watermark.is_file():
        message = f"WATERMARK_PATH={settings.watermark}: jobs that ask for a watermark will fail."
        log_event("watermark_missing", message, logging.WARNING)
    with state_folder(settings):
        worker = Worker(with_worker_id(settings), handler)
        try:
            with signals(worker.cancellation):
                return worker.run(once)
        finally:
            handler.draw("")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Turn queued stills into walkthrough videos.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    parser.set_defaults(command=run_command, once=False)
    run = commands.add_parser("run", help="serve the queue (also without any command)")
    run.add_argument("--once", action="store_true", help="serve one job, then exit")
    render = commands.add_parser("render", help="make a film of pictures, without queue or upload")
    render.add_argument("frames", nargs="+", metavar="FRAME")
    render.add_argument("--prompt", action="append", required=True, metavar="TEXT")
    render.add_argument("--watermark", action="store_true")
    render.add_argument("--seed", type=int)
    render.add_argument("--keep", action="store_true", help="keep the clips in OUT.clips/")
    render.add_argument("--force", action="store_true", help="overwrite what is there")
    render.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.mp4")
    render.set_defaults(command=render_command)
    for name, command, purpose in (
        ("doctor", doctor_command, "check this box; each FAIL says what to do"),
        ("status", status_command, "show what the running worker is doing"),
    ):
        report = commands.add_parser(name, help=purpose)
        report.add_argument("--json", action="store_true")
        report.set_defaults(command=command)
    flow = commands.add_parser("workflow", help="print the ComfyUI workflow that would be sent")
    flow.add_argument("first", metavar="FIRST")
    flow.add_argument("last", metavar="LAST")
    flow.add_argument("--prompt", required=True, metavar="TEXT")
    flow.add_argument("--negative", default=NEGATIVE_PROMPT, metavar="TEXT")
    flow.add_argument("--clip", type=int, default=0, choices=range(MAX_FRAMES - 1), metavar="N")
    flow.add_argument("--seed", type=int)
    flow.add_argument("--text", default="clip", choices=("clip", "job"), help="as LTX_TEXT")
    flow.set_defaults(command=workflow_command)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    harden_process()
    options = parse_arguments(arguments)
    try:
        return int(options.command(options))
    except ConfigError as error:
        for problem in error.problems:
            print(f"ltx_worker: {problem}", file=sys.stderr)
        return error.exit_code
    except UsageError as error:
        print(f"ltx_worker: {error}", file=sys.stderr)
        return 2
    except Exception:
        # Through the log, which blots out secrets; a bare traceback would not.
        log.exception("crashed")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
