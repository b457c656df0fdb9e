"""The sandbox's Blob is real enough for Vercel's own clients, in Python and in JavaScript."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vercel.blob import sync as vercel_blob

from sandbox.client import Hosted
from tests.forks import ForkedHosted

NODE_CLIENT = Path(__file__).parent / "node"
HOST = "https://sandbox0store1234.public.blob.vercel-storage.com"
FILM = bytes(range(256)) * 4096
PART_BYTES = 8 * 1024 * 1024


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    with ForkedHosted(tmp_path_factory.mktemp("hosted")) as running:
        yield running


@pytest.fixture(autouse=True)
def official_environment(hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VERCEL_OIDC_TOKEN", "BLOB_STORE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VERCEL_BLOB_API_URL", hosted.blob_api_url)
    monkeypatch.setenv("BLOB_READ_WRITE_TOKEN", hosted.blob_token)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def bytes_of(hosted: Hosted, pathname: str) -> bytes:
    return Path(hosted.blobs()[pathname]["file"]).read_bytes()


# Python


def test_python_puts_bytes(hosted: Hosted) -> None:
    stored = vercel_blob.put_blob(
        "py/film.mp4", FILM, access="public", content_type="video/mp4", allow_overwrite=True
    )
    assert stored.url == f"{HOST}/py/film.mp4"
    assert stored.etag == f'"{md5(FILM)}"'
    assert bytes_of(hosted, "py/film.mp4") == FILM


def test_python_puts_a_stream_and_is_told_that_it_exists(hosted: Hosted) -> None:
    def put() -> None:
        vercel_blob.put_blob(
            "py/stream.mp4", io.BytesIO(FILM), access="public", content_length=len(FILM)
        )

    put()
    assert bytes_of(hosted, "py/stream.mp4") == FILM
    with pytest.raises(vercel_blob.BlobError, match="already exists"):
        put()


def test_python_uploads_in_parts(hosted: Hosted) -> None:
    parts = [b"\1" * PART_BYTES, b"\2" * PART_BYTES, b"\3" * 1000]
    with vercel_blob.multipart_upload_blob("py/long film.mp4", access="public") as upload:
        for part in parts:
            upload.upload_part(part)
    digests = b"".join(hashlib.md5(part).digest() for part in parts)
    assert upload.result.etag == f'"{md5(digests)}-3"'
    assert upload.result.url == f"{HOST}/py/long%20film.mp4"
    assert md5(bytes_of(hosted, "py/long film.mp4")) == md5(b"".join(parts))


def test_python_heads_lists_and_deletes() -> None:
    for name in ("a.mp4", "b.mp4", "sub/c.mp4"):
        vercel_blob.put_blob(f"pages/{name}", FILM, access="public", cache_control_max_age=60)
    seen = vercel_blob.head_blob(f"{HOST}/pages/a.mp4")
    assert (seen.size, seen.content_type) == (len(FILM), "video/mp4")
    assert seen.cache_control == "public, max-age=60"

    listed = [blob.pathname for blob in vercel_blob.query_blobs(prefix="pages/", page_size=1)]
    assert listed == ["pages/a.mp4", "pages/b.mp4", "pages/sub/c.mp4"]
    entries = list(vercel_blob.query_blob_entries(prefix="pages/", page_size=2))
    assert entries[-1] == vercel_blob.BlobPrefix(prefix="pages/sub/")

    vercel_blob.delete_blob([f"{HOST}/pages/a.mp4", "pages/b.mp4"])
    with pytest.raises(vercel_blob.BlobNotFoundError):
        vercel_blob.head_blob("pages/a.mp4")


def test_python_copies_only_what_it_expects_to_copy() -> None:
    source = vercel_blob.put_blob("copies/a.mp4", FILM, access="public")
    copied = vercel_blob.copy_blob(
        source.url, "copies/b.mp4", access="public", allow_overwrite=True, if_match=source.etag
    )
    assert copied.etag == source.etag
    with pytest.raises(vercel_blob.BlobPreconditionFailedError):
        vercel_blob.copy_blob(source.url, "copies/c.mp4", access="public", if_match='"stale"')


def test_python_recognises_a_wrong_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOB_READ_WRITE_TOKEN", "vercel_blob_rw_Sandbox0Store1234_wrong")
    with pytest.raises(vercel_blob.BlobAccessError):
        vercel_blob.head_blob("py/film.mp4")


# JavaScript


def run(*command: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=NODE_CLIENT, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stderr}"
    return done.stdout


def install_node_client() -> None:
    wanted, installed = NODE_CLIENT / "package-lock.json", NODE_CLIENT / "node_modules"
    # `npm ci` empties the folder first, which must not happen under another test process.
    with wanted.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = installed / ".package-lock.json"
        if not done.exists() or done.stat().st_mtime < wanted.stat().st_mtime:
            run("npm", "ci", "--prefix", str(NODE_CLIENT), "--no-audit", "--no-fund")


@pytest.fixture(scope="session")
def node_client() -> Path:
    if shutil.which("node") is None:
        pytest.skip("node is not installed, so the official JavaScript client cannot run")
    install_node_client()
    return NODE_CLIENT / "drive.mjs"


@pytest.fixture(scope="module")
def javascript(hosted: Hosted, node_client: Path) -> dict[str, Any]:
    """What every call of the official client answered, driven once for the tests below."""
    settings = {
        "VERCEL_BLOB_API_URL": hosted.blob_api_url,
        "BLOB_READ_WRITE_TOKEN": hosted.blob_token,
        # A refusal should show at once, not after the client's half hour of patience.
        "VERCEL_BLOB_RETRIES": "0",
    }
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    answers: dict[str, Any] = json.loads(run("node", str(node_client), env={**kept, **settings}))
    return answers


def test_javascript_puts_a_buffer(javascript: dict[str, Any]) -> None:
    assert javascript["put"] == {
        "url": f"{HOST}/js/film.mp4",
        "downloadUrl": f"{HOST}/js/film.mp4?download=1",
        "pathname": "js/film.mp4",
        "contentType": "video/mp4",
        "contentDisposition": 'inline; filename="film.mp4"',
        "etag": f'"{javascript["putMd5"]}"',
    }


def test_javascript_recognises_a_blob_that_exists_or_changed(javascript: dict[str, Any]) -> None:
    assert "already exists" in javascript["exists"]
    assert javascript["overwritten"]["etag"] == javascript["put"]["etag"]
    assert javascript["staleIsPrecondition"]


def test_javascript_puts_a_stream(javascript: dict[str, Any], hosted: Hosted) -> None:
    assert javascript["streamed"]["pathname"] == "js/streamed.mp4"
    (request,) = [
        one
        for one in hosted.requests("PUT /api/blob/")
        if one["query"]["pathname"] == "js/streamed.mp4"
    ]
    assert request["headers"]["transfer-encoding"] == "chunked"
    assert request["bodySize"] == 2000


def test_javascript_adds_a_suffix_and_copies(javascript: dict[str, Any]) -> None:
    assert javascript["suffixed"]["pathname"].startswith("js/suffixed-")
    assert javascript["copied"]["url"] == f"{HOST}/js/copied.mp4"


def test_javascript_uploads_in_parts(javascript: dict[str, Any], hosted: Hosted) -> None:
    assert javascript["multipart"]["url"] == f"{HOST}/js/long%20film.mp4"
    assert javascript["multipart"]["etag"] == f'"{javascript["partsMd5"]}-3"'
    content = bytes_of(hosted, "js/long film.mp4")
    assert md5(content) == md5(b"\1" * PART_BYTES + b"\2" * PART_BYTES + b"\3" * 1234)


def test_javascript_heads(javascript: dict[str, Any]) -> None:
    assert javascript["head"]["size"] == 1000
    assert javascript["head"]["cacheControl"] == "public, max-age=3600"
    assert javascript["headByUrl"]["size"] == 2 * PART_BYTES + 1234


def test_javascript_lists_page_by_page(javascript: dict[str, Any]) -> None:
    first, rest = javascript["list"], javascript["listRest"]
    assert (first["hasMore"], rest["hasMore"]) == (True, False)
    names = [blob["pathname"] for blob in first["blobs"] + rest["blobs"]]
    fixed = ["js/copied.mp4", "js/film.mp4", "js/long film.mp4", "js/streamed.mp4"]
    assert names == [*fixed, javascript["suffixed"]["pathname"]]
    assert "js/" in javascript["folded"]["folders"]


def test_javascript_deletes(javascript: dict[str, Any], hosted: Hosted) -> None:
    assert javascript["goneIsNotFound"]
    assert not {"js/film.mp4", "js/streamed.mp4"} & hosted.blobs().keys()
