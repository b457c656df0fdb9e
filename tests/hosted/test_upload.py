"""Line 8 of the mission: how a finished film gets to Vercel Blob, whatever happens on the way."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from sandbox.client import Hosted
from tests.conftest import Box
from tests.forks import ForkedHosted
from tests.hosted.films import PUT, spool_film

STORE = "Sandbox0Store1234"
HOST = f"https://{STORE.lower()}.public.blob.vercel-storage.com"
PART_BYTES = 8 * 2**20
LONG_FILM_BYTES = 101 * 10**6
HTML = "<html><h1>Something went wrong at the edge</h1></html>"

Request = dict[str, Any]


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    with ForkedHosted(tmp_path_factory.mktemp("hosted")) as running:
        yield running


@pytest.fixture(autouse=True)
def calm(hosted: Hosted) -> Iterator[None]:
    """Every test starts without the faults of the one before."""
    yield
    hosted.clear_faults()
    hosted.set_options(blobAccess="public")


class Upload:
    """A worker that finds a finished film in its spool: nothing is left but to deliver it."""

    def __init__(self, box: Box, finished: Path, name: str) -> None:
        self.box, self.hosted, self.name = box, box.hosted, name
        self.pathname = f"spatial-story/output/{name}.mp4"
        self.film = box.state / "jobs" / name / "output.mp4"
        self.before = self.hosted.now()
        self.seen = last_request(self.hosted)
        spool_film(box, finished, name)

    def run(self, **settings: str) -> dict[str, Any]:
        """The job as the queue knows it when the worker is done with it."""
        worker = self.box.start("run", **settings)
        self.hosted.wait(
            "*",
            self.name,
            after=self.before,
            timeout=60,
            where=lambda one: one["kind"] in ("complete", "fail"),
        )
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.log
        return self.hosted.job(self.name)

    def asked(self, match: str = "* /api/blob*") -> list[Request]:
        """What the store was asked while this film was delivered."""
        return self.hosted.requests(match, after=self.seen)

    def put_before(self, content: bytes) -> None:
        """The store has something at this film's place already."""
        headers = {"authorization": f"Bearer {self.hosted.blob_token}"}
        headers["x-vercel-blob-access"] = "public"
        place = {"pathname": self.pathname}
        url = self.hosted.blob_api_url
        requests.put(url, content, params=place, headers=headers, timeout=10).raise_for_status()
        self.seen = last_request(self.hosted)

    @property
    def stored(self) -> dict[str, Any]:
        return self.hosted.blobs()[self.pathname]

    def stored_bytes(self) -> bytes:
        return Path(self.stored["file"]).read_bytes()


def last_request(hosted: Hosted) -> int:
    return max((int(one["seq"]) for one in hosted.requests()), default=0)


@pytest.fixture
def upload(box: Box, finished_job: Path, request: pytest.FixtureRequest) -> Upload:
    return Upload(box, finished_job, re.sub(r"[^A-Za-z0-9_-]+", "-", request.node.name).strip("-"))


def methods(asked: list[Request]) -> list[str]:
    return [one["method"] for one in asked]


def refusal(code: str, message: str = "No.") -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


# What is sent


def test_the_put_is_what_vercels_own_client_sends(upload: Upload) -> None:
    film = upload.film.read_bytes()
    job = upload.run()
    (put,) = upload.asked(PUT)
    assert put["query"] == {"pathname": upload.pathname}
    headers = put["headers"]
    assert re.fullmatch(rf"{STORE}:[0-9]{{13}}:[0-9a-f]{{12}}", headers["x-api-blob-request-id"])
    every_client_sends = {"host", "user-agent", "accept", "accept-encoding", "connection"}
    told = {name: headers[name] for name in headers if name not in every_client_sends}
    assert told == {
        "authorization": f"Bearer {upload.hosted.blob_token}",
        "x-api-version": "12",
        "x-vercel-blob-store-id": STORE,
        "x-api-blob-request-id": headers["x-api-blob-request-id"],
        "x-api-blob-request-attempt": "0",
        "x-vercel-blob-access": "public",
        "x-content-type": "video/mp4",
        "x-allow-overwrite": "1",
        "x-add-random-suffix": "0",
        "x-cache-control-max-age": "2592000",
        "content-length": str(len(film)),
    }
    assert upload.stored_bytes() == film
    assert upload.stored["contentType"] == "video/mp4"
    assert job["outcome"]["outputUrl"] == f"{HOST}/{upload.pathname}"


