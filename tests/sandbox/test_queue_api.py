"""What the sandbox's queue promises to the worker's tests: the contract, and who has a job."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from sandbox.client import Hosted
from tests.sandbox.callers import FILM, Caller, Store

PROGRESS = {
    "stage": "sampling",
    "clip": 0,
    "clips": 1,
    "step": 3,
    "steps": 8,
    "percent": 37.5,
    "etaSec": None,
    "lastProgressAt": "2026-11-23T08:00:00Z",
}


def test_a_queued_job_is_offered_with_its_stage_data(worker: Caller, job: str) -> None:
    stage = {
        "frames": ["https://a/1.png", "https://a/2.png"],
        "clipPrompts": ["a walk"],
        "watermark": False,
    }
    assert worker.pending() == {"job": {"id": job, "stageData": stage}}


def test_an_empty_queue_offers_null_and_the_wait_it_was_told(
    hosted: Hosted, worker: Caller
) -> None:
    hosted.set_options(nextPollSec=2)
    assert worker.pending() == {"job": None, "nextPollSec": 2}


def test_a_raw_job_is_offered_as_it_was_given(hosted: Hosted, worker: Caller) -> None:
    hosted.add_stage(None, raw=["not", "a", "job"])
    assert worker.pending() == {"job": ["not", "a", "job"]}


def test_a_claim_by_the_same_worker_is_granted_again(
    hosted: Hosted, worker: Caller, claimed: str
) -> None:
    assert worker.claim(claimed).status_code == 200
    assert hosted.job(claimed)["attempts"] == 1
    assert worker.pending()["job"] is None


def test_another_workers_claim_is_refused(hosted: Hosted, claimed: str) -> None:
    assert Caller(hosted, "worker-2").claim(claimed).status_code == 409
    assert hosted.job(claimed)["worker"] == "worker-1"


def test_a_job_nobody_queued_is_unknown_to_every_call(worker: Caller) -> None:
    assert worker.claim("nothing").status_code == 404
    assert worker.complete("nothing").status_code == 404
    assert worker.fail("nothing") == 404


def test_a_wrong_secret_is_refused_in_json(hosted: Hosted, worker: Caller) -> None:
    hosted.secret = "guessed"
    answer = worker.claim("any")
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "unauthorized"


def test_an_expired_lease_returns_the_job_at_the_next_poll(
    hosted: Hosted, worker: Caller, job: str
) -> None:
    hosted.set_options(leaseSec=0)
    worker.claim(job)
    assert hosted.job(job)["state"] == "claimed"
    assert Caller(hosted, "worker-2").pending()["job"]["id"] == job
    assert worker.complete(job).status_code == 409


def test_a_heartbeat_renews_the_lease_of_its_job(hosted: Hosted, worker: Caller, job: str) -> None:
    hosted.set_options(leaseSec=0)
    worker.claim(job)
    hosted.set_options(leaseSec=60)
    answer = worker.heartbeat(jobId=job, progress=PROGRESS).json()
    assert answer["leaseUntil"] == hosted.job(job)["leaseUntil"]
    assert worker.pending()["job"] is None


def test_the_answered_lease_can_be_overridden(hosted: Hosted, worker: Caller, job: str) -> None:
    hosted.set_options(leaseUntil="soon")
    assert worker.claim(job).json()["leaseUntil"] == "soon"


def test_a_heartbeat_names_a_cancelled_job_until_its_holder_lets_go(
    hosted: Hosted, worker: Caller, claimed: str
) -> None:
    assert hosted.cancel(claimed)
    assert worker.heartbeat(jobId=claimed).json()["cancel"] == [claimed]
    assert Caller(hosted, "worker-2").heartbeat().json()["cancel"] == []
    assert worker.fail(claimed, "cancelled") == 200
    assert worker.heartbeat().json()["cancel"] == []
    assert hosted.job(claimed)["state"] == "cancelled"


def test_a_cancelled_job_can_be_neither_claimed_nor_completed(
    hosted: Hosted, worker: Caller, rendered: str
) -> None:
    hosted.cancel(rendered)
    assert worker.claim(rendered).status_code == 410
    assert worker.complete(rendered).status_code == 410


def test_a_film_is_accepted_once_its_blob_exists(
    hosted: Hosted, worker: Caller, claimed: str, store: Store
) -> None:
    refused = worker.complete(claimed)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "outputUrl")
    store.put(f"spatial-story/output/{claimed}.mp4")
    assert worker.complete(claimed).status_code == 200
    assert hosted.job(claimed)["state"] == "completed"
    assert hosted.blob_path(claimed).read_bytes() == FILM


def test_the_size_a_worker_reports_must_be_the_blobs(worker: Caller, rendered: str) -> None:
    refused = worker.complete(rendered, sizeBytes=1)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "sizeBytes")


def test_the_same_outcome_twice_is_accepted_and_counted(
    hosted: Hosted, worker: Caller, rendered: str
) -> None:
    answers = [worker.complete(rendered).status_code for _ in range(2)]
    assert answers == [200, 200]
    assert hosted.job(rendered)["deliveries"] == 2
    assert [event["data"]["repeated"] for event in hosted.events("complete")] == [False, True]


def test_a_second_and_different_outcome_is_refused(worker: Caller, rendered: str) -> None:
    worker.complete(rendered)
    assert worker.complete(rendered, renderSec=2).status_code == 409
    assert worker.fail(rendered) == 409


def test_a_retryable_failure_goes_back_to_the_queue_while_attempts_remain(
    hosted: Hosted, worker: Caller, claimed: str
) -> None:
    assert worker.fail(claimed, retryable=True) == 200
    assert worker.pending()["job"]["id"] == claimed
    worker.claim(claimed)
    assert worker.fail(claimed, retryable=True) == 200
    assert hosted.job(claimed)["state"] == "failed"
    assert [outcome["attempt"] for outcome in hosted.job(claimed)["outcomes"]] == [1, 2]


def test_a_failure_whose_answer_was_lost_is_not_taken_for_a_second_one(
    hosted: Hosted, worker: Caller, claimed: str
) -> None:
    hosted.fault("PATCH */fail", landThenReset=True)
    with pytest.raises(requests.ConnectionError):
        worker.fail(claimed, retryable=True)
    assert worker.fail(claimed, retryable=True) == 200
    assert [outcome["repeated"] for outcome in hosted.job(claimed)["outcomes"]] == [1]


@pytest.mark.parametrize(
    ("path", "changes", "field"),
    [
        ("register", {"gpu": {"name": "RTX 5090", "vramBytes": 1.5}}, "gpu.vramBytes"),
        ("register", {"gpu": {"name": "RTX 5090"}}, "gpu.vramBytes"),
        ("register", {"version": None}, "version"),
        ("register", {"surprise": 1}, "surprise"),
        ("heartbeat", {"status": "sleeping"}, "status"),
        ("heartbeat", {"progress": {**PROGRESS, "percent": 101}}, "progress.percent"),
        (
            "heartbeat",
            {"progress": {**PROGRESS, "lastProgressAt": "2026-11-23T08:00:00+00:00"}},
            "progress.lastProgressAt",
        ),
        ("{job}/claim", {"workerId": ""}, "workerId"),
        ("{job}/complete", {"frames": True}, "frames"),
        ("{job}/complete", {"clips": []}, "clips"),
        ("{job}/complete", {"clips": [{"seed": 1, "renderSec": 1}]}, "clips[0].attempts"),
        ("{job}/complete", {"outputUrl": "out.mp4"}, "outputUrl"),
        (
            "{job}/fail",
            {"error": {"code": "oops", "message": "m", "retryable": True}},
            "error.code",
        ),
        ("{job}/fail", {"error": {"code": "bad_job", "message": "m"}}, "error.retryable"),
    ],
)
def test_a_body_that_breaks_the_contract_is_refused_by_field(
    standing: Hosted, path: str, changes: dict[str, Any], field: str
) -> None:
    worker, job, before = Caller(standing), standing.add_stage(None), standing.now()
    whole: dict[str, dict[str, Any]] = {
        "register": {"workerId": "w", "hostname": "h", "version": "1", "gpu": None},
        "heartbeat": {"workerId": "w", "status": "idle"},
        "{job}/claim": {"workerId": "w"},
        "{job}/complete": worker.outcome(job),
        "{job}/fail": {"workerId": "w"},
    }
    method = "PATCH" if "{job}" in path else "POST"
    answer = worker.call(method, path.format(job=job), {**whole[path], **changes})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
    assert standing.wait("*.rejected", after=before)["data"]["error"]["field"] == field


def test_a_body_that_is_not_json_is_refused(hosted: Hosted) -> None:
    headers = {"x-videogen-secret": hosted.secret}
    url = f"{hosted.url}/api/videogen/heartbeat"
    answer = requests.post(url, data=b'{"percent": NaN}', headers=headers, timeout=10)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "body")
