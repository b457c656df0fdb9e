"""A store that refuses the account costs no job: films wait, and no more are made meanwhile."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from sandbox.launch import Running
from tests.conftest import Box
from tests.hosted.films import spool_film

SUSPENDED = {"error": {"code": "store_suspended", "message": "Store is suspended"}}
STORE = "Sandbox0Store1234"


def refuse(box: Box, match: str, status: int, code: str) -> None:
    error = {"code": code, "message": "Not for this account."}
    box.hosted.fault(match, times=-1, status=status, body={"error": error})


def is_degraded(event: dict[str, Any]) -> bool:
    return bool(event["data"]["status"] == "degraded")


def outcomes(worker: Running, job: str) -> list[str]:
    return re.findall(rf"job_done job={job} outcome=(\S+)", worker.log)


ACCOUNT = [
    ("PUT", 403, "forbidden"),
    ("GET", 403, "forbidden"),
    ("PUT", 403, "store_suspended"),
    ("GET", 403, "store_not_found"),
    ("PUT", 503, "not_allowed"),
    ("PUT", 402, "a_code_of_next_year"),
]


@pytest.mark.parametrize(("method", "status", "code"), ACCOUNT)
def test_a_refused_account_keeps_the_film_claims_no_more_and_delivers_it_without_rendering_again(
    box: Box, finished_job: Path, method: str, status: int, code: str
) -> None:
    """The first one's film is of the worker that is refused, the others' of one before it."""
    is_own = (method, status, code) == ACCOUNT[0]
    refuse(box, f"{method} /api/blob*", status, code)
    first = box.add_job() if is_own else spool_film(box, finished_job, "made-before")
    worker = box.start("run")
    beat = box.hosted.wait("heartbeat", where=is_degraded, timeout=60)
    assert beat["data"]["progress"]["stage"] == "degraded: upload_failed"
    second = box.add_job()
    # It asks the store again, and takes no other job for that.
    asked = len(box.hosted.requests(f"{method} /api/blob*"))
    box.hosted.wait("fault", after=box.hosted.now())
    assert len(box.hosted.requests(f"{method} /api/blob*")) > asked
    assert box.hosted.events("claim", job=second) == box.hosted.events("fail") == []
    assert set(outcomes(worker, first)) == {"waits_for_store"}
    box.hosted.clear_faults()
    for job in (first, second):
        assert box.await_outcome(job)["kind"] == "complete"
    box.hosted.wait("heartbeat", after=box.hosted.now(), where=lambda one: not is_degraded(one))
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert worker.log.count(f"render_done job={first} ") == is_own
    assert (worker.log.count(" degraded "), worker.log.count(" recovered")) == (1, 1)
    assert code in worker.log
    assert outcomes(worker, first)[-1] == "complete"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"BLOB_READ_WRITE_TOKEN": f"vercel_blob_rw_{STORE}_wrong"}, "BLOB_READ_WRITE_TOKEN"),
        ({"BLOB_ACCESS": "private"}, "BLOB_ACCESS"),
    ],
)
def test_a_wrong_setting_of_the_store_says_what_to_set_and_the_next_start_delivers(
    box: Box, changes: dict[str, str], told: str
) -> None:
    job = box.add_job()
    wrong = box.start("run", **changes)
    box.hosted.wait("heartbeat", where=is_degraded, timeout=60)
    wrong.signal(signal.SIGTERM)
    assert wrong.wait() == 0
    assert re.search(rf"ERROR degraded .*{told}", wrong.log)
    assert "complete" not in outcomes(wrong, job)
    box.start("run")
    assert box.await_outcome(job)["kind"] == "complete"
    assert "render_done" not in box.running[-1].log


def test_pauses_between_probes_of_a_store_that_refuses_grow(box: Box) -> None:
    refuse(box, "PUT /api/blob*", 403, "store_suspended")
    box.add_job()
    box.start("run")
    for _ in range(4):
        box.hosted.wait("fault", after=box.hosted.now(), timeout=60)
    times = [one["t"] for one in box.hosted.requests("PUT /api/blob*")]
    # 1, 2 and 4 s, each shortened by up to a half; the poll interval here is 0.2 s.
    assert times[3] - times[2] >= 2


def test_an_outcome_that_nobody_heard_is_called_not_reported(box: Box) -> None:
    box.hosted.fault("PATCH */complete", times=-1, status=503)
    job = box.add_job()
    worker = box.run_once()
    assert outcomes(worker, job) == ["not_reported"]
    status = json.loads((box.state / "status.json").read_text())
    assert [one["outcome"] for one in status["lastOutcomes"]] == ["not_reported"]


def test_an_outcome_that_the_api_refuses_is_not_called_complete(box: Box) -> None:
    box.hosted.fault("PATCH */complete", times=-1, status=410, body={"error": "gone"})
    job = box.add_job()
    worker = box.run_once()
    assert outcomes(worker, job) == ["refused"]


def test_a_film_that_the_store_took_is_reported_whatever_the_store_says_later(box: Box) -> None:
    box.hosted.fault("PATCH */complete", status=503, times=2)
    box.hosted.fault("GET /api/blob*", after=1, times=-1, status=403, body=SUSPENDED)
    job = box.add_job()
    worker = box.run_once()
    assert box.hosted.job(job)["state"] == "completed", worker.log
    assert outcomes(worker, job) == ["complete"]
