"""Vercel Blob's HTTP API in miniature, conforming enough for the official clients."""

from __future__ import annotations

import base64
import binascii
import json
import mimetypes
import re
import secrets
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

from aiohttp import web

from sandbox.api import Api
from sandbox.blob_store import BlobError, Body, Write, check_etag, stem
from sandbox.journal import atomically

DEFAULT_MAX_AGE_S = 2592000
MIN_MAX_AGE_S = 60
LONGEST_PATHNAME = 950
MOST_PARTS = 10_000
LONGEST_PAGE = 1000
SUFFIX_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
SCHEMA = """
CREATE TABLE IF NOT EXISTS uploads (id TEXT PRIMARY KEY, key TEXT, write TEXT);
CREATE TABLE IF NOT EXISTS parts (
    upload TEXT, number INTEGER, file TEXT, size INTEGER, md5 TEXT,
    PRIMARY KEY (upload, number));
"""

Act = Callable[[web.Request], Awaitable[Any]]


class BlobApi(Api):
    schema = SCHEMA

    def routes(self) -> list[web.RouteDef]:
        base = "/api/blob"
        routes = [web.get("/blob-files/{pathname:.+}", self._view)]
        for root in (base, f"{base}/"):
            routes.append(web.put(root, partial(self._serve, self._put)))
            routes.append(web.get(root, partial(self._serve, self._look)))
        routes.append(web.post(f"{base}/delete", partial(self._serve, self._delete)))
        routes.append(web.post(f"{base}/mpu", partial(self._serve, self._multipart)))
        return routes

    async def _serve(self, act: Act, request: web.Request) -> web.Response:
        try:
            self._authorise(request)
            return web.json_response(await act(request))
        except BlobError as error:
            body = {"error": {"code": error.code, "message": str(error)}}
            return web.json_response(body, status=error.status)

    def _authorise(self, request: web.Request) -> None:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind != "Bearer" or not self._is_secret(token):
            raise BlobError("forbidden", "Access denied, please provide a valid token.")
        if request.headers.get("x-vercel-blob-store-id", self._store.id) != self._store.id:
            raise BlobError("store_not_found", "This store does not exist.")

    # Writing

    async def _put(self, request: web.Request) -> dict[str, Any]:
        write = self._read_write(request)
        source = request.query.get("fromUrl")
        if source is not None:
            return self._store.copy(source, write)
        self._store.check_allowed(write)
        body = await self._receive(request, write.pathname)
        return self._store.commit(write, body, "blob.put")

    def _read_write(self, request: web.Request) -> Write:
        headers = request.headers
        pathname = checked_pathname(request.query.get("pathname", ""))
        self._check_access(headers.get("x-vercel-blob-access"))
        if headers.get("x-add-random-suffix") == "1":
            pathname = with_random_suffix(pathname)
        guessed = mimetypes.guess_type(pathname)[0] or "application/octet-stream"
        return Write(
            pathname=pathname,
            content_type=headers.get("x-content-type") or guessed,
            max_age=checked_max_age(headers.get("x-cache-control-max-age")),
            overwrite=headers.get("x-allow-overwrite") == "1",
            if_match=headers.get("x-if-match"),
        )

    def _check_access(self, given: str | None) -> None:
        access = self._options["blobAccess"]
        if given not in ("public", "private"):
            raise BlobError("bad_request", 'access must be "public" or "private"')
        if given != access:
            raise BlobError(
                "bad_request",
                f"Cannot use {given} access on a {access} store."
                f" The store is configured with {access} access.",
            )

    async def _receive(self, request: web.Request, pathname: str, part: int | None = None) -> Body:
        body = await self._store.receive(request.content.iter_any(), pathname, part)
        self._journal.note_body(request, body.size)
        return body

    async def _delete(self, request: web.Request) -> None:
        body = await read_json(request)
        urls = body.get("urls") if isinstance(body, dict) else None
        if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
            raise BlobError("bad_request", "urls must be a list of strings")
        expected = request.headers.get("x-if-match")
        if expected is not None:
            if len(urls) != 1:
                raise BlobError("bad_request", "if-match needs exactly one url")
            check_etag(self._store.find(urls[0]), expected)
        for url in urls:
            self._store.delete(url)

    # Multipart

    async def _multipart(self, request: web.Request) -> dict[str, Any]:
        action = request.headers.get("x-mpu-action")
        if action == "create":
            return self._create_upload(self._read_write(request))
        upload = self._find_upload(request)
        self._check_access(request.headers.get("x-vercel-blob-access"))
        if action == "upload":
            return await self._upload_part(request, upload)
        if action == "complete":
            return await self._complete_upload(upload, await read_json(request))
        raise BlobError("bad_request", f"unknown multipart action {action}")

    def _create_upload(self, write: Write) -> dict[str, Any]:
        self._store.check_allowed(write)
        upload, key = f"upl_{uuid4().hex}", f"{self._store.id.lower()}/{write.pathname}"
        self._db.execute(
            "INSERT INTO uploads VALUES (?, ?, ?)", (upload, key, json.dumps(asdict(write)))
        )
        self._store.emit("blob.mpu.create", write.pathname, uploadId=upload)
        return {"key": key, "uploadId": upload}

    def _find_upload(self, request: web.Request) -> sqlite3.Row:
        headers = request.headers
        upload: sqlite3.Row | None = self._db.execute(
            "SELECT * FROM uploads WHERE id = ? AND key = ?",
            (headers.get("x-mpu-upload-id"), unquote(headers.get("x-mpu-key", ""))),
        ).fetchone()
        if upload is None:
            raise BlobError("not_found", "The specified multipart upload does not exist.")
        return upload

    async def _upload_part(self, request: web.Request, upload: sqlite3.Row) -> dict[str, Any]:
        number = checked_part_number(request.headers.get("x-mpu-part-number", ""))
        pathname = json.loads(upload["write"])["pathname"]
        body = await self._receive(request, pathname, number)
        old = self._parts(upload["id"]).get(number)
        self._db.execute(
            "INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?)",
            (upload["id"], number, body.file, body.size, body.etag),
        )
        if old is not None:
            self._store.discard(old.file)
        self._store.emit("blob.mpu.upload", pathname, partNumber=number, size=body.size)
        return {"etag": f'"{body.etag}"'}

    async def _complete_upload(self, upload: sqlite3.Row, listed: Any) -> dict[str, Any]:
        write = Write(**json.loads(upload["write"]))
        parts = listed_parts(listed, self._parts(upload["id"]))
        self._check_part_sizes([part.size for part in parts])
        self._store.check_allowed(write)
        body = await self._store.join(parts)
        result = self._store.commit(write, body, "blob.mpu.complete")
        self._forget_upload(upload["id"])
        return result

    def _parts(self, upload: str) -> dict[int, Body]:
        rows = self._db.execute("SELECT * FROM parts WHERE upload = ?", (upload,))
        return {row["number"]: Body(row["file"], row["size"], row["md5"]) for row in rows}

    def _check_part_sizes(self, sizes: list[int]) -> None:
        if any(size < self._options["minPartBytes"] for size in sizes[:-1]):
            raise BlobError("bad_request", "A part is smaller than the minimum allowed size.")
        if len(set(sizes[:-1])) > 1 or sizes[-1] > sizes[0]:
            raise BlobError("bad_request", "All parts but the last must have the same size.")

    def _forget_upload(self, upload: str) -> None:
        parts = self._parts(upload)
        with atomically(self._db):
            self._db.execute("DELETE FROM uploads WHERE id = ?", (upload,))
            self._db.execute("DELETE FROM parts WHERE upload = ?", (upload,))
        for part in parts.values():
            self._store.discard(part.file)

    # Reading

    async def _look(self, request: web.Request) -> dict[str, Any]:
        if "url" in request.query:
            return self._head(request.query["url"])
        return self._list(request)

    def _head(self, url: str) -> dict[str, Any]:
        stored = self._store.find(url)
        self._journal.emit("blob.head", stem(url), url=url, found=stored is not None)
        if stored is None:
            raise BlobError("not_found", "The requested blob does not exist")
        cache = {"cacheControl": f"public, max-age={stored['max_age']}"}
        return {**self._store.put_result(stored), **self._store.list_entry(stored), **cache}

    def _list(self, request: web.Request) -> dict[str, Any]:
        query = request.query
        limit = checked_limit(query.get("limit", str(LONGEST_PAGE)))
        folded = query.get("mode") == "folded"
        after = decoded_cursor(query.get("cursor"))
        entries = self._store.entries(query.get("prefix", ""), after, folded)
        page = list(entries.items())[:limit]
        answer: dict[str, Any] = {
            "blobs": [self._store.list_entry(row) for _, row in page if row is not None],
            "hasMore": len(entries) > limit,
        }
        if folded:
            answer["folders"] = [name for name, row in page if row is None]
        if answer["hasMore"]:
            answer["cursor"] = base64.urlsafe_b64encode(page[-1][0].encode()).decode()
        return answer

    async def _view(self, request: web.Request) -> web.StreamResponse:
        stored = self._store.row(request.match_info["pathname"])
        if stored is None:
            raise web.HTTPNotFound
        headers = {"Content-Type": stored["content_type"]}
        return web.FileResponse(self._store.file(stored), headers=headers)


