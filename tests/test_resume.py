"""Nothing lost: whatever dies at any moment, a claimed job is delivered once or handed back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from ltx.job import Job
from ltx.process import LAUNCHER
from ltx.state import claim_folder
from sandbox.client import Event, Hosted, NothingHappened
from sandbox.launch import Running
from tests.conftest import Box
from tests.pictures import picture
from tests.programs import preceded
from tests.sandbox.callers import Store

# The promise of a stop; it is a bound, not a speed that is measured.
STOP_S = 20
GONE_S = 10.0
NONSENSE = {"frames": "none"}
CLAIM, COMPLETE, FAIL = "PATCH */claim", "PATCH */complete", "PATCH */fail"
BEAT, PUT = "POST /api/videogen/heartbeat", "PUT /api/blob*"
LONG_AGO = "2020-01-01T00:00:00Z"
STUCK = {"on": "prompt", "kind": "hang", "deaf": True}
PLAIN = {"on": "prompt", "kind": "slow", "factor": 1}


@pytest.fixture
def box(box: Box) -> Box:
    """What is looked at has to be looked at again after a restart."""
    box.settings["CLIP_GATE"] = "enforce"
    return box


class Moment(NamedTuple):
    """A point of a job's life at which it can be held: what holds it, and the sign that it does."""

    name: str
    sign: str
    clips: int = 1
    fault: dict[str, Any] | None = None
    script: tuple[dict[str, Any], ...] = ()
    detail: str = ""
    alive: bool = False
    prompts: tuple[int, ...] = (1,)
    times: int = 1
    broken: bool = False

    def hold(self, box: Box) -> tuple[Running, str]:
        """A worker that has come to this moment and, but for `fault`'s retries, stays there."""
        hosted = box.hosted
        if self.fault:
            hosted.fault(**self.fault)
        hosted.script_comfyui(*self.script)
        job = hosted.add_stage(NONSENSE) if self.broken else box.add_job(self.clips, maxAttempts=3)
        worker = box.start(HEARTBEAT_INTERVAL_S="0.2", PATH=stuck_encoder(box, self.name))
        seen = 0
        for _ in range(self.times):
            seen = hosted.wait(self.sign, after=seen, where=self._is_it)["seq"]
        if self is ENCODING:
            assert (box.folder / "stuck").read_text() == "up\n"
        return worker, job

    def _is_it(self, event: Event) -> bool:
        return bool(re.search(self.detail, json.dumps(event["data"])))


def stuck_encoder(box: Box, moment: str) -> str:
    """A PATH on which, at the moment of encoding, the second clip's never ends.

    Who reads `stuck` hears of it once the first clip is kept.
    """
    if moment != "encoding":
        return os.environ["PATH"]
    os.mkfifo(box.folder / "stuck")
    kept = f"until ls {box.state}/jobs/*/clips/000.mp4; do sleep 0.05; done"
    stuck = f'{kept}; echo up > "{box.folder}/stuck"; exec sleep 600'
    case = f'case "$*" in *trim=*/001.part*) {stuck};; esac'
    return preceded(box.folder, "ffmpeg", case)


CLAIMED = Moment("claimed", "claim", fault={"match": CLAIM, "landThenReset": True})
DOWNLOADING = Moment(
    "downloading", "fault", fault={"match": "GET /frames/frame-1*", "blackhole": True}, alive=True
)
HANGING_BOOT = {"on": "boot", "kind": "hang"}
QUICK_BOOT = {"on": "boot", "kind": "slow", "seconds": 0}
# A job is claimed when a ComfyUI is up that fits.
OFFERED = Moment("offered", "comfyui.boot", script=(HANGING_BOOT,), alive=True)
BOOTING = Moment(
    "booting",
    "comfyui.boot",
    clips=2,
    script=(QUICK_BOOT, HANGING_BOOT),
    alive=True,
    prompts=(1, 1),
    times=2,
)
RENDERING = Moment(
    "rendering",
    "comfyui.step",
    clips=2,
    script=(PLAIN, {**STUCK, "at": 7}),
    detail='"node": "1...", "step": 7',
    alive=True,
    prompts=(1, 2),
)
ENCODING = Moment(
    "encoding",
    "heartbeat",
    clips=2,
    detail='"stage": "encoding"',
    alive=True,
    prompts=(1, 1),
)
FIRST_CLIP = RENDERING._replace(
    name="first clip", clips=1, script=({**STUCK, "at": 7},), detail='"step": 7'
)
UPLOADING = Moment(
    "uploading", "fault", fault={"match": PUT, "blackhole": True}, detail="/api/blob"
)
UPLOADED = Moment("uploaded", "blob.put", fault={"match": PUT, "landThenReset": True})
REPORTED = Moment("reported", "complete", fault={"match": COMPLETE, "landThenReset": True})
FAILED = Moment(
    "failed", "fail", fault={"match": FAIL, "landThenReset": True}, prompts=(), broken=True
)
FROZEN = Moment(
    "frozen",
    "comfyui.step",
    fault={"match": FAIL, "blackhole": True, "times": -1},
    script=({"on": "prompt", "kind": "freeze"},),
    detail='"step": 3',
    alive=True,
)
RETRYING = Moment("retrying", "fault", fault={"match": COMPLETE, "status": 503, "times": -1})


