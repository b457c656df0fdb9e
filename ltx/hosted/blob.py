"""Vercel Blob, where films go."""

from __future__ import annotations

import functools
import logging
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from ltx.cancellation import Halt
from ltx.errors import Unavailable, Verdict
from ltx.files import file_md5
from ltx.hosted.http import CONNECT_S, NOT_JSON, HeaderAuth, Http, Reply, backoff
from ltx.settings import Settings
from ltx.text import as_dict, one_line, say

BLOB_API_VERSION = "12"
BLOB_TRIES = 4
BLOB_CACHE_S = 2_592_000
BLOB_CALL_S = 60.0
# An upload may take a minute, and longer the bigger it is: 1 Mbit/s is the slowest worth it.
UPLOAD_GRACE_S, SLOWEST_UPLOAD = 60.0, 125_000
MULTIPART_ABOVE = 100 * 10**6
PART_BYTES = 8 * 2**20


def upload_seconds(size: int) -> float:
    return UPLOAD_GRACE_S + size / SLOWEST_UPLOAD


class Slice:
    """Part of a file as a request body: read in blocks, never whole, and ended by a halt.

    A bytes body would have to be sent within the connect timeout; a file is timed per block.
    """

    def __init__(
        self, file: IO[bytes], start: int, size: int, check: Callable[[int], None]
    ) -> None:
        self.file, self.size, self.left, self.check = file, size, size, check
        file.seek(start)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(65536), b"")

    def read(self, size: int = -1) -> bytes:
        self.check(self.size - self.left)
        block = self.file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(block)
        return block


# What the operator can do about a refusal of Vercel Blob, by its error code.
BLOB_FIXES = {
    "forbidden": "check BLOB_READ_WRITE_TOKEN",
    "store_suspended": "the store is over its quota; see the Vercel dashboard",
    "store_not_found": "BLOB_READ_WRITE_TOKEN belongs to no store; copy it again",
    "access": "set BLOB_ACCESS to what the store was made with",
}
BLOB_TRANSIENT = ("service_unavailable", "internal_server_error", "rate_limited", "unknown_error")


def read_blob_error(reply: Reply) -> Unavailable | Verdict:
    """Decides on Vercel's error code, not on the status: transient, or a final refusal."""
    error = as_dict(as_dict(reply.json_or(None)).get("error"))
    code, message = str(error.get("code") or "unknown_error"), one_line(error.get("message", ""))
    if code in BLOB_TRANSIENT:
        told = f"status {reply.status} {code} {message}"
        return Unavailable(told.strip(), reply.retry_after())
    hint = BLOB_FIXES.get("access" if " access on a " in message else code, "")
    return Verdict(reply.status, f"{code}: {message}{f' ({hint})' if hint else ''}")


EMPTY: Mapping[str, str] = {}


