"""What an answer of the hosted queue means: one pure table, which knows no socket."""

from __future__ import annotations

import enum
import re
from typing import NamedTuple

# What Fastify, NestJS and h3 say in JSON about a route that is not there.
NO_ROUTE = re.compile(
    rb'"message"\s*:\s*"(Route [A-Z]+:\S* not found|Cannot [A-Z]+ /|Cannot find any path matching)'
)
ABSENT_STATUS = (404, 405, 501)
FINAL_STATUS = (409, 410, 422)


class Verdict(enum.Enum):
    DONE = "the call was taken"
    EMPTY = "the queue is empty"
    ABSENT = "this API has no such call"
    FINAL = "the hosted side understood and said no"
    SECRET = "the secret is wrong"  # noqa: S105
    REFUSED = "the secret, which was right before, is refused"
    AGAIN = "no verdict; the same call may succeed later"


class Past(NamedTuple):
    """accepted: a call was taken in this process; polled: `pending` was, and nothing failed since.

    A route that is missing from an API that answers is missing; from one that is down it is not.
    """

    accepted: bool = False
    polled: bool = False


def name_body(body: bytes, content_type: str) -> str:
    """The kind of body: empty, null, page, json, no_route (JSON of a framework) or text."""
    body = body.strip()
    if not body:
        return "empty"
    if "html" in content_type.lower() or body.startswith(b"<"):
        return "page"
    if body == b"null":
        return "null"
    if body[:1] in b'{["':
        return "no_route" if NO_ROUTE.search(body[:4096]) else "json"
    return "text"


def judge(call: str, status: int, kind: str, past: Past) -> Verdict:
    """call: register, pending, claim, heartbeat, complete or fail; kind: of `Reply.kind`."""
    if kind == "edge":
        return Verdict.AGAIN
    if 200 <= status < 300:
        return _judge_success(call, kind)
    if is_about_secret(status, kind):
        return Verdict.REFUSED if past.accepted else Verdict.SECRET
    if _is_absent(call, status, kind, past):
        return Verdict.ABSENT
    return Verdict.FINAL if _is_final(call, status, kind) else Verdict.AGAIN


def judge_probe(status: int, kind: str) -> Verdict:
    """Whether a call is there (DONE) or not, by its answer about a job that nobody has."""
    if is_about_secret(status, kind):
        return Verdict.SECRET
    if kind == "edge":
        return Verdict.AGAIN
    if status in (405, 501) or (status == 404 and kind != "json"):
        return Verdict.ABSENT
    is_word = 200 <= status < 300 or status in (400, 404, *FINAL_STATUS)
    return Verdict.DONE if is_word and kind != "page" else Verdict.AGAIN


def is_about_secret(status: int, kind: str) -> bool:
    """Whether the API may mean our secret: JSON, or a plain 401; an edge says it otherwise."""
    return (status in (401, 403) and kind in ("json", "no_route")) or (
        status == 401 and kind in ("text", "empty", "null")
    )


def _judge_success(call: str, kind: str) -> Verdict:
    if call == "pending" and kind in ("empty", "null"):
        return Verdict.EMPTY
    # Only here is JSON due: a login page or a captive portal answers 200 too.
    is_other = call == "pending" and kind in ("page", "text", "no_route")
    return Verdict.AGAIN if is_other else Verdict.DONE


def _is_final(call: str, status: int, kind: str) -> bool:
    if call in ("pending", "heartbeat"):
        return False
    return (status == 404 and kind == "json") or (status in FINAL_STATUS and kind != "page")


def _is_absent(call: str, status: int, kind: str, past: Past) -> bool:
    if call == "register":
        return status in ABSENT_STATUS
    if call not in ("claim", "fail") or status not in ABSENT_STATUS:
        return False
    if status == 404:
        return past.polled and kind != "json"
    return call == "claim" or past.polled