def test_a_private_store_is_told_so(upload: Upload) -> None:
    upload.hosted.set_options(blobAccess="private")
    job = upload.run(BLOB_ACCESS="private")
    assert upload.asked(PUT)[0]["headers"]["x-vercel-blob-access"] == "private"
    assert job["outcome"]["outputUrl"] == f"{HOST}/{upload.pathname}".replace("public", "private")


def test_a_netrc_does_not_replace_the_token(upload: Upload, tmp_path: Path) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login thief password guess\ndefault login a password b\n")
    netrc.chmod(0o600)
    assert upload.run(HOME=str(tmp_path))["state"] == "completed"
    token = f"Bearer {upload.hosted.blob_token}"
    assert {one["headers"]["authorization"] for one in upload.asked()} == {token}
    queue = upload.asked("* /api/videogen/*")
    assert queue
    assert not any("authorization" in one["headers"] for one in queue)


def test_the_token_is_in_no_other_place_than_authorization(upload: Upload) -> None:
    upload.run()
    secret = upload.hosted.blob_token.rpartition("_")[2]
    for one in upload.asked("*"):
        if one["path"].startswith("/api/blob"):
            del one["headers"]["authorization"]
        assert secret not in json.dumps(one), one["path"]


@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_is_not_followed(upload: Upload, status: int) -> None:
    for match in ("GET /api/blob*", PUT):
        away = f"{upload.hosted.url}/elsewhere"
        upload.hosted.fault(match, redirect=away, status=status)
    assert upload.run()["state"] == "completed"
    assert methods(upload.asked()) == ["GET", "GET", "PUT", "GET", "PUT"]
    assert upload.asked("* /elsewhere*") == []


