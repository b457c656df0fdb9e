"""Vercel Blob, where films go."""

from __future__ import annotations

import functools
import logging
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from ltx.cancellation import Cancellation
from ltx.errors import Refusal, StoreClosed, Unavailable
from ltx.files import file_md5
from ltx.hosted.env_secret import EnvSecret
from ltx.hosted.http import NOT_JSON, Http, Reply
from ltx.hosted.retry import Retry
from ltx.settings import Settings
from ltx.text import as_dict, log_event, one_line

BLOB_API_VERSION = "12"
UPLOAD_RETRY = Retry(tries=4)
BLOB_CACHE_S = 2_592_000
BLOB_CALL_S = 60.0
# An upload may take a minute, and longer the bigger it is: 1 Mbit/s is the slowest worth it.
UPLOAD_GRACE_S, SLOWEST_UPLOAD = 60.0, 125_000
MULTIPART_ABOVE = 100 * 10**6
PART_BYTES = 8 * 2**20
EMPTY: Mapping[str, str] = {}


class FileSlice:
    """Part of a file as a request body: read in blocks, never whole; `sent` bytes so far.

    A bytes body would have to be sent within the connect timeout; a file is timed per block.
    """

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self.file, self.start, self.size, self.sent = file, start, size, 0
        file.seek(start)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(65536), b"")

    def read(self, size: int = -1) -> bytes:
        left = self.size - self.sent
        block = self.file.read(left if size < 0 else min(size, left))
        self.sent += len(block)
        return block


@dataclass(frozen=True)
class Upload:
    """A file, its name in the store, and what tells this upload from others in its logs."""

    path: Path
    pathname: str
    on_sent: Callable[[int, int], None] = lambda _sent, _size: None
    identity: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def size(self) -> int:
        return self.path.stat().st_size


# What the operator can do about a refusal of Vercel Blob, by its error code.
BLOB_FIXES = {
    "forbidden": "check BLOB_READ_WRITE_TOKEN",
    "store_suspended": "the store is over its quota; see the Vercel dashboard",
    "store_not_found": "BLOB_READ_WRITE_TOKEN belongs to no store; copy it again",
    "access": "set BLOB_ACCESS to what the store was made with",
}
BLOB_TRANSIENT = ("service_unavailable", "internal_server_error", "rate_limited", "unknown_error")
# What is wrong with one object; every other code is about the account or its store.
BLOB_OBJECT = (
    "bad_request",
    "not_found",
    "blob_not_found",
    "precondition_failed",
    "file_too_large",
    "content_type_not_allowed",
)


def read_blob_error(reply: Reply) -> Unavailable | Refusal:
    """Decides on Vercel's error code, not on the status.

    Unavailable for what passes, StoreClosed for what concerns the account, Refusal for what
    concerns this one object.
    """
    error = as_dict(as_dict(reply.json_or(None)).get("error"))
    code, message = str(error.get("code") or "unknown_error"), one_line(error.get("message", ""))
    if code in BLOB_TRANSIENT:
        message = f"status {reply.status} {code} {message}"
        return Unavailable(message.strip(), reply.retry_after())
    is_access = " access on a " in message
    hint = BLOB_FIXES.get("access" if is_access else code, "")
    message = f"{code}: {message}{f' ({hint})' if hint else ''}"
    if code in BLOB_OBJECT and not is_access:
        return Refusal(reply.status, message)
    return StoreClosed(f"the store refuses us: {reply.status} {message}", reply.retry_after())


