"""The host that serves the still pictures a film goes through."""

from __future__ import annotations

import mimetypes
import re
import sqlite3
from pathlib import Path

from aiohttp import web

from sandbox.journal import Journal

SCHEMA = "CREATE TABLE IF NOT EXISTS frames (name TEXT PRIMARY KEY, content_type TEXT, bytes BLOB)"
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class FrameHost:
    def __init__(self, db: sqlite3.Connection, journal: Journal, folder: Path | None) -> None:
        self._db = db
        self._journal = journal
        self._folder = folder
        db.execute(SCHEMA)

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/frames/{name}", self._get)]

    def put(self, name: str, content: bytes, content_type: str) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"not a frame's name: {name}")
        row = (name, content_type, content)
        self._db.execute("INSERT OR REPLACE INTO frames VALUES (?, ?, ?)", row)

    async def _get(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        found = self._find(name)
        if found is None:
            raise web.HTTPNotFound
        content_type, content = found
        self._journal.emit("frame.get", name=name, size=len(content))
        return web.Response(body=content, headers={"Content-Type": content_type})

    def _find(self, name: str) -> tuple[str, bytes] | None:
        row = self._db.execute("SELECT * FROM frames WHERE name = ?", (name,)).fetchone()
        if row:
            return row["content_type"], row["bytes"]
        if self._folder is None or not NAME.fullmatch(name):
            return None
        path = self._folder / name
        if not path.is_file():
            return None
        return mimetypes.guess_type(name)[0] or "application/octet-stream", path.read_bytes()
