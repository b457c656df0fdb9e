"""The blobs themselves: bytes on disk under random names, everything else in SQLite."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

from sandbox.journal import Journal, Options, iso

DOMAIN = "blob.vercel-storage.com"
MIB = 1024 * 1024
STATUS = {
    "bad_request": 400,
    "forbidden": 403,
    "store_not_found": 403,
    "not_found": 404,
    "precondition_failed": 412,
    "internal_server_error": 500,
}
# Word for word what the service says: clients recognise the case by this text alone.
EXISTS = (
    "This blob already exists, use `allowOverwrite: true` if you want to overwrite it."
    " Or `addRandomSuffix: true` to generate a unique filename. Read more about this error in our"
    " documentation: https://vercel.link/blob-allow-overwrite"
)
SCHEMA = """
CREATE TABLE IF NOT EXISTS blobs (
    pathname TEXT PRIMARY KEY, file TEXT, size INTEGER, etag TEXT, content_type TEXT,
    max_age INTEGER, uploaded_at REAL);
"""


class BlobError(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = STATUS[code]


@dataclass(frozen=True)
class Write:
    """What the `x-` headers of a put, a copy or a multipart upload ask for."""

    pathname: str
    content_type: str
    max_age: int
    overwrite: bool
    if_match: str | None


@dataclass(frozen=True)
class Body:
    """Bytes on disk that are not a blob yet; `etag` is bare, without its quotes."""

    file: str
    size: int
    etag: str


class BlobStore:
    def __init__(
        self, db: sqlite3.Connection, journal: Journal, options: Options, token: str, folder: Path
    ) -> None:
        self.id = token.split("_")[3]
        self._db = db
        self._journal = journal
        self._options = options
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        db.executescript(SCHEMA)

    # Finding

    def row(self, pathname: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._db.execute(
            "SELECT * FROM blobs WHERE pathname = ?", (pathname,)
        ).fetchone()
        return row

    def find(self, url: str) -> sqlite3.Row | None:
        """The blob that a pathname or one of this store's URLs means."""
        if not re.match(r"https?://", url):
            return self.row(url.removeprefix("/"))
        parts = urlsplit(url)
        if parts.netloc.lower() != self._host():
            return None
        return self.row(unquote(parts.path).removeprefix("/"))

    def entries(self, prefix: str, after: str, folded: bool) -> dict[str, sqlite3.Row | None]:
        """Blobs under a prefix in order; when folded, each folder stands once, without a row."""
        rows = self._db.execute(
            "SELECT * FROM blobs WHERE substr(pathname, 1, ?) = ? AND pathname > ?"
            " ORDER BY pathname",
            (len(prefix), prefix, after),
        )
        entries: dict[str, sqlite3.Row | None] = {}
        for row in rows:
            name, slash, _ = row["pathname"][len(prefix) :].partition("/")
            if not folded or not slash:
                entries[row["pathname"]] = row
            elif prefix + name + slash != after:
                entries[prefix + name + slash] = None
        return entries

    def file(self, row: sqlite3.Row) -> Path:
        return self._folder / str(row["file"])

    # Writing

    def check_allowed(self, write: Write) -> None:
        stored = self.row(write.pathname)
        if write.if_match is not None:
            # The real store sends S3 both If-Match and If-None-Match here, and S3 answers 501.
            if not write.overwrite:
                raise BlobError("internal_server_error", "if-match needs allow-overwrite")
            check_etag(stored, write.if_match)
        if stored is not None and not write.overwrite:
            raise BlobError("bad_request", EXISTS)

    async def receive(
        self, chunks: AsyncIterator[bytes], pathname: str, part: int | None = None
    ) -> Body:
        path = self._folder / uuid4().hex
        digest, size = hashlib.md5(usedforsecurity=False), 0
        try:
            with path.open("wb") as out:
                async for chunk in chunks:
                    out.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                    if size // MIB > (size - len(chunk)) // MIB:
                        self.emit("blob.put.progress", pathname, bytes=size, partNumber=part)
        except BaseException:
            path.unlink()
            raise
        return Body(path.name, size, digest.hexdigest())

    async def join(self, parts: list[Body]) -> Body:
        whole = uuid4().hex
        files = [self._folder / part.file for part in parts]
        await asyncio.to_thread(join_files, files, self._folder / whole)
        digests = b"".join(bytes.fromhex(part.etag) for part in parts)
        etag = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
        return Body(whole, sum(part.size for part in parts), etag)

    def commit(self, write: Write, body: Body, kind: str) -> dict[str, Any]:
        try:
            self.check_allowed(write)
        except BlobError:
            self.discard(body.file)
            raise
        replaced = self.row(write.pathname)
        row = (write.pathname, body.file, body.size, f'"{body.etag}"', write.content_type)
        self._db.execute(
            "INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*row, write.max_age, time.time()),
        )
        if replaced is not None:
            self.discard(replaced["file"])
        self.emit(kind, write.pathname, size=body.size, etag=f'"{body.etag}"')
        stored = self.row(write.pathname)
        assert stored is not None
        return self.put_result(stored)

    def copy(self, source: str, write: Write) -> dict[str, Any]:
        stored = self.find(source)
        if stored is None:
            raise BlobError("not_found", "The requested blob does not exist")
        if write.if_match is not None:
            check_etag(stored, write.if_match)
        # The condition was about the source: it must not be asked of the destination as well.
        write = replace(write, if_match=None)
        self.check_allowed(write)
        body = Body(uuid4().hex, stored["size"], stored["etag"].strip('"'))
        os.link(self.file(stored), self._folder / body.file)
        return self.commit(write, body, "blob.copy")

    def delete(self, url: str) -> None:
        stored = self.find(url)
        if stored is not None:
            self._db.execute("DELETE FROM blobs WHERE pathname = ?", (stored["pathname"],))
            self.discard(stored["file"])
            self.emit("blob.delete", stored["pathname"])

    def discard(self, file: str) -> None:
        (self._folder / file).unlink(missing_ok=True)

    # Describing

    def put_result(self, row: sqlite3.Row) -> dict[str, Any]:
        name = PurePosixPath(row["pathname"]).name
        return {
            **self._addresses(row["pathname"]),
            "contentType": row["content_type"],
            "contentDisposition": f'inline; filename="{name}"',
            "etag": row["etag"],
        }

    def list_entry(self, row: sqlite3.Row) -> dict[str, Any]:
        return {
            **self._addresses(row["pathname"]),
            "size": row["size"],
            "uploadedAt": iso(row["uploaded_at"]),
            "etag": row["etag"],
        }

    def everything(self) -> list[dict[str, Any]]:
        rows = self._db.execute("SELECT * FROM blobs ORDER BY pathname").fetchall()
        return [
            {
                **self.list_entry(row),
                "contentType": row["content_type"],
                "file": str(self.file(row).absolute()),
            }
            for row in rows
        ]

    def emit(self, kind: str, pathname: str, **data: Any) -> None:
        self._journal.emit(kind, stem(pathname), pathname=pathname, **data)

    def _host(self) -> str:
        return f"{self.id.lower()}.{self._options['blobAccess']}.{DOMAIN}"

    def _addresses(self, pathname: str) -> dict[str, str]:
        url = f"https://{self._host()}/{quote(pathname, safe='/')}"
        return {"url": url, "downloadUrl": f"{url}?download=1", "pathname": pathname}


def check_etag(stored: sqlite3.Row | None, expected: str) -> None:
    if stored is None or stored["etag"] != expected:
        raise BlobError("precondition_failed", "Precondition failed: ETag mismatch.")


def stem(pathname: str) -> str:
    """Outputs are named after their job, so this is the job an event belongs to."""
    return PurePosixPath(urlsplit(pathname).path).stem


def join_files(parts: list[Path], whole: Path) -> None:
    with whole.open("wb") as out:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, out, MIB)