class Blob:
    """Vercel Blob, as its own clients speak to it (API version 12)."""

    def __init__(self, settings: Settings, cancellation: Cancellation) -> None:
        self.settings, self.cancellation = settings, cancellation
        self.token = EnvSecret(
            "BLOB_READ_WRITE_TOKEN", settings.blob_token, "authorization", "Bearer "
        )
        self.http = Http(self.token, wait=cancellation.wait)

    @property
    def store(self) -> str:
        return self.token.secret.split("_")[3]

    def put(self, path: Path, pathname: str, on_sent: Callable[[int, int], None]) -> str:
        """Uploads a file and returns its URL.

        Four tries over some seconds. Each begins with a look at what is there, because a try
        that seemed to fail may have landed. Raises Unavailable when no try got through, StoreClosed
        at once, Refusal when this object is refused, JobError when cancelled.
        """
        request_id = f"{self.store}:{time.time_ns() // 10**6}:{uuid.uuid4().hex[:12]}"

        def attempt(tries: int) -> str:
            number = {"x-api-blob-request-attempt": str(tries - 1)}
            identity = {"x-api-blob-request-id": request_id, **number}
            upload = Upload(path, pathname, on_sent, identity)
            return self._find(upload) or self._send(upload)

        return UPLOAD_RETRY.run(attempt, self.cancellation.wait, log_retry)

    def holds(self, pathname: str, headers: Mapping[str, str] = EMPTY) -> dict[str, Any]:
        """What the store has under this name; empty when it has nothing. Raises as put does."""
        try:
            return self._call("GET", "", {"url": pathname}, headers)
        except Refusal as refusal:
            if refusal.status == 404:
                return {}
            raise

    def probe(self) -> None:
        """Puts a small object of its own, looks at it and deletes it, once. Raises as put does."""
        pathname = f"spatial-story/doctor/{uuid.uuid4().hex}.mp4"
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"put by ltx_worker.py doctor")
            file.flush()
            upload = Upload(Path(file.name), pathname)
            self._send(upload)
            found = self._find(upload)
        self._call("POST", "/delete", {}, EMPTY, json={"urls": [pathname]})
        if not found:
            raise Unavailable("an object that was just put is not there")
        if self.holds(pathname):
            raise Unavailable("an object that was just deleted is still there")

    def _find(self, upload: Upload) -> str | None:
        """The URL of a blob that is already this very file."""
        found = self.holds(upload.pathname, upload.identity)
        etag = str(found.get("etag", "")).strip('"')
        # Only a single PUT has the MD5 as its etag; for multipart the size has to do.
        has_md5 = re.fullmatch(r"[0-9a-f]{32}", etag) is not None
        same = found.get("size") == upload.size and (not has_md5 or etag == file_md5(upload.path))
        return str(found["url"]) if same and found.get("url") else None

    def _send(self, upload: Upload) -> str:
        headers = {
            **upload.identity,
            "x-vercel-blob-access": self.settings.blob_access,
            "x-content-type": "video/mp4",
            "x-allow-overwrite": "1",
            "x-add-random-suffix": "0",
            "x-cache-control-max-age": str(BLOB_CACHE_S),
        }
        query = {"pathname": upload.pathname}
        with upload.path.open("rb") as file:
            if upload.size > MULTIPART_ABOVE:
                answer = self._send_parts(file, upload, query, headers)
            else:
                answer = self._send_slice(
                    "PUT", "", query, headers, FileSlice(file, 0, upload.size), upload
                )
        if not isinstance(answer.get("url"), str):
            raise Unavailable("the answer to the upload has no url")
        return str(answer["url"])

    def _send_parts(
        self, file: IO[bytes], upload: Upload, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> dict[str, Any]:
        """Create, upload each part of 8 MiB, complete."""
        created = self._call("POST", "/mpu", query, {**headers, "x-mpu-action": "create"})
        step = {
            **headers,
            "x-mpu-key": quote(str(created.get("key")), safe="~()*!.'-"),
            "x-mpu-upload-id": str(created.get("uploadId")),
        }
        parts = []
        for number, start in enumerate(range(0, upload.size, PART_BYTES), start=1):
            body = FileSlice(file, start, min(PART_BYTES, upload.size - start))
            part = {**step, "x-mpu-action": "upload", "x-mpu-part-number": str(number)}
            answer = self._send_slice("POST", "/mpu", query, part, body, upload)
            parts.append({"partNumber": number, "etag": str(answer.get("etag"))})
        return self._call("POST", "/mpu", query, {**step, "x-mpu-action": "complete"}, json=parts)

    def _send_slice(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str],
        body: FileSlice, upload: Upload,
    ) -> dict[str, Any]:  # fmt: skip
        seconds = BLOB_CALL_S + UPLOAD_GRACE_S + body.size / SLOWEST_UPLOAD

        def tell() -> None:
            upload.on_sent(body.start + body.sent, upload.size)

        return self._call(method, path, query, headers, seconds, data=body, meanwhile=tell)

    def _call(
        self, method: str, path: str, params: Mapping[str, str], headers: Mapping[str, str],
        seconds: float = BLOB_CALL_S, **body: Any,
    ) -> dict[str, Any]:  # fmt: skip
        url, sent = f"{self.settings.blob_api_url}{path}", self.token.secret
        fixed = {"x-api-version": BLOB_API_VERSION, "x-vercel-blob-store-id": self.store}
        headers = {**fixed, **headers}
        reply = self.http.exchange(
            method, url, params=params, headers=headers, seconds=seconds, **body
        )
        if not reply.ok:
            error = read_blob_error(reply)
            if isinstance(error, StoreClosed) and self.token.renew(sent):
                raise Unavailable("the store refused the token before this one")
            raise error
        answer = reply.json_or(NOT_JSON)
        # A delete is answered with null.
        if answer is not None and not isinstance(answer, dict):
            raise Unavailable("the answer is no JSON object")
        return answer or {}


def log_retry(error: Unavailable, tries: int, pause: float) -> None:
    if not error.lasting:
        log_event("upload_retry", str(error), logging.WARNING, tries=tries, pause=round(pause, 1))
