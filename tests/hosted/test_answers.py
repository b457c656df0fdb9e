"""What an answer of the hosted side means, row by row, and what the worker makes of it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import pytest

from ltx.hosted.answers import Past, Verdict, judge, name_body
from sandbox.client import ROOT
from sandbox.edges import LOST, MISSING, SUCCESSES
from tests.conftest import Box

NONSENSE = {"frames": "none"}
POLL = "GET /api/videogen/pending"
PASTS = {
    "nothing": Past(),
    "accepted": Past(accepted=True),
    "polled": Past(accepted=True, polled=True),
}
NOT_EDGE = ("empty", "null", "text", "page", "json", "no_route")
ALL = {
    "call": ("register", "pending", "claim", "heartbeat", "complete", "fail"),
    "status": (200, 201, 204, 302, 400, 401, 403, 404, 405, 409, 410, 422, 429, 500, 501, 503),
    "body": (*NOT_EDGE, "edge"),
    "before": tuple(PASTS),
}
ROW = re.compile(r"\| ([a-z, ]+) \| (any|[\dx, ]+) \| ([a-z_, ]+) \| ([a-z, ]+) \| ([a-z]+) \|\n")
API_PAGE = (ROOT / "docs" / "api.md").read_text()
ROWS = ROW.findall(API_PAGE)
Answer = tuple[str, int, str, str]


def spell_out(row: Sequence[str]) -> list[Answer]:
    """Every answer that a row of the table in docs/api.md speaks of."""
    columns: list[list[Any]] = []
    for there, cell in zip(ALL.values(), row, strict=False):
        cell = cell.replace("2xx", "200, 201, 204").replace("all but edge", ", ".join(NOT_EDGE))
        words = cell.split(", ")
        columns.append([one for one in there if str(one) in words or words == ["any"]])
    return list(itertools.product(*columns))


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_an_answer_means_what_the_table_says(row: Sequence[str]) -> None:
    answers = spell_out(row)
    assert answers
    for call, status, kind, before in answers:
        verdict = judge(call, status, kind, PASTS[before])
        assert verdict.name.lower() == row[4], (call, status, kind, before)


def test_every_answer_that_the_table_leaves_out_is_asked_for_again() -> None:
    assert "| any | any other | any other | any other | again |" in API_PAGE
    told = {answer for row in ROWS for answer in spell_out(row)}
    for call, status, kind, before in itertools.product(*ALL.values()):
        if (call, status, kind, before) not in told:
            again = judge(str(call), int(status), str(kind), PASTS[str(before)])
            assert again is Verdict.AGAIN, (call, status, kind, before)


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
        ("no_route", "application/json", b'{"message": "Cannot find any path matching /a/fail."}'),
    ],
)
def test_a_body_has_one_kind(kind: str, content_type: str, body: bytes) -> None:
    assert name_body(body, content_type) == kind


# A call the API does not have


@pytest.mark.parametrize("edge", MISSING)
def test_an_api_without_register_and_claim_is_said_once_and_its_job_is_rendered(
    box: Box, edge: str
) -> None:
    box.hosted.fault("POST */register", times=-1, edge=edge)
    box.hosted.fault("PATCH */claim", times=-1, edge=edge)
    box.add_job()
    worker = box.start("run")
    # This sandbox gives a job only to who claimed it, so that the report is all there is to see.
    box.hosted.wait("complete.rejected", timeout=40)
    assert worker.log.count("register_skipped") == 1
    assert worker.log.count("claim_skipped") == 1


@pytest.mark.parametrize("edge", MISSING)
def test_a_job_that_cannot_be_reported_is_let_go_and_left_alone_also_after_a_restart(
    box: Box, edge: str
) -> None:
    hosted = box.hosted
    for verb in ("claim", "fail"):
        hosted.fault(f"PATCH */{verb}", times=-1, edge=edge)
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
    box.hosted.fault("PATCH */fail", times=-1, edge="next: no route")
    box.hosted.add_stage(NONSENSE)
    behind = box.add_job()
    box.start("run")
    box.hosted.wait("complete", behind, timeout=40)


def test_a_job_that_was_let_go_of_does_not_block_the_queue_when_its_lease_is_over(
    box: Box,
) -> None:
    box.hosted.set_options(leaseSec=1.5)
    box.hosted.fault("PATCH */fail", times=-1, edge="next: no route")
    first = box.hosted.add_stage(NONSENSE)
    box.start("run", HEARTBEAT_INTERVAL_S="0.2")
    let_go = box.hosted.wait("fault")
    # Offered anew, it stands before what comes now.
    box.hosted.wait("pending", first, after=let_go["seq"])
    box.hosted.wait("complete", box.add_job(), timeout=40)
    assert len(box.hosted.requests("PATCH */fail")) == 1


def test_an_api_that_says_in_json_what_it_lacks_is_served_all_the_same(box: Box) -> None:
    for call in ("claim", "fail", "no-such-call"):
        box.hosted.fault(f"PATCH */{call}", times=-1, status=404, body={"error": "not found"})
    job = box.hosted.add_stage(NONSENSE)
    worker = box.start("run")
    seen = box.hosted.wait("pending", job)["seq"]
    for _ in range(2):
        seen = box.hosted.wait("pending", job, after=seen)["seq"]
    assert len(box.hosted.requests("PATCH */fail")) == 1
    assert worker.log.count("claim_skipped") == 1
    assert "not_ours" not in worker.log


# An edge is not the API


# Each at a poll: tests/hosted/test_edges.py.
@pytest.mark.parametrize("edge", ["vercel: firewall", "vercel: no deployment", "nothing but 403"])
@pytest.mark.parametrize("call", ["POST */register", "PATCH */claim"])
def test_what_an_edge_denies_is_asked_again(box: Box, call: str, edge: str) -> None:
    box.hosted.fault(call, edge=edge)
    job = box.hosted.add_stage(NONSENSE)
    worker = box.start("run")
    box.hosted.wait("fail", job)
    assert worker.process.poll() is None, worker.log


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_after_an_accepted_call_degrades_until_the_api_accepts_again(
    box: Box, status: int
) -> None:
    box.hosted.fault(POLL, times=2, after=1, status=status, body={"error": "unauthorized"})
    worker = box.start("run")
    beat = box.hosted.wait("heartbeat", where=lambda one: one["data"]["status"] == "degraded")
    assert beat["data"]["progress"]["stage"] == "degraded: api_refused"
    job = box.hosted.add_stage(NONSENSE)
    done = box.hosted.wait("fail", job)
    box.hosted.wait(
        "heartbeat", after=done["seq"], where=lambda one: one["data"]["status"] == "idle"
    )
    assert worker.log.count(" degraded ") == worker.log.count(" recovered") == 1
    assert f"refused VIDEOGEN_WORKER_SECRET ({status})" in worker.log


# A success is a success


@pytest.mark.parametrize("edge", SUCCESSES)
def test_any_2xx_is_done_whatever_its_body(box: Box, edge: str) -> None:
    for verb in ("register", "heartbeat", "claim", "fail"):
        box.hosted.fault(f"* /api/*/{verb}", times=-1, edge=edge)
    job = box.hosted.add_stage(NONSENSE)
    worker = box.start("run")
    failed = box.hosted.wait("fail", job)
    for kind in ("heartbeat", "pending"):
        box.hosted.wait(kind, after=failed["seq"])
    for call in ("POST */register", "PATCH */claim", "PATCH */fail"):
        assert len(box.hosted.requests(call)) == 1
    for trouble in ("_retry", "_unavailable", "_refused"):
        assert trouble not in worker.log


@pytest.mark.parametrize("edge", ["200 text", "200 page", "204"])
def test_a_film_is_delivered_by_any_2xx(box: Box, edge: str) -> None:
    box.hosted.fault("PATCH */complete", times=-1, edge=edge)
    job = box.add_job()
    worker = box.run_once()
    assert worker.process.returncode == 0, worker.log
    assert f"delivered job={job} verb=complete" in worker.log
    assert len(box.hosted.requests("PATCH */complete")) == 1


LOST_ANSWERS = [{"landThenReset": True}, *({"edge": edge} for edge in LOST)]


@pytest.mark.parametrize("lost", LOST_ANSWERS, ids=str)
def test_a_409_to_our_own_complete_after_a_lost_answer_is_a_delivery(
    box: Box, lost: dict[str, Any]
) -> None:
    box.hosted.fault("PATCH */complete", **lost)
    box.hosted.fault("PATCH */complete", status=409, body={"error": {"code": "done"}})
    box.add_job()
    worker = box.run_once()
    assert worker.process.returncode == 0, worker.log
    assert "delivered" in worker.log
    assert "outcome_refused" not in worker.log


def test_a_409_after_a_crash_that_cost_the_answer_is_a_delivery(box: Box) -> None:
    box.hosted.fault("PATCH */complete", blackhole=True)
    job = box.add_job()
    box.start("run")
    box.hosted.wait("fault", timeout=60)
    box.running[-1].end()
    box.hosted.fault("PATCH */complete", status=409, body={"error": {"code": "done"}})
    box.hosted.fault("PATCH */claim", status=409, body={"error": {"code": "done"}})
    worker = box.run_once()
    assert f"delivered job={job} verb=complete" in worker.log
    assert "outcome_refused" not in worker.log


@pytest.mark.parametrize("claim", [409, 405])
def test_a_409_to_a_complete_that_was_never_asked_before_is_no_delivery(
    box: Box, claim: int
) -> None:
    for verb, status in (("complete", 409), ("claim", claim)):
        after = int(verb == "claim")
        box.hosted.fault(f"PATCH */{verb}", after=after, status=status, body={"error": "gone"})
    job = box.add_job()
    worker = box.run_once()
    assert f"outcome_refused job={job} verb=complete" in worker.log
    assert "let_go" not in worker.log