def checked_pathname(pathname: str) -> str:
    if not pathname:
        raise BlobError("bad_request", "pathname is required")
    if len(pathname.encode("utf-16-le")) // 2 > LONGEST_PATHNAME:
        raise BlobError("bad_request", "pathname is too long, maximum length is 950")
    if "//" in pathname or re.search(r"[\x00-\x1f\x7f]|(^|/)\.{1,2}(/|$)", pathname):
        raise BlobError("bad_request", "pathname holds an empty, dot or control segment")
    return pathname.removeprefix("/")


def checked_max_age(given: str | None) -> int:
    if given is None:
        return DEFAULT_MAX_AGE_S
    if not given.isdecimal() or int(given) < MIN_MAX_AGE_S:
        raise BlobError("bad_request", "cacheControlMaxAge must be at least 60 seconds")
    return int(given)


def checked_part_number(given: str) -> int:
    if not given.isdecimal() or not 1 <= int(given) <= MOST_PARTS:
        raise BlobError("bad_request", f"x-mpu-part-number must be from 1 to {MOST_PARTS}")
    return int(given)


def checked_limit(given: str) -> int:
    if not given.isdecimal() or not 1 <= int(given) <= LONGEST_PAGE:
        raise BlobError("bad_request", f"limit must be from 1 to {LONGEST_PAGE}")
    return int(given)


