"""What the sandbox remembers: its database file, the requests and events it saw, its options."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from aiohttp import web

JSON_LIMIT = 64 * 1024
JOB_PATH = re.compile(r"/api/videogen/([^/]+)/(?:claim|complete|fail)")
SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, t REAL, kind TEXT, job TEXT, data TEXT);
CREATE TABLE IF NOT EXISTS requests (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, t REAL, method TEXT, path TEXT, query TEXT,
    headers TEXT, json TEXT, body_size INTEGER DEFAULT 0, status INTEGER);
CREATE TABLE IF NOT EXISTS options (name TEXT PRIMARY KEY, value TEXT);
"""


def open_database(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA journal_mode=WAL")
    # The sandbox is killed in tests but the machine is not: WAL without fsync survives that.
    db.execute("PRAGMA synchronous=OFF")
    db.create_function("fnmatch", 2, fnmatchcase, deterministic=True)
    return db


@contextmanager
def atomically(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def iso(moment: float) -> str:
    text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


class Options:
    """Settings a test may change while the sandbox runs; they outlive a restart."""

    def __init__(self, db: sqlite3.Connection, lease_s: float) -> None:
        self._db = db
        db.executescript(SCHEMA)
        self._values: dict[str, Any] = {
            "nextPollSec": None,
            "leaseSec": lease_s,
            "leaseUntil": None,
            "minPartBytes": 5 * 1024 * 1024,
            "blobAccess": "public",
        }
        stored = db.execute("SELECT name, value FROM options")
        self._values.update({row["name"]: json.loads(row["value"]) for row in stored})

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def all(self) -> dict[str, Any]:
        return dict(self._values)

    def update(self, changes: dict[str, Any]) -> None:
        unknown = sorted(set(changes) - set(self._values))
        if unknown:
            raise ValueError(f"unknown options {unknown}; there are {sorted(self._values)}")
        self._values.update(changes)
        rows = [(name, json.dumps(value)) for name, value in changes.items()]
        self._db.executemany("INSERT OR REPLACE INTO options VALUES (?, ?)", rows)


class Journal:
    """Every request and event in order, kept in SQLite so that `seq` survives a restart."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._news = asyncio.Event()
        self._closed = False
        db.executescript(SCHEMA)

    def emit(self, kind: str, job: str | None = None, **data: Any) -> None:
        self.emit_data(kind, job, data)

    def emit_data(self, kind: str, job: str | None, data: dict[str, Any]) -> None:
        self._db.execute(
            "INSERT INTO events (t, kind, job, data) VALUES (?, ?, ?, ?)",
            (time.monotonic(), kind, job, json.dumps(data)),
        )
        self._wake()

    def close(self) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def events(self, after: int, kind: str, job: str | None) -> list[dict[str, Any]]:
        rows = self._db.execute(
            "SELECT * FROM events WHERE seq > ? AND fnmatch(kind, ?) AND (? IS NULL OR job = ?)"
            " ORDER BY seq LIMIT 1000",
            (after, kind, job, job),
        )
        return [{**dict(row), "data": json.loads(row["data"])} for row in rows]

    def last_event(self) -> int:
        """The `seq` of the latest event."""
        latest: int = self._db.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0]
        return latest

    async def wait_events(
        self, after: int, kind: str, job: str | None, timeout: float
    ) -> list[dict[str, Any]]:
        deadline = time.monotonic() + timeout
        while True:
            news = self._news
            found = self.events(after, kind, job)
            left = deadline - time.monotonic()
            if found or left <= 0 or self._closed:
                return found
            try:
                await asyncio.wait_for(news.wait(), left)
            except TimeoutError:
                return []

    def begin(self, request: web.Request) -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        row = (
            time.monotonic(),
            request.method,
            request.path,
            json.dumps(dict(request.query)),
            json.dumps(headers),
        )
        request["seq"] = self._db.execute(
            "INSERT INTO requests (t, method, path, query, headers) VALUES (?, ?, ?, ?, ?)", row
        ).lastrowid
        found = JOB_PATH.fullmatch(request.path)
        self.emit(
            "request.start",
            found and found[1],
            method=request.method,
            path=request.path,
            query=dict(request.query),
            request=request["seq"],
        )

    def note_body(self, request: web.Request, size: int, body: bytes | None = None) -> None:
        """Keep the body's size, and the body itself when it is JSON of a modest length."""
        text = None
        if body and len(body) <= JSON_LIMIT:
            try:
                text = json.dumps(json.loads(body))
            except ValueError:
                text = None
        self._db.execute(
            "UPDATE requests SET body_size = ?, json = ? WHERE seq = ?",
            (size, text, request["seq"]),
        )

    def end(self, request: web.Request, status: int | None) -> None:
        self._db.execute("UPDATE requests SET status = ? WHERE seq = ?", (status, request["seq"]))

    def requests(self, match: str, after: int) -> list[dict[str, Any]]:
        rows = self._db.execute(
            "SELECT * FROM requests WHERE seq > ? AND fnmatch(method || ' ' || path, ?)"
            " ORDER BY seq",
            (after, match),
        )
        return [_request_record(row) for row in rows]


def _request_record(row: sqlite3.Row) -> dict[str, Any]:
    record = dict(row)
    record["query"] = json.loads(record["query"])
    record["headers"] = json.loads(record["headers"])
    record["json"] = json.loads(record["json"]) if record["json"] else None
    record["bodySize"] = record.pop("body_size")
    return record