def test_a_film_above_100_mb_goes_in_parts_and_is_completed_once(upload: Upload) -> None:
    lengthen(upload.film, LONG_FILM_BYTES)
    digest = sha256(upload.film)
    sizes = [PART_BYTES] * (LONG_FILM_BYTES // PART_BYTES) + [LONG_FILM_BYTES % PART_BYTES]
    # The answer to `complete` is lost, and the film is there all the same.
    upload.hosted.fault("POST /api/blob/mpu", after=1 + len(sizes), landThenReset=True)
    job = upload.run()
    assert (job["state"], job["outcome"]["sizeBytes"]) == ("completed", LONG_FILM_BYTES)
    assert sha256(Path(upload.stored["file"])) == digest
    Path(upload.stored["file"]).unlink()
    assert methods(upload.asked()) == ["GET", *["POST"] * (2 + len(sizes)), "GET"]
    create, *parts, complete = upload.asked("POST /api/blob/mpu")
    check_steps(create, parts, complete)
    assert [part["bodySize"] for part in parts] == sizes
    assert [int(part["headers"]["content-length"]) for part in parts] == sizes


def lengthen(film: Path, size: int) -> None:
    """Still the same film, followed by a box of nothing that takes no room on this disk."""
    with film.open("r+b") as file:
        file.seek(0, 2)
        file.write(struct.pack(">I4s", size - file.tell(), b"free"))
        file.truncate(size)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_steps(create: Request, parts: list[Request], complete: Request) -> None:
    steps = [create, *parts, complete]
    actions = [one["headers"]["x-mpu-action"] for one in steps]
    assert actions == ["create", *["upload"] * len(parts), "complete"]
    for one in steps:
        assert one["query"] == create["query"]
        names = ("x-vercel-blob-access", "x-content-type", "x-allow-overwrite", "x-api-version")
        told = [one["headers"][name] for name in names]
        assert told == ["public", "video/mp4", "1", "12"]
        assert "transfer-encoding" not in one["headers"]
    keys = {one["headers"]["x-mpu-key"] for one in steps[1:]}
    assert keys == {f"{STORE.lower()}/{create['query']['pathname']}".replace("/", "%2F")}
    numbers = [int(one["headers"]["x-mpu-part-number"]) for one in parts]
    assert numbers == list(range(1, len(parts) + 1))
    assert [one["partNumber"] for one in complete["json"]] == numbers
    assert all(re.fullmatch('"[0-9a-f]{32}"', one["etag"]) for one in complete["json"])


# What is there already


@pytest.mark.parametrize("same_size", [False, True], ids=["shorter", "as-long"])
def test_another_film_in_its_place_is_overwritten(upload: Upload, same_size: bool) -> None:
    film = upload.film.read_bytes()
    upload.put_before(film[::-1] if same_size else b"an older film")
    assert upload.run()["state"] == "completed"
    assert methods(upload.asked()) == ["GET", "PUT"]
    assert upload.stored_bytes() == film


def test_a_film_that_is_there_already_is_not_sent_again(upload: Upload) -> None:
    upload.put_before(upload.film.read_bytes())
    job = upload.run()
    assert methods(upload.asked()) == ["GET"]
    assert job["outcome"]["outputUrl"] == f"{HOST}/{upload.pathname}"


# What goes wrong for a while

# Each trouble of the first PUT, and the number of PUTs: one that landed is not repeated.
TROUBLES: dict[str, tuple[dict[str, Any], int]] = {
    "landed-but-reset": ({"landThenReset": True}, 1),
    "landed-but-cut-answer": ({"truncate": 20}, 1),
    "reset": ({"reset": True}, 2),
    "page-502": ({"status": 502, "body": HTML}, 2),
    "page-403": ({"status": 403, "body": HTML}, 2),
    "page-200": ({"status": 200, "body": HTML}, 2),
    "internal-error": ({"status": 500, "body": refusal("internal_server_error")}, 2),
    "code-before-status": ({"status": 400, "body": refusal("service_unavailable")}, 2),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_passing_trouble_is_looked_into_and_tried_again(upload: Upload, trouble: str) -> None:
    action, puts = TROUBLES[trouble]
    film = upload.film.read_bytes()
    upload.hosted.fault(PUT, **action)
    assert upload.run()["state"] == "completed"
    # Each PUT comes after a look, and the last look is enough when the film is found.
    assert methods(upload.asked()) == ["GET", "PUT", "GET", *["PUT"] * (puts - 1)]
    assert upload.stored_bytes() == film


@pytest.mark.parametrize(("status", "code"), [(503, "service_unavailable"), (429, "rate_limited")])
def test_retry_after_is_honoured(upload: Upload, status: int, code: str) -> None:
    asked = {"Retry-After": "2"}
    upload.hosted.fault(PUT, status=status, body=refusal(code), headers=asked)
    assert upload.run()["state"] == "completed"
    _, refused, *later = upload.asked()
    assert methods(later) == ["GET", "PUT"]
    assert later[0]["t"] - refused["t"] >= 2


def test_all_tries_share_one_request_id_and_count_up(upload: Upload) -> None:
    upload.hosted.fault(PUT, times=2, reset=True)
    assert upload.run()["state"] == "completed"
    told = [one["headers"] for one in upload.asked()]
    assert len({one["x-api-blob-request-id"] for one in told}) == 1
    attempts = [one["x-api-blob-request-attempt"] for one in told]
    assert attempts == ["0", "0", "1", "1", "2", "2"]


# What goes wrong for good


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (400, "bad_request", "The pathname is too long."),
        (403, "file_too_large", "The file length cannot be greater than 1 MB."),
        (412, "precondition_failed", "The object was changed."),
    ],
    ids=lambda value: str(value).replace(" ", "-")[:16],
)
def test_a_refusal_of_this_film_fails_the_job_at_once_and_says_why(
    upload: Upload, status: int, code: str, sentence: str
) -> None:
    upload.hosted.fault(PUT, times=-1, status=status, body=refusal(code, sentence))
    check_refused(upload, sentence)
    assert methods(upload.asked()) == ["GET", "PUT"]


def check_refused(upload: Upload, *sentences: str, **settings: str) -> None:
    job = upload.run(**settings)
    assert job["state"] == "failed"
    error = job["outcome"]["error"]
    assert error["code"] == "upload_failed"
    assert all(sentence in error["message"] for sentence in sentences), error
