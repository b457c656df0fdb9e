"""The hosted queue API, strict about what a worker may send: every call is a contract test."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiohttp import web

from sandbox.api import Api
from sandbox.contract import (
    CLAIM,
    COMPLETE,
    FAIL,
    HEARTBEAT,
    REGISTER,
    Check,
    Refusal,
    breach,
    parse_body,
    text,
)
from sandbox.journal import atomically, iso

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, stage_data TEXT, raw TEXT,
    state TEXT DEFAULT 'queued', worker TEXT, lease_until REAL, attempts INTEGER DEFAULT 0,
    max_attempts INTEGER, offers INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS outcomes (
    n INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT, worker TEXT, kind TEXT, attempt INTEGER,
    body TEXT, repeated INTEGER DEFAULT 0);
"""

Act = Callable[[web.Request, dict[str, Any]], dict[str, Any]]


class QueueApi(Api):
    schema = SCHEMA

    def routes(self) -> list[web.RouteDef]:
        base = "/api/videogen"
        return [
            web.post(f"{base}/register", self._call("register", REGISTER, self._register)),
            web.get(f"{base}/pending", self._call("pending", None, self._pending)),
            web.post(f"{base}/heartbeat", self._call("heartbeat", HEARTBEAT, self._heartbeat)),
            web.patch(f"{base}/{{id}}/claim", self._call("claim", CLAIM, self._claim)),
            web.patch(f"{base}/{{id}}/complete", self._call("complete", COMPLETE, self._complete)),
            web.patch(f"{base}/{{id}}/fail", self._call("fail", FAIL, self._fail)),
        ]

    def _call(
        self, kind: str, contract: Check | None, act: Act
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        return partial(self._serve, kind, contract, act)

    async def _serve(
        self, kind: str, contract: Check | None, act: Act, request: web.Request
    ) -> web.Response:
        body: dict[str, Any] = {}
        try:
            self._authorise(request)
            if contract:
                body = parse_body(await request.read())
                contract("", body)
            answer = act(request, body)
        except Refusal as refusal:
            job = request.match_info.get("id") or body.get("jobId")
            facts = {"answered": refusal.status, "error": refusal.error, "body": body}
            self._journal.emit(f"{kind}.rejected", job, **facts)
            return web.json_response({"ok": False, "error": refusal.error}, status=refusal.status)
        return web.json_response(answer)

    def _authorise(self, request: web.Request) -> None:
        if not self._is_secret(request.headers.get("x-videogen-secret", "")):
            raise Refusal(401, "unauthorized", "x-videogen-secret is missing or wrong")

    def _register(self, _request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
        self._journal.emit("register", **body)
        return {"ok": True}

    def _pending(self, request: web.Request, _body: dict[str, Any]) -> dict[str, Any]:
        worker = request.query.get("workerId")
        text("workerId", worker)
        self._requeue_expired()
        row = self._db.execute("SELECT * FROM jobs WHERE state = 'queued' ORDER BY n").fetchone()
        if row:
            self._db.execute("UPDATE jobs SET offers = offers + 1 WHERE id = ?", (row["id"],))
        self._journal.emit("pending", row and row["id"], workerId=worker)
        answer: dict[str, Any] = {"job": row and offered(row)}
        if self._options["nextPollSec"] is not None:
            answer["nextPollSec"] = self._options["nextPollSec"]
        return answer

    def _requeue_expired(self) -> None:
        self._db.execute(
            "UPDATE jobs SET state = 'queued', worker = NULL, lease_until = NULL"
            " WHERE state = 'claimed' AND lease_until <= ?",
            (time.time(),),
        )

    def _claim(self, request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
        job, worker = self._find(request), body["workerId"]
        if job["state"] == "cancelled":
            raise Refusal(410, "cancelled", f"job {job['id']} was cancelled")
        ours = job["state"] == "claimed" and job["worker"] == worker
        if not ours and job["state"] != "queued":
            raise Refusal(409, "not_yours", f"job {job['id']} is {job['state']}")
        self._db.execute(
            "UPDATE jobs SET state = 'claimed', worker = ?, attempts = attempts + ? WHERE id = ?",
            (worker, 0 if ours else 1, job["id"]),
        )
        lease = self._renew_lease(job["id"], worker)
        self._journal.emit("claim", job["id"], workerId=worker, again=ours)
        return {"ok": True, "leaseUntil": lease}

    def _renew_lease(self, job: str, worker: str) -> Any:
        until = time.time() + self._options["leaseSec"]
        renewed = self._db.execute(
            "UPDATE jobs SET lease_until = ? WHERE id = ? AND worker = ? AND state = 'claimed'",
            (until, job, worker),
        )
        if not renewed.rowcount:
            return None
        override = self._options["leaseUntil"]
        return iso(until) if override is None else override

    def _heartbeat(self, _request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
        worker, job = body["workerId"], body.get("jobId")
        lease = self._renew_lease(job, worker) if job else None
        cancelled = self._db.execute(
            "SELECT id FROM jobs WHERE state = 'cancelled' AND worker = ?"
            " AND lease_until IS NOT NULL ORDER BY n",
            (worker,),
        )
        cancel = [row["id"] for row in cancelled]
        self._journal.emit("heartbeat", job, cancel=cancel, **body)
        return {"ok": True, "cancel": cancel, **({"leaseUntil": lease} if lease else {})}

    def _complete(self, request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
        job = self._find(request)
        if not self._holds(job, body["workerId"]):
            return self._settle_late(job, "complete", body)
        stored = self._store.find(body["outputUrl"])
        if stored is None:
            raise breach("outputUrl", body["outputUrl"], "the URL of a blob in this store")
        if stored["size"] != body["sizeBytes"]:
            raise breach("sizeBytes", body["sizeBytes"], f"the blob's size, {stored['size']}")
        return self._settle(job, "complete", body, "completed")

    def _fail(self, request: web.Request, body: dict[str, Any]) -> dict[str, Any]:
        job = self._find(request)
        if not self._holds(job, body["workerId"]):
            return self._settle_late(job, "fail", body)
        again = body["error"]["retryable"] and job["attempts"] < job["max_attempts"]
        return self._settle(job, "fail", body, "queued" if again else "failed")

    def _find(self, request: web.Request) -> sqlite3.Row:
        job: sqlite3.Row | None = self._db.execute(
            "SELECT * FROM jobs WHERE id = ?", (request.match_info["id"],)
        ).fetchone()
        if job is None:
            raise Refusal(404, "not_found", f"there is no job {request.match_info['id']}")
        return job

    @staticmethod
    def _holds(job: sqlite3.Row, worker: str) -> bool:
        return bool(job["state"] == "claimed" and job["worker"] == worker)

    def _settle(
        self, job: sqlite3.Row, kind: str, body: dict[str, Any], state: str
    ) -> dict[str, Any]:
        worker = None if state == "queued" else body["workerId"]
        with atomically(self._db):
            self._db.execute(
                "UPDATE jobs SET state = ?, worker = ?, lease_until = NULL WHERE id = ?",
                (state, worker, job["id"]),
            )
            self._db.execute(
                "INSERT INTO outcomes (job, worker, kind, attempt, body) VALUES (?, ?, ?, ?, ?)",
                (job["id"], body["workerId"], kind, job["attempts"], canonical(body)),
            )
        self._journal.emit(kind, job["id"], repeated=False, state=state, **body)
        return {"ok": True}

    def _settle_late(self, job: sqlite3.Row, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """Answer an outcome for a job its sender does not hold, or no longer holds."""
        repeated = self._db.execute(
            "UPDATE outcomes SET repeated = repeated + 1"
            " WHERE job = ? AND worker = ? AND kind = ? AND body = ?",
            (job["id"], body["workerId"], kind, canonical(body)),
        )
        if repeated.rowcount:
            self._journal.emit(kind, job["id"], repeated=True, state=job["state"], **body)
            return {"ok": True, "repeated": True}
        if job["state"] != "cancelled":
            raise Refusal(409, "not_yours", f"job {job['id']} is {job['state']}")
        if job["worker"] == body["workerId"]:
            if kind == "fail" and body["error"]["code"] == "cancelled":
                return self._settle(job, kind, body, "cancelled")
            # The holder knows by now, so heartbeats need not tell it again.
            self._db.execute("UPDATE jobs SET lease_until = NULL WHERE id = ?", (job["id"],))
        raise Refusal(410, "cancelled", f"job {job['id']} was cancelled")

    def add(self, given: dict[str, Any]) -> str:
        job = str(given.get("id") or uuid.uuid4().hex[:12])
        raw = json.dumps(given["raw"]) if "raw" in given else None
        self._db.execute(
            "INSERT INTO jobs (id, stage_data, raw, max_attempts) VALUES (?, ?, ?, ?)",
            (job, json.dumps(given.get("stageData")), raw, given.get("maxAttempts", 1)),
        )
        return job

    def cancel(self, job: str) -> bool:
        changed = self._db.execute(
            "UPDATE jobs SET state = 'cancelled' WHERE id = ? AND state IN ('queued', 'claimed')",
            (job,),
        )
        return changed.rowcount == 1

    def jobs(self, job: str | None = None) -> list[dict[str, Any]]:
        rows = self._db.execute(
            "SELECT * FROM jobs WHERE ? IS NULL OR id = ? ORDER BY n", (job, job)
        ).fetchall()
        return [self._describe(row) for row in rows]

    def _describe(self, job: sqlite3.Row) -> dict[str, Any]:
        rows = self._db.execute("SELECT * FROM outcomes WHERE job = ? ORDER BY n", (job["id"],))
        outcomes = [
            {
                "kind": row["kind"],
                "worker": row["worker"],
                "attempt": row["attempt"],
                "repeated": row["repeated"],
                "body": json.loads(row["body"]),
            }
            for row in rows
        ]
        return {
            "id": job["id"],
            "state": job["state"],
            "worker": job["worker"],
            "leaseUntil": job["lease_until"] and iso(job["lease_until"]),
            "attempts": job["attempts"],
            "maxAttempts": job["max_attempts"],
            "stageData": json.loads(job["stage_data"]),
            "outcome": outcomes[-1]["body"] if outcomes else None,
            "outcomes": outcomes,
            "deliveries": sum(1 + outcome["repeated"] for outcome in outcomes),
            "offers": job["offers"],
        }


def offered(row: sqlite3.Row) -> Any:
    if row["raw"] is not None:
        return json.loads(row["raw"])
    return {"id": row["id"], "stageData": json.loads(row["stage_data"])}


def canonical(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True)