class Blob:
    """Vercel Blob, as its own clients speak to it (API version 12)."""

    def __init__(self, settings: Settings, halt: Halt) -> None:
        self.settings, self.halt = settings, halt
        self.store = settings.blob_token.split("_")[3]
        self.http = Http(HeaderAuth("authorization", f"Bearer {settings.blob_token}"))

    def put(self, path: Path, pathname: str, on_sent: Callable[[int, int], None]) -> str:
        """Uploads a file and returns its URL.

        Four tries over some seconds. Each begins with a look at what is there, because a try
        that seemed to fail may have landed. Raises Unavailable when no try got through, Verdict
        for a refusal, JobError when halted.
        """
        request_id = f"{self.store}:{time.time_ns() // 10**6}:{uuid.uuid4().hex[:12]}"
        for tries in range(1, BLOB_TRIES + 1):
            identity = {
                "x-api-blob-request-id": request_id,
                "x-api-blob-request-attempt": str(tries - 1),
            }
            try:
                return self._find(path, pathname, identity) or self._send(
                    path, pathname, identity, on_sent
                )
            except Unavailable as error:
                if tries == BLOB_TRIES:
                    raise
                pause = backoff(tries, asked=error.retry_after)
                say("upload_retry", str(error), logging.WARNING, tries=tries, pause=round(pause, 1))
                self.halt.wait(pause)
        raise AssertionError("the last try returns or raises")

    def holds(self, pathname: str, headers: Mapping[str, str] = EMPTY) -> dict[str, Any]:
        """What the store has under this name; empty when it has nothing. Raises as put does."""
        try:
            return self._call("GET", "", {"url": pathname}, headers)
        except Verdict as verdict:
            if verdict.status == 404:
                return {}
            raise

    def probe(self) -> None:
        """Puts a small object of its own, looks at it and deletes it, once. Raises as put does."""
        pathname = f"spatial-story/doctor/{uuid.uuid4().hex}.mp4"
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"put by ltx_worker.py doctor")
            file.flush()
            self._send(Path(file.name), pathname, EMPTY, lambda _sent, _size: None)
            found = self._find(Path(file.name), pathname, EMPTY)
        self._call("POST", "/delete", {}, EMPTY, json={"urls": [pathname]})
        if not found:
            raise Unavailable("an object that was just put is not there")
        if self.holds(pathname):
            raise Unavailable("an object that was just deleted is still there")

    def _find(self, path: Path, pathname: str, headers: Mapping[str, str]) -> str | None:
        """The URL of a blob that is already this very file."""
        found = self.holds(pathname, headers)
        etag = str(found.get("etag", "")).strip('"')
        same_size = found.get("size") == path.stat().st_size
        # Only a single PUT has the MD5 as its etag; for multipart the size has to do.
        same = etag == file_md5(path) if re.fullmatch(r"[0-9a-f]{32}", etag) else True
        return str(found["url"]) if same_size and same and found.get("url") else None

    def _send(
        self,
        path: Path,
        pathname: str,
        identity: Mapping[str, str],
        on_sent: Callable[[int, int], None],
    ) -> str:
        size = path.stat().st_size
        headers = {
            **identity,
            "x-vercel-blob-access": self.settings.blob_access,
            "x-content-type": "video/mp4",
            "x-allow-overwrite": "1",
            "x-add-random-suffix": "0",
            "x-cache-control-max-age": str(BLOB_CACHE_S),
        }
        with path.open("rb") as file:
            if size > MULTIPART_ABOVE:
                answer = self._send_parts(file, size, pathname, headers, on_sent)
            else:
                answer = self._call(
                    "PUT", "", {"pathname": pathname}, headers,
                    data=self._slice(file, 0, size, lambda sent: on_sent(sent, size)),
                )  # fmt: skip
        if not isinstance(answer.get("url"), str):
            raise Unavailable("the answer to the upload has no url")
        return str(answer["url"])

    def _send_parts(
        self, file: IO[bytes], size: int, pathname: str, headers: Mapping[str, str],
        on_sent: Callable[[int, int], None],
    ) -> dict[str, Any]:  # fmt: skip
        """Create, upload each part of 8 MiB, complete."""
        query = {"pathname": pathname}
        created = self._call("POST", "/mpu", query, {**headers, "x-mpu-action": "create"})
        step = {
            **headers,
            "x-mpu-key": quote(str(created.get("key")), safe="~()*!.'-"),
            "x-mpu-upload-id": str(created.get("uploadId")),
        }
        parts = []

        def on_part(start: int, sent: int) -> None:
            on_sent(start + sent, size)

        for number, start in enumerate(range(0, size, PART_BYTES), start=1):
            length = min(PART_BYTES, size - start)
            body = self._slice(file, start, length, functools.partial(on_part, start))
            upload = {**step, "x-mpu-action": "upload", "x-mpu-part-number": str(number)}
            answer = self._call("POST", "/mpu", query, upload, data=body)
            parts.append({"partNumber": number, "etag": str(answer.get("etag"))})
        return self._call("POST", "/mpu", query, {**step, "x-mpu-action": "complete"}, json=parts)

    def _slice(
        self, file: IO[bytes], start: int, size: int, on_sent: Callable[[int], None]
    ) -> Slice:
        deadline = time.monotonic() + upload_seconds(size)

        def check(sent: int) -> None:
            self.halt.check()
            if time.monotonic() > deadline:
                raise TimeoutError("the upload is too slow")
            on_sent(sent)

        return Slice(file, start, size, check)

    def _call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        **body: Any,
    ) -> dict[str, Any]:
        url = f"{self.settings.blob_api_url}{path}"
        fixed = {"x-api-version": BLOB_API_VERSION, "x-vercel-blob-store-id": self.store}
        work = functools.partial(self.http.exchange, method, url, params=params, **body)
        headers = {**fixed, **headers}
        longest = CONNECT_S + BLOB_CALL_S + upload_seconds(len(body.get("data", b"")))
        reply = self.halt.call(lambda: work(headers=headers, seconds=BLOB_CALL_S), longest)
        if not reply.ok:
            raise read_blob_error(reply)
        answer = reply.json_or(NOT_JSON)
        # A delete is answered with null.
        if answer is not None and not isinstance(answer, dict):
            raise Unavailable("the answer is no JSON object")
        return answer or {}