def listed_parts(listed: Any, received: dict[int, Body]) -> list[Body]:
    """The parts a client names, in any order, put into theirs."""
    try:
        wanted = {int(part["partNumber"]): part["etag"] for part in listed}
    except (TypeError, KeyError, ValueError):
        raise BlobError("bad_request", "parts must be {partNumber, etag} objects") from None
    known = {number: f'"{part.etag}"' for number, part in received.items()}
    wrong = sorted(number for number, etag in wanted.items() if known.get(number) != etag)
    if wrong or not wanted:
        raise BlobError("bad_request", f"One or more parts could not be found: {wrong}")
    return [received[number] for number in sorted(wanted)]


def with_random_suffix(pathname: str) -> str:
    path = PurePosixPath(pathname)
    suffix = "".join(secrets.choice(SUFFIX_LETTERS) for _ in range(30))
    return str(path.with_name(f"{path.stem}-{suffix}{path.suffix}"))


def decoded_cursor(cursor: str | None) -> str:
    try:
        return base64.urlsafe_b64decode(cursor or "").decode()
    except (binascii.Error, UnicodeDecodeError):
        raise BlobError("bad_request", "Invalid cursor") from None


async def read_json(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except ValueError:
        raise BlobError("bad_request", "The body is not JSON") from None
