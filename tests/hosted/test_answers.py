"""What an answer of the hosted side means, row by row, and what the worker makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from ltx.hosted.answers import Past, Verdict, judge, name_body
from tests.conftest import Box

NONSENSE = {"frames": "none"}
PAGE = "<!doctype html><h1>404</h1>"
FASTIFY = {"message": "Route PATCH:/api/videogen/x/fail not found", "statusCode": 404}
POLL = "GET /api/videogen/pending"
NEW, KNOWN, ANSWERING = Past(), Past(accepted=True), Past(accepted=True, polled=True)
DONE, EMPTY, ABSENT = Verdict.DONE, Verdict.EMPTY, Verdict.ABSENT
FINAL, SECRET, REFUSED, AGAIN = Verdict.FINAL, Verdict.SECRET, Verdict.REFUSED, Verdict.AGAIN

ROWS = [
    *[
        (call, status, kind, NEW, DONE)
        for call in ("register", "claim", "heartbeat", "complete", "fail")
        for status in (200, 201, 204)
        for kind in ("json", "text", "empty", "null")
    ],
    *[(call, 200, "page", NEW, AGAIN) for call in ("register", "claim", "complete", "fail")],
    ("pending", 200, "json", NEW, DONE),
    *[("pending", 200, kind, NEW, EMPTY) for kind in ("empty", "null")],
    ("pending", 204, "empty", NEW, EMPTY),
    *[("pending", 200, kind, KNOWN, AGAIN) for kind in ("page", "text")],
    *[("pending", 404, kind, KNOWN, AGAIN) for kind in ("page", "text", "empty")],
    *[
        ("register", status, kind, NEW, ABSENT)
        for status in (404, 405, 501)
        for kind in ("json", "page", "text", "empty", "no_route")
    ],
    *[
        (call, 404, kind, ANSWERING, ABSENT)
        for call in ("claim", "fail")
        for kind in ("page", "text", "empty", "no_route")
    ],
    *[(call, 404, "page", KNOWN, AGAIN) for call in ("claim", "fail")],
    *[(call, 404, "json", ANSWERING, FINAL) for call in ("claim", "fail", "complete")],
    *[(call, 405, "empty", ANSWERING, ABSENT) for call in ("claim", "fail")],
    *[("complete", 404, kind, ANSWERING, AGAIN) for kind in ("page", "text", "empty", "no_route")],
    ("complete", 405, "empty", ANSWERING, AGAIN),
    *[
        (call, status, kind, KNOWN, FINAL)
        for call in ("claim", "complete", "fail")
        for status in (409, 410, 422)
        for kind in ("json", "text", "empty")
    ],
    ("complete", 410, "page", KNOWN, AGAIN),
    *[("pending", status, "json", NEW, SECRET) for status in (401, 403)],
    *[("pending", 401, kind, NEW, SECRET) for kind in ("text", "empty")],
    *[("pending", 403, kind, NEW, AGAIN) for kind in ("text", "empty", "page")],
    ("pending", 401, "page", NEW, AGAIN),
    *[(call, 401, "text", KNOWN, REFUSED) for call in ("pending", "claim", "complete", "fail")],
    ("pending", 403, "json", KNOWN, REFUSED),
    ("pending", 403, "text", KNOWN, AGAIN),
    *[("complete", status, "json", KNOWN, AGAIN) for status in (302, 408, 429, 500, 503)],
]


@pytest.mark.parametrize(("call", "status", "kind", "past", "verdict"), ROWS)
def test_an_answer_means_one_thing(
    call: str, status: int, kind: str, past: Past, verdict: Verdict
) -> None:
    assert judge(call, status, kind, past) is verdict


@pytest.mark.parametrize(
    ("kind", "content_type", "body"),
    [
        ("empty", "application/json", b" \n"),
        ("null", "application/json", b"null"),
        ("json", "", b'{"job": null}'),
        ("json", "application/json", b'{"error": {"message": "no such job"}}'),
        ("page", "text/html", b"Cannot PATCH /api"),
        ("page", "text/plain", b"<!doctype html>"),
        ("text", "text/plain", b"error code: 1020"),
        ("no_route", "application/json", b'{"message":"Route PATCH:/a/fail not found"}'),
        ("no_route", "application/json", b'{"message":"Cannot PATCH /a/fail","statusCode":404}'),
    ],
)
def test_a_body_has_one_kind(kind: str, content_type: str, body: bytes) -> None:
    assert name_body(body, content_type) == kind


# A call the API does not have

MISSING = [
    {"status": 404, "body": PAGE},
    {"status": 405, "body": ""},
    {"status": 404, "body": FASTIFY},
    {"status": 404, "body": "NOT_FOUND", "headers": {"x-vercel-error": "NOT_FOUND"}},
]


def name(answer: dict[str, Any]) -> str:
    return "-".join(map(str, answer.values()))[:24]


@pytest.mark.parametrize("answer", MISSING, ids=name)
def test_an_api_without_register_and_claim_is_said_once_and_its_job_is_rendered(
    box: Box, answer: dict[str, Any]
) -> None:
    box.hosted.fault("POST */register", times=-1, **answer)
    box.hosted.fault("PATCH */claim", times=-1, **answer)
    box.add_job()
    worker = box.start("run")
    # This sandbox gives a job only to who claimed it, so that the report is all there is to see.
    box.hosted.wait("complete.rejected", timeout=40)
    assert worker.log.count("register_skipped") == 1
    assert worker.log.count("claim_skipped") == 1


@pytest.mark.parametrize("answer", MISSING, ids=name)
def test_a_job_that_cannot_be_reported_is_let_go_and_left_alone_also_after_a_restart(
    box: Box, answer: dict[str, Any]
) -> None:
    hosted = box.hosted
    for verb in ("claim", "fail"):
        hosted.fault(f"PATCH */{verb}", times=-1, **answer)
    job = hosted.add_stage(NONSENSE)
    for _ in range(2):
        worker, mark = box.start("run"), hosted.now()
        seen = mark
        for _ in range(3):
            seen = hosted.wait("pending", job, after=seen)["seq"]
        worker.end()
    assert len(hosted.requests(f"PATCH */{job}/fail")) == 1
    assert box.running[0].log.count(f"let_go job={job}") == 1
    assert not (box.state / "jobs" / job).exists()


def test_the_job_behind_one_that_cannot_be_reported_is_served(box: Box) -> None:
    box.hosted.fault("PATCH */fail", times=-1, status=404, body=PAGE)
    box.hosted.add_stage(NONSENSE)
    behind = box.add_job()
    box.start("run")
    box.hosted.wait("complete", behind, timeout=40)


# An edge is not the API


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 403, "body": "error code: 1020"},
        {"status": 403, "body": "Forbidden", "headers": {"x-vercel-mitigated": "deny"}},
        {"status": 403, "body": ""},
        {"status": 401, "body": PAGE},
    ],
    ids=name,
)
@pytest.mark.parametrize("call", ["POST */register", POLL])
def test_what_an_edge_denies_is_asked_again(box: Box, call: str, answer: dict[str, Any]) -> None:
    box.hosted.fault(call, times=2, **answer)
    job = box.hosted.add_stage(NONSENSE)
    worker = box.start("run")
    box.hosted.wait("fail", job)
    assert worker.process.poll() is None, worker.log


# A success is a success


@pytest.mark.parametrize("verb", ["register", "heartbeat", "fail"])
@pytest.mark.parametrize("body", ["OK", "", ["a list"]], ids=str)
def test_any_2xx_is_done_whatever_its_body(box: Box, verb: str, body: Any) -> None:
    box.hosted.fault(f"* /api/*/{verb}", times=-1, status=200, body=body)
    box.hosted.add_stage(NONSENSE)
    worker = box.start("run")
    seen = box.hosted.wait("request.start", where=lambda one: one["data"]["path"].endswith("fail"))
    box.hosted.wait("heartbeat" if verb != "heartbeat" else "pending", after=seen["seq"])
    for trouble in ("_retry", "_unavailable", "_refused"):
        assert trouble not in worker.log


@pytest.mark.parametrize(("status", "body"), [(204, ""), (200, ""), (200, None)])
def test_an_answer_of_nothing_is_an_empty_queue_at_the_usual_interval(
    box: Box, status: int, body: Any
) -> None:
    box.hosted.fault(POLL, times=3, status=status, body=body)
    worker = box.start("run", POLL_INTERVAL_S="0.1")
    box.hosted.wait("pending")
    assert [call["status"] for call in box.hosted.requests(POLL)][:3] == [status] * 3
    assert "api_unavailable" not in worker.log