def by_name(moments: Sequence[Moment]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("moment", moments, ids=[moment.name for moment in moments])


@contextlib.contextmanager
def watched(pids: Sequence[int]) -> Iterator[list[int]]:
    """Handles on processes, by which their end can be waited for, whoever their parent is."""
    handles = [os.pidfd_open(pid) for pid in pids]
    try:
        yield handles
    finally:
        for handle in handles:
            os.close(handle)


def all_gone(handles: Sequence[int]) -> bool:
    return all(select.select([handle], [], [], GONE_S)[0] for handle in handles)


def kill(box: Box, worker: Running) -> int:
    """kill -9 of the worker; how many children it had, all of which end with it."""
    with watched(box.children()) as children:
        worker.end()
        assert all_gone(children), "a child outlives the worker"
        return len(children)


def prompts(hosted: Hosted) -> list[int]:
    """How often each clip was rendered; the ids of its nodes tell the clip."""
    graphs = [event["data"]["prompt"] for event in hosted.events("comfyui.prompt")]
    counts = Counter(min(map(int, graph)) // 1000 for graph in graphs)
    return [counts[clip] for clip in sorted(counts)]


def spooled(box: Box, job: str) -> Path:
    return box.state / "jobs" / job


def spool(box: Box, job: str, film: int = 0) -> Path:
    """The folder of a job that an earlier worker left, with a film of so many bytes."""
    claim_folder(box.state)
    folder = spooled(box, job)
    stage = {"frames": ["https://x.example/a", "https://x.example/b"], "clipPrompts": ["walk"]}
    Job(folder).create({**stage, "watermark": False})
    if film:
        with (folder / "output.mp4").open("wb") as file:
            file.truncate(film)
    return folder


def calls(hosted: Hosted, job: str, verb: str) -> list[dict[str, Any]]:
    return hosted.requests(f"PATCH */{job}/{verb}")


# kill -9


@by_name(
    [
        OFFERED,
        CLAIMED,
        DOWNLOADING,
        BOOTING,
        RENDERING,
        ENCODING,
        UPLOADING,
        UPLOADED,
        REPORTED,
        FAILED,
    ]
)
def test_after_kill_9_the_next_start_goes_on_at_the_first_missing_piece(
    box: Box, moment: Moment
) -> None:
    hosted = box.hosted
    worker, job = moment.hold(box)
    assert kill(box, worker) >= moment.alive
    hosted.clear_faults()
    hosted.clear_comfyui_script()
    again = box.run_once()
    verb = "fail" if moment.broken else "complete"
    state = "failed" if moment.broken else "completed"
    row = hosted.job(job)
    assert row["state"] == state, again.log
    assert len(row["outcomes"]) == 1
    assert len({json.dumps(call["json"]) for call in calls(hosted, job, verb)}) == 1
    assert prompts(hosted) == list(moment.prompts)
    assert len(hosted.events("blob.put")) == (not moment.broken)
    assert len([e for e in hosted.events("frame.get") if e["data"]["name"] == "frame-0.png"]) <= 1
    assert not spooled(box, job).exists()
    assert box.children() == []


def test_a_child_that_lost_its_worker_before_it_could_ask_to_die_with_it_never_begins(
    tmp_path: Path,
) -> None:
    """kill -9 may strike between the start of the child and its request for the parent's death."""
    mark = tmp_path / "began"
    for parent, begins in ((os.getpid(), True), (os.getppid(), False)):
        mark.unlink(missing_ok=True)
        child = [*LAUNCHER, str(parent), "touch", str(mark)]
        code = subprocess.run(child, capture_output=True).returncode
        assert (code == 0, mark.exists()) == (begins, begins)


def test_a_start_ends_what_an_earlier_worker_left_and_nothing_else(box: Box) -> None:
    marks = {"ours": str(box.state), "of-another": f"{box.state}-2", "unmarked": ""}
    processes = {
        name: subprocess.Popen(["sleep", "600"], env={"LTX_WORKER_STATE": mark} if mark else {})
        for name, mark in marks.items()
    }
    try:
        worker = box.start()
        box.hosted.wait("register")
        assert processes["ours"].wait(GONE_S) == -signal.SIGKILL
        assert f"pid={processes['ours'].pid}" in worker.log
        assert [name for name, one in processes.items() if one.poll() is None] == [
            "of-another",
            "unmarked",
        ]
    finally:
        for one in processes.values():
            one.kill()
            one.wait()


# Ownership


@pytest.mark.parametrize("answer", [404, 409, 410])
@pytest.mark.parametrize("film", [0, 5000], ids=["clips-missing", "film-made"])
def test_a_job_that_is_no_longer_ours_is_dropped_at_the_next_start(
    box: Box, answer: int, film: int
) -> None:
    hosted, job = box.hosted, uuid.uuid4().hex[:12]
    if answer != 404:
        hosted.add_stage(NONSENSE, id=job)
        url = f"{hosted.url}/api/videogen/{job}/claim"
        headers = {"x-videogen-secret": hosted.secret}
        requests.patch(url, json={"workerId": "other"}, headers=headers, timeout=10)
    if answer == 410:
        hosted.cancel(job)
    folder = spool(box, job, film)
    worker = box.start()
    refused = hosted.wait("claim.rejected", job)
    assert refused["data"]["answered"] == answer
    hosted.wait("pending", after=hosted.wait("pending", after=refused["seq"])["seq"])
    assert not folder.exists(), worker.log
    assert not hosted.events("comfyui.boot")
    assert not hosted.requests("* /api/blob*")
    assert not calls(hosted, job, "complete") + calls(hosted, job, "fail")


def test_a_lease_that_is_over_already_renders_reports_and_uploads_nothing(box: Box) -> None:
    hosted = box.hosted
    hosted.set_options(leaseUntil=LONG_AGO)
    job = box.add_job()
    worker = box.start()
    claimed = hosted.wait("claim", job)
    hosted.wait("pending", after=claimed["seq"])
    assert worker.process.poll() is None, worker.log
    assert prompts(hosted) == []
    assert not hosted.requests("* /api/blob*")
    assert not calls(hosted, job, "complete") + calls(hosted, job, "fail")


@by_name([FIRST_CLIP, UPLOADING])
def test_a_lease_that_runs_out_ends_the_work_and_nothing_is_reported_or_uploaded(
    box: Box, moment: Moment
) -> None:
    hosted = box.hosted
    hosted.set_options(leaseSec=4)
    worker, job = moment.hold(box)
    # The lease is not renewed any more, and a cancelled job is not offered again.
    hosted.fault(BEAT, times=-1, status=503)
    hosted.cancel(job)
    held = hosted.now()
    with watched(box.children()) as children:
        assert all_gone(children), worker.log
    # The first poll after the job; a second one means that the spool has been looked through.
    hosted.wait("pending", after=hosted.wait("pending", after=held)["seq"])
    assert not calls(hosted, job, "complete") + calls(hosted, job, "fail")
    assert not hosted.blobs()
    assert worker.process.poll() is None, worker.log


def test_a_cancelled_upload_stops_sending(box: Box) -> None:
    """The store reads on after a while; by then nobody may be sending any more."""
    hosted, job = box.hosted, uuid.uuid4().hex[:12]
    spool(box, job, film=40 * 2**20)
    hosted.add_stage(NONSENSE, id=job)
    hosted.fault(PUT, delay=3)
    worker = box.start()
    sending = hosted.wait("fault", where=lambda one: one["data"]["path"].startswith("/api/blob"))
    hosted.cancel(job)
    failed = hosted.wait("fail", job)
    assert failed["t"] - sending["t"] < 3, "too late to show anything"
    with contextlib.suppress(NothingHappened):
        hosted.wait("blob.put", job, timeout=5)
    assert not hosted.blobs(), worker.log


# Outcomes


def hold_until_the_lease_ends(box: Box) -> tuple[Running, str]:
    """A worker whose film waits for its report in an outage that the lease does not outlive."""
    hosted = box.hosted
    hosted.set_options(leaseSec=4)
    worker, job = RETRYING.hold(box)
    since = hosted.now()
    hosted.fault(BEAT, times=-1, status=503)
    hosted.wait("pending", after=hosted.wait("fault", after=since)["seq"])
    return worker, job


def test_a_finished_films_outcome_outlives_a_lease_that_ends_in_an_outage(box: Box) -> None:
    hosted = box.hosted
    worker, job = hold_until_the_lease_ends(box)
    hosted.clear_faults()
    hosted.wait("complete", job, timeout=60)
    assert prompts(hosted) == [1], worker.log
    assert len(hosted.events("blob.put")) == 1


def test_a_film_that_waited_replaces_what_another_worker_put_in_its_place(box: Box) -> None:
    hosted = box.hosted
    worker, job = hold_until_the_lease_ends(box)
    other = Store(hosted).put(f"spatial-story/output/{job}.mp4", x_allow_overwrite="1")
    assert other.status_code == 200
    hosted.clear_faults()
    done = hosted.wait("complete", job, timeout=60)
    assert hosted.blob_path(job).stat().st_size == done["data"]["sizeBytes"], worker.log
    assert prompts(hosted) == [1], "it was rendered anew"


def test_a_final_failure_that_waits_is_reported_not_worked_on_when_the_job_is_offered_again(
    box: Box,
) -> None:
    hosted = box.hosted
    # It runs out before the failure is tried again between polls.
    hosted.set_options(leaseSec=2.5)
    hosted.fault(FAIL, status=503, times=4)
    good = hosted.put_frame("frame-0.png", picture((320, 180), 0))
    job = hosted.add_job([good, hosted.put_frame("cut.png", picture((320, 180))[:200])], ["walk"])
    worker = box.start(HEARTBEAT_INTERVAL_S="0.2")
    failed = hosted.wait("fail", job, timeout=60)
    assert len(hosted.events("claim", job)) == 2, "it was not offered again"
    assert len(hosted.events("frame.get")) == 2, worker.log
    assert failed["data"]["error"]["code"] == "frame_invalid"
    assert len({json.dumps(call["json"]) for call in calls(hosted, job, "fail")}) == 1


# SIGTERM


def stop(box: Box, worker: Running) -> None:
    with watched(box.children()) as children:
        worker.signal(signal.SIGTERM)
        assert worker.wait(STOP_S) == 0, worker.log
        assert all_gone(children)
    assert box.children() == []


def assert_handed_back(box: Box, job: str) -> None:
    error = box.hosted.wait("fail", job)["data"]["error"]
    assert (error["code"], error["retryable"]) == ("shutdown", True)
    assert box.hosted.job(job)["state"] == "queued"
    assert not spooled(box, job).exists()


@by_name([DOWNLOADING, FIRST_CLIP])
def test_a_stop_ends_comfyui_and_hands_the_job_back_while(box: Box, moment: Moment) -> None:
    worker, job = moment.hold(box)
    stop(box, worker)
    assert_handed_back(box, job)


def test_a_stop_while_comfyui_boots_for_an_offer_leaves_the_job_in_the_queue(box: Box) -> None:
    worker, job = OFFERED.hold(box)
    stop(box, worker)
    assert box.hosted.job(job)["state"] == "queued"
    assert not box.hosted.events("claim")


@by_name([BOOTING, RENDERING, ENCODING])
def test_a_restart_goes_on_with_the_finished_clips(box: Box, moment: Moment) -> None:
    worker, job = moment.hold(box)
    stop(box, worker)
    assert f"job_kept job={job}" in worker.log
    box.hosted.clear_comfyui_script()
    again = box.run_once()
    row = box.hosted.job(job)
    assert (row["state"], row["attempts"], len(row["outcomes"])) == ("completed", 1, 1), again.log
    assert prompts(box.hosted) == list(moment.prompts)


@pytest.mark.parametrize(
    "lease", [{"leaseSec": 20}, {"leaseUntil": ""}], ids=["too short", "unknown"]
)
def test_a_stop_hands_finished_clips_back_when_the_lease_may_not_last_for_a_restart(
    box: Box, lease: dict[str, object]
) -> None:
    box.hosted.set_options(**lease)
    worker, job = RENDERING.hold(box)
    stop(box, worker)
    assert_handed_back(box, job)


@pytest.mark.long
def test_a_worker_that_never_starts_again_loses_no_job(box: Box, tmp_path: Path) -> None:
    """Its lease runs out, another worker makes the film, and what is kept is dropped then."""
    hosted = box.hosted
    hosted.set_options(leaseSec=34)
    worker, job = RENDERING.hold(box)
    stop(box, worker)
    assert spooled(box, job).exists()
    hosted.clear_comfyui_script()
    (tmp_path / "second").mkdir()
    other = Box(tmp_path / "second", hosted).start(WORKER_ID="other")
    try:
        hosted.wait("complete", job, timeout=90)
    finally:
        other.end()
    before = hosted.now()
    box.start()
    hosted.wait("claim.rejected", job)
    hosted.wait("pending", after=hosted.wait("pending", after=before)["seq"])
    assert not spooled(box, job).exists()
    assert len(hosted.job(job)["outcomes"]) == 1


def test_a_stop_holds_its_time_with_a_frozen_comfyui_and_an_api_that_is_silent(box: Box) -> None:
    worker, job = FROZEN.hold(box)
    stop(box, worker)
    kept = json.loads((spooled(box, job) / "outcome.json").read_text())
    assert kept["body"]["error"]["code"] == "shutdown"


def test_a_stop_while_uploading_keeps_the_film_and_reports_nothing(box: Box) -> None:
    worker, job = UPLOADING.hold(box)
    stop(box, worker)
    assert (spooled(box, job) / "output.mp4").stat().st_size > 0
    assert not calls(box.hosted, job, "fail")


def test_a_stop_while_an_outcome_is_retried_keeps_the_outcome(box: Box) -> None:
    worker, job = RETRYING.hold(box)
    stop(box, worker)
    kept = json.loads((spooled(box, job) / "outcome.json").read_text())
    assert kept["verb"] == "complete"
    assert kept["body"]["outputUrl"]
    assert not calls(box.hosted, job, "fail")


def test_a_stop_while_the_api_does_not_answer_a_claim_ends_clean(box: Box) -> None:
    box.hosted.fault(CLAIM, blackhole=True)
    box.add_job()
    worker = box.start()
    box.hosted.wait("fault")
    stop(box, worker)


# Several workers


def is_of(worker: str, event: Event) -> bool:
    return bool(event["data"]["workerId"] == worker)


def test_two_workers_never_both_deliver_a_job(box: Box, tmp_path: Path) -> None:
    hosted = box.hosted
    (tmp_path / "second").mkdir()
    boxes = [box, Box(tmp_path / "second", hosted)]
    # Longer than the pause between polls, so that both are offered the same job.
    hosted.fault(CLAIM, times=-1, delay=0.3)
    workers = [
        each.start(WORKER_ID=f"worker-{n}", POLL_INTERVAL_S="0.1") for n, each in enumerate(boxes)
    ]
    try:
        for name in ("worker-0", "worker-1"):
            hosted.wait("pending", where=partial(is_of, name))
        jobs = [box.add_job() for _ in range(6)]
        for job in jobs:
            hosted.wait("complete", job, timeout=60)
    finally:
        for worker in workers:
            worker.signal(signal.SIGTERM)
            worker.wait(STOP_S)
    assert hosted.events("claim.rejected"), "they never wanted the same job"
    rows = [hosted.job(job) for job in jobs]
    assert [row["deliveries"] for row in rows] == [1] * 6
    assert {row["worker"] for row in rows} == {"worker-0", "worker-1"}
    assert Counter(e["job"] for e in hosted.events("blob.put")) == Counter(jobs)
