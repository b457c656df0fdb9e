"""What the sandbox's hosted side promises to the worker's tests: the contract, and the faults."""

from __future__ import annotations

import hashlib
import io
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from sandbox.client import Hosted, NothingHappened
from tests.hosted_fork import ForkedHosted

MIB = 1024 * 1024
FILM = b"not really a film, but bytes all the same"
ALREADY_EXISTS = (
    "This blob already exists, use `allowOverwrite: true` if you want to overwrite it. Or"
    " `addRandomSuffix: true` to generate a unique filename. Read more about this error in our"
    " documentation: https://vercel.link/blob-allow-overwrite"
)
PROGRESS = {
    "stage": "sampling",
    "clip": 0,
    "clips": 1,
    "step": 3,
    "steps": 8,
    "percent": 37.5,
    "etaSec": None,
    "lastProgressAt": "2026-11-23T08:00:00Z",
}


class Caller:
    """A worker's side of the wire, one method a call, each answering the raw response."""

    def __init__(self, hosted: Hosted, worker: str = "worker-1") -> None:
        self.hosted = hosted
        self.worker = worker

    def call(self, method: str, path: str, body: Any = None, **kw: Any) -> requests.Response:
        headers = {"x-videogen-secret": self.hosted.secret}
        url = f"{self.hosted.url}/api/videogen/{path}"
        return requests.request(method, url, json=body, headers=headers, timeout=10, **kw)

    def pending(self) -> Any:
        answer = self.call("GET", "pending", params={"workerId": self.worker})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def claim(self, job: str) -> requests.Response:
        return self.call("PATCH", f"{job}/claim", {"workerId": self.worker})

    def heartbeat(self, **changes: Any) -> requests.Response:
        return self.call(
            "POST", "heartbeat", {"workerId": self.worker, "status": "busy", **changes}
        )

    def complete(self, job: str, **changes: Any) -> requests.Response:
        return self.call("PATCH", f"{job}/complete", {**self.outcome(job), **changes})

    def fail(self, job: str, code: str = "comfyui_failed", retryable: bool = False) -> int:
        error = {"code": code, "message": "It broke.", "retryable": retryable}
        body = {"workerId": self.worker, "error": error}
        return self.call("PATCH", f"{job}/fail", body).status_code

    def outcome(self, job: str) -> dict[str, Any]:
        return {
            "workerId": self.worker,
            "outputUrl": "https://sandbox0store1234.public.blob.vercel-storage.com"
            f"/spatial-story/output/{job}.mp4",
            "durationSec": 5.0,
            "frames": 120,
            "fps": 24,
            "width": 1920,
            "height": 1080,
            "sizeBytes": len(FILM),
            "watermarked": False,
            "renderSec": 1.5,
            "clips": [{"seed": 7, "renderSec": 1.5, "attempts": 1}],
        }


class Store:
    """The Blob API by hand, without any client's manners."""

    def __init__(self, hosted: Hosted) -> None:
        self.hosted = hosted

    def send(self, method: str, path: str = "", **kw: Any) -> requests.Response:
        headers = {
            "authorization": f"Bearer {self.hosted.blob_token}",
            "x-vercel-blob-access": "public",
            **kw.pop("headers", {}),
        }
        url = self.hosted.blob_api_url + path
        return requests.request(method, url, headers=headers, timeout=10, **kw)

    def put(self, pathname: str, body: Any = FILM, **headers: str) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.send("PUT", params={"pathname": pathname}, data=body, headers=named)

    def head(self, url: str) -> requests.Response:
        return self.send("GET", params={"url": url})

    def mpu(self, action: str, body: Any = b"", **headers: str) -> requests.Response:
        named = {f"x-mpu-{name.replace('_', '-')}": value for name, value in headers.items()}
        given = {"x-mpu-action": action, **named}
        return self.send("POST", "/mpu", params={"pathname": "m ü.mp4"}, data=body, headers=given)


@pytest.fixture
def hosted(tmp_path: Path) -> Iterator[Hosted]:
    with ForkedHosted(tmp_path / "hosted") as running:
        yield running


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    """One process for many cases, where none of them can see the others' traces."""
    with ForkedHosted(tmp_path_factory.mktemp("hosted")) as running:
        yield running


@pytest.fixture
def worker(hosted: Hosted) -> Caller:
    return Caller(hosted)


@pytest.fixture
def store(hosted: Hosted) -> Store:
    return Store(hosted)


@pytest.fixture
def job(hosted: Hosted) -> str:
    return hosted.add_job(["https://a/1.png", "https://a/2.png"], ["a walk"], maxAttempts=2)


@pytest.fixture
def claimed(job: str, worker: Caller) -> str:
    assert worker.claim(job).status_code == 200
    return job


@pytest.fixture
def rendered(claimed: str, store: Store) -> str:
    assert store.put(f"spatial-story/output/{claimed}.mp4").status_code == 200
    return claimed


# The queue


def test_a_queued_job_is_offered_with_its_stage_data(worker: Caller, job: str) -> None:
    stage = {
        "frames": ["https://a/1.png", "https://a/2.png"],
        "clipPrompts": ["a walk"],
        "watermark": False,
    }
    assert worker.pending() == {"job": {"id": job, "stageData": stage}}


def test_an_empty_queue_offers_null_and_the_wait_it_was_told(
    hosted: Hosted, worker: Caller
) -> None:
    hosted.set_options(nextPollSec=2)
    assert worker.pending() == {"job": None, "nextPollSec": 2}


def test_a_raw_job_is_offered_as_it_was_given(hosted: Hosted, worker: Caller) -> None:
    hosted.add_stage(None, raw=["not", "a", "job"])
    assert worker.pending() == {"job": ["not", "a", "job"]}


def test_a_claim_by_the_same_worker_is_granted_again(
    hosted: Hosted, worker: Caller, claimed: str
) -> None:
    assert worker.claim(claimed).status_code == 200
    assert hosted.job(claimed)["attempts"] == 1
    assert worker.pending()["job"] is None


def test_another_workers_claim_is_refused(hosted: Hosted, claimed: str) -> None:
    assert Caller(hosted, "worker-2").claim(claimed).status_code == 409
    assert hosted.job(claimed)["worker"] == "worker-1"


def test_a_job_nobody_queued_is_unknown_to_every_call(worker: Caller) -> None:
    assert worker.claim("nothing").status_code == 404
    assert worker.complete("nothing").status_code == 404
    assert worker.fail("nothing") == 404


def test_a_wrong_secret_is_refused_in_json(hosted: Hosted, worker: Caller) -> None:
    hosted.secret = "guessed"
    answer = worker.claim("any")
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "unauthorized"


def test_an_expired_lease_returns_the_job_at_the_next_poll(
    hosted: Hosted, worker: Caller, job: str
) -> None:
    hosted.set_options(leaseSec=0)
    worker.claim(job)
    assert hosted.job(job)["state"] == "claimed"
    assert Caller(hosted, "worker-2").pending()["job"]["id"] == job
    assert worker.complete(job).status_code == 409


def test_a_heartbeat_renews_the_lease_of_its_job(hosted: Hosted, worker: Caller, job: str) -> None:
    hosted.set_options(leaseSec=0)
    worker.claim(job)
    hosted.set_options(leaseSec=60)
    answer = worker.heartbeat(jobId=job, progress=PROGRESS).json()
    assert answer["leaseUntil"] == hosted.job(job)["leaseUntil"]
    assert worker.pending()["job"] is None


def test_the_answered_lease_can_be_overridden(hosted: Hosted, worker: Caller, job: str) -> None:
    hosted.set_options(leaseUntil="soon")
    assert worker.claim(job).json()["leaseUntil"] == "soon"


def test_a_heartbeat_names_a_cancelled_job_until_its_holder_lets_go(
    hosted: Hosted, worker: Caller, claimed: str
) -> None:
    assert hosted.cancel(claimed)
    assert worker.heartbeat(jobId=claimed).json()["cancel"] == [claimed]
    assert Caller(hosted, "worker-2").heartbeat().json()["cancel"] == []
    assert worker.fail(claimed, "cancelled") == 200
    assert worker.heartbeat().json()["cancel"] == []
    assert hosted.job(claimed)["state"] == "cancelled"


def test_a_cancelled_job_can_be_neither_claimed_nor_completed(
    hosted: Hosted, worker: Caller, rendered: str
) -> None:
    hosted.cancel(rendered)
    assert worker.claim(rendered).status_code == 410
    assert worker.complete(rendered).status_code == 410


def test_a_film_is_accepted_once_its_blob_exists(
    hosted: Hosted, worker: Caller, claimed: str, store: Store
) -> None:
    refused = worker.complete(claimed)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "outputUrl")
    store.put(f"spatial-story/output/{claimed}.mp4")
    assert worker.complete(claimed).status_code == 200
    assert hosted.job(claimed)["state"] == "completed"
    assert hosted.blob_path(claimed).read_bytes() == FILM


def test_the_size_a_worker_reports_must_be_the_blobs(worker: Caller, rendered: str) -> None:
    refused = worker.complete(rendered, sizeBytes=1)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "sizeBytes")


def test_the_same_outcome_twice_is_accepted_and_counted(
    hosted: Hosted, worker: Caller, rendered: str
) -> None:
    answers = [worker.complete(rendered).status_code for _ in range(2)]
    assert answers == [200, 200]
    assert hosted.job(rendered)["deliveries"] == 2
    assert [event["data"]["repeated"] for event in hosted.events("complete")] == [False, True]


def test_a_second_and_different_outcome_is_refused(worker: Caller, rendered: str) -> None:
    worker.complete(rendered)
    assert worker.complete(rendered, renderSec=2).status_code == 409
    assert worker.fail(rendered) == 409


def test_a_retryable_failure_goes_back_to_the_queue_while_attempts_remain(
    hosted: Hosted, worker: Caller, claimed: str
) -> None:
    assert worker.fail(claimed, retryable=True) == 200
    assert worker.pending()["job"]["id"] == claimed
    worker.claim(claimed)
    assert worker.fail(claimed, retryable=True) == 200
    assert hosted.job(claimed)["state"] == "failed"
    assert [outcome["attempt"] for outcome in hosted.job(claimed)["outcomes"]] == [1, 2]


def test_a_failure_whose_answer_was_lost_is_not_taken_for_a_second_one(
    hosted: Hosted, worker: Caller, claimed: str
) -> None:
    hosted.fault("PATCH */fail", landThenReset=True)
    with pytest.raises(requests.ConnectionError):
        worker.fail(claimed, retryable=True)
    assert worker.fail(claimed, retryable=True) == 200
    assert [outcome["repeated"] for outcome in hosted.job(claimed)["outcomes"]] == [1]


@pytest.mark.parametrize(
    ("path", "changes", "field"),
    [
        ("register", {"gpu": {"name": "RTX 5090", "vramBytes": 1.5}}, "gpu.vramBytes"),
        ("register", {"gpu": {"name": "RTX 5090"}}, "gpu.vramBytes"),
        ("register", {"version": None}, "version"),
        ("register", {"surprise": 1}, "surprise"),
        ("heartbeat", {"status": "sleeping"}, "status"),
        ("heartbeat", {"progress": {**PROGRESS, "percent": 101}}, "progress.percent"),
        (
            "heartbeat",
            {"progress": {**PROGRESS, "lastProgressAt": "2026-11-23T08:00:00+00:00"}},
            "progress.lastProgressAt",
        ),
        ("{job}/claim", {"workerId": ""}, "workerId"),
        ("{job}/complete", {"frames": True}, "frames"),
        ("{job}/complete", {"clips": []}, "clips"),
        ("{job}/complete", {"clips": [{"seed": 1, "renderSec": 1}]}, "clips[0].attempts"),
        ("{job}/complete", {"outputUrl": "out.mp4"}, "outputUrl"),
        (
            "{job}/fail",
            {"error": {"code": "oops", "message": "m", "retryable": True}},
            "error.code",
        ),
        ("{job}/fail", {"error": {"code": "bad_job", "message": "m"}}, "error.retryable"),
    ],
)
def test_a_body_that_breaks_the_contract_is_refused_by_field(
    standing: Hosted, path: str, changes: dict[str, Any], field: str
) -> None:
    worker, job, before = Caller(standing), standing.add_stage(None), standing.now()
    whole: dict[str, dict[str, Any]] = {
        "register": {"workerId": "w", "hostname": "h", "version": "1", "gpu": None},
        "heartbeat": {"workerId": "w", "status": "idle"},
        "{job}/claim": {"workerId": "w"},
        "{job}/complete": worker.outcome(job),
        "{job}/fail": {"workerId": "w"},
    }
    method = "PATCH" if "{job}" in path else "POST"
    answer = worker.call(method, path.format(job=job), {**whole[path], **changes})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
    assert standing.wait("*.rejected", after=before)["data"]["error"]["field"] == field


def test_a_body_that_is_not_json_is_refused(hosted: Hosted) -> None:
    headers = {"x-videogen-secret": hosted.secret}
    url = f"{hosted.url}/api/videogen/heartbeat"
    answer = requests.post(url, data=b'{"percent": NaN}', headers=headers, timeout=10)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "body")


# The blobs


def test_a_chunked_put_is_stored_under_the_md5_of_its_bytes(hosted: Hosted, store: Store) -> None:
    content = bytes(range(256)) * 8192
    halves = iter([content[:1_000_000], content[1_000_000:]])
    answer = store.put("deep folder/ä+b.mp4", halves)
    etag = f'"{hashlib.md5(content).hexdigest()}"'
    assert answer.json() == {
        "url": "https://sandbox0store1234.public.blob.vercel-storage.com"
        "/deep%20folder/%C3%A4%2Bb.mp4",
        "downloadUrl": "https://sandbox0store1234.public.blob.vercel-storage.com"
        "/deep%20folder/%C3%A4%2Bb.mp4?download=1",
        "pathname": "deep folder/ä+b.mp4",
        "contentType": "video/mp4",
        "contentDisposition": 'inline; filename="ä+b.mp4"',
        "etag": etag,
    }
    assert Path(hosted.blobs()["deep folder/ä+b.mp4"]["file"]).read_bytes() == content


def test_a_head_by_pathname_or_url_tells_size_age_and_etag(store: Store) -> None:
    put = store.put("a.mp4", x_cache_control_max_age="3600").json()
    by_name, by_url = store.head("a.mp4").json(), store.head(put["url"]).json()
    assert by_name == by_url
    assert by_name.items() >= {**put, "size": len(FILM)}.items()
    assert by_name["cacheControl"] == "public, max-age=3600"
    assert by_name["uploadedAt"].endswith("Z")
    assert store.head("b.mp4").json()["error"]["code"] == "not_found"


def test_an_existing_blob_is_replaced_only_on_request(store: Store) -> None:
    store.put("a.mp4")
    refused = store.put("a.mp4", b"other")
    assert refused.status_code == 400
    assert refused.json() == {"error": {"code": "bad_request", "message": ALREADY_EXISTS}}
    assert store.put("a.mp4", b"other", x_allow_overwrite="1").status_code == 200
    assert store.head("a.mp4").json()["size"] == len(b"other")


def test_a_put_if_match_is_refused_when_the_etag_differs(store: Store) -> None:
    etag = store.put("a.mp4").json()["etag"]
    stale = store.put("a.mp4", b"2", x_allow_overwrite="1", x_if_match='"0"')
    assert (stale.status_code, stale.json()["error"]["code"]) == (412, "precondition_failed")
    assert store.put("a.mp4", b"2", x_allow_overwrite="1", x_if_match=etag).status_code == 200


def test_a_random_suffix_keeps_two_puts_apart(store: Store) -> None:
    names = {store.put("x/a.mp4", x_add_random_suffix="1").json()["pathname"] for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("x/a-") and name.endswith(".mp4") for name in names)


def test_the_wrong_access_is_refused_in_the_services_words(hosted: Hosted, store: Store) -> None:
    hosted.set_options(blobAccess="private")
    refused = store.put("a.mp4")
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == (
        "Cannot use public access on a private store. The store is configured with private access."
    )
    private = store.put("a.mp4", x_vercel_blob_access="private").json()
    assert private["url"].startswith("https://sandbox0store1234.private.blob.")


def test_a_wrong_token_is_forbidden(store: Store) -> None:
    refused = store.put("a.mp4", authorization="Bearer vercel_blob_rw_Sandbox0Store1234_no")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")


def test_a_small_json_blob_is_stored_like_any_other(store: Store) -> None:
    answer = store.put("a.json", b'{"a": 1}', Content_Type="application/json")
    assert store.head(answer.json()["url"]).json()["size"] == len(b'{"a": 1}')


def test_a_copy_stands_beside_its_source(hosted: Hosted, store: Store) -> None:
    source = store.put("a.mp4").json()
    params = {"pathname": "b.mp4", "fromUrl": source["url"]}
    assert store.send("PUT", params=params).json()["etag"] == source["etag"]
    assert store.send("POST", "/delete", json={"urls": ["a.mp4"]}).text == "null"
    assert list(hosted.blobs()) == ["b.mp4"]


def test_a_folded_list_goes_page_by_page_through_blobs_and_folders(store: Store) -> None:
    for name in ("f/a/1.mp4", "f/a/2.mp4", "f/b.mp4", "f/c/1.mp4", "g.mp4"):
        store.put(name)
    params, seen = {"prefix": "f/", "mode": "folded", "limit": "1"}, []
    while True:
        page = store.send("GET", params=params).json()
        seen += page["folders"] + [blob["pathname"] for blob in page["blobs"]]
        if not page["hasMore"]:
            break
        params["cursor"] = page["cursor"]
    assert seen == ["f/a/", "f/b.mp4", "f/c/"]


def test_parts_may_arrive_and_be_listed_in_any_order(hosted: Hosted, store: Store) -> None:
    hosted.set_options(minPartBytes=4)
    created = store.mpu("create").json()
    ids = {"key": quote(created["key"], safe=""), "upload_id": created["uploadId"]}
    parts = {3: b"!", 1: b"last", 2: b" one"}
    listed = [
        {
            "partNumber": number,
            "etag": store.mpu("upload", part, part_number=str(number), **ids).json()["etag"],
        }
        for number, part in parts.items()
    ]
    result = store.mpu("complete", json.dumps(listed), **ids).json()
    digests = b"".join(hashlib.md5(parts[number]).digest() for number in (1, 2, 3))
    assert result["etag"] == f'"{hashlib.md5(digests).hexdigest()}-3"'
    assert Path(hosted.blobs()["m ü.mp4"]["file"]).read_bytes() == b"last one!"


def test_only_the_last_part_may_be_small(store: Store) -> None:
    created = store.mpu("create").json()
    ids = {"key": created["key"].replace("ü", "%C3%BC"), "upload_id": created["uploadId"]}
    listed = [
        {
            "partNumber": number,
            "etag": store.mpu("upload", b"tiny", part_number=str(number), **ids).json()["etag"],
        }
        for number in (1, 2)
    ]
    refused = store.mpu("complete", json.dumps(listed), **ids)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_request")
    assert store.mpu("complete", json.dumps(listed[:1]), **ids).status_code == 200


def test_an_upload_can_be_watched_while_it_is_under_way(hosted: Hosted, store: Store) -> None:
    def body() -> Iterator[bytes]:
        yield b"\0" * MIB
        progress = hosted.wait("blob.put.progress", job="film")
        assert progress["data"] == {"pathname": "film.mp4", "bytes": MIB, "partNumber": None}
        yield b"\0" * MIB

    assert store.put("film.mp4", body()).status_code == 200
    assert hosted.wait("blob.put", job="film")["data"]["size"] == 2 * MIB


def test_an_upload_broken_off_leaves_nothing_behind(hosted: Hosted, store: Store) -> None:
    class Broken(Exception):
        pass

    def body() -> Iterator[bytes]:
        yield b"\0" * MIB
        hosted.wait("blob.put.progress")
        raise Broken

    with pytest.raises(Broken):
        store.put("film.mp4", body())
    assert store.put("other.mp4").status_code == 200
    hosted.stop()
    assert len(list((hosted.state / "blobs").iterdir())) == 1


def test_a_stored_film_can_be_viewed_in_ranges(hosted: Hosted, store: Store) -> None:
    store.put("a/b.mp4")
    url, headers = f"{hosted.url}/blob-files/a/b.mp4", {"Range": "bytes=4-9"}
    answer = requests.get(url, headers=headers, timeout=10)
    assert (answer.status_code, answer.content) == (206, FILM[4:10])
    assert answer.headers["Content-Type"] == "video/mp4"


# Frames and faults


@pytest.fixture
def frame(hosted: Hosted) -> str:
    return hosted.put_frame("1.webp", b"picture bytes", "image/webp")


def test_a_frame_is_served_with_the_type_it_was_given(hosted: Hosted, frame: str) -> None:
    answer = requests.get(frame, timeout=10)
    assert (answer.content, answer.headers["Content-Type"]) == (b"picture bytes", "image/webp")
    assert hosted.wait("frame.get")["data"]["name"] == "1.webp"


def test_frames_come_from_a_folder_too(tmp_path: Path) -> None:
    (tmp_path / "still.png").write_bytes(b"png")
    with ForkedHosted(tmp_path / "hosted", frames=tmp_path) as hosted:
        answer = requests.get(f"{hosted.url}/frames/still.png", timeout=10)
        assert (answer.content, answer.headers["Content-Type"]) == (b"png", "image/png")
        assert requests.get(f"{hosted.url}/frames/none.png", timeout=10).status_code == 404


def test_a_fault_strikes_after_so_many_requests_and_so_many_times(
    hosted: Hosted, frame: str
) -> None:
    hosted.fault("GET /frames/*", after=1, times=2, status=503, body={"error": "busy"})
    answers = [requests.get(frame, timeout=10).status_code for _ in range(4)]
    assert answers == [200, 503, 503, 200]


def test_a_canned_answer_brings_its_body_and_headers(hosted: Hosted, frame: str) -> None:
    page = "<html>Bad gateway</html>"
    hosted.fault("GET /frames/*", status=502, body=page, headers={"Retry-After": "7"})
    answer = requests.get(frame, timeout=10)
    assert (answer.status_code, answer.text) == (502, page)
    assert answer.headers["Content-Type"].startswith("text/html")
    assert answer.headers["Retry-After"] == "7"


def test_faults_can_be_lifted(hosted: Hosted, frame: str) -> None:
    hosted.fault("*", times=-1, reset=True)
    with pytest.raises(requests.ConnectionError, match="reset by peer"):
        requests.get(frame, timeout=10)
    hosted.clear_faults()
    assert requests.get(frame, timeout=10).status_code == 200


def test_a_delay_comes_before_the_real_answer(hosted: Hosted, frame: str) -> None:
    hosted.fault("GET /frames/*", delay=0.2)
    answer = requests.get(frame, timeout=10)
    assert answer.content == b"picture bytes"
    assert answer.elapsed.total_seconds() >= 0.2


def test_a_black_hole_takes_the_request_and_never_answers(hosted: Hosted, store: Store) -> None:
    hosted.fault("PUT /api/blob*", blackhole=True)
    with pytest.raises(requests.ReadTimeout):
        requests.put(hosted.blob_api_url, data=io.BytesIO(b"\0" * 8 * MIB), timeout=0.3)
    assert hosted.requests("PUT *")[0]["status"] is None
    assert store.head("film.mp4").status_code == 404


def test_a_server_that_stops_reading_holds_the_upload_up(hosted: Hosted) -> None:
    hosted.fault("PUT /api/blob*", stopReading=True)
    with pytest.raises(requests.ConnectionError, match="timed out"):
        requests.put(hosted.blob_api_url, data=io.BytesIO(b"\0" * 16 * MIB), timeout=0.3)


def test_a_body_may_break_off_drip_or_never_end(hosted: Hosted, frame: str) -> None:
    hosted.fault("GET /frames/*", truncate=7)
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="7 bytes read"):
        requests.get(frame, timeout=10)
    hosted.fault("GET /frames/*", drip={"bytes": 5, "every": 0.05})
    assert requests.get(frame, timeout=10).content == b"picture bytes"
    hosted.fault("GET /frames/*", endless=True)
    with requests.get(frame, timeout=10, stream=True) as answer:
        read = sum(len(answer.raw.read(MIB)) for _ in range(4))
    assert read == 4 * MIB


def test_a_redirect_sends_the_client_elsewhere(hosted: Hosted, frame: str) -> None:
    hosted.fault("GET /frames/*", redirect="http://elsewhere.invalid/")
    answer = requests.get(frame, timeout=10, allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (302, "http://elsewhere.invalid/")


def test_a_fault_nobody_knows_is_refused(hosted: Hosted) -> None:
    with pytest.raises(RuntimeError, match="unknown actions"):
        hosted.fault("*", explode=True)


# The control endpoint


def test_every_request_is_on_record_with_its_body_and_answer(
    hosted: Hosted, worker: Caller
) -> None:
    hosted.fault("POST */heartbeat", status=500)
    worker.heartbeat(jobId=None)
    (record,) = hosted.requests("POST /api/videogen/*")
    assert record["json"] == {"workerId": "worker-1", "status": "busy", "jobId": None}
    assert record["bodySize"] == int(record["headers"]["content-length"])
    assert record["headers"]["x-videogen-secret"] == hosted.secret
    assert record["status"] == 500


def test_a_waiting_poll_is_answered_as_soon_as_the_event_happens(
    hosted: Hosted, worker: Caller, job: str
) -> None:
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(hosted.wait, "claim", job, hosted.now())
        worker.claim(job)
        event = coming.result(10)
    assert (event["kind"], event["data"]["workerId"]) == ("claim", "worker-1")


def test_a_wait_in_vain_tells_what_happened_instead(hosted: Hosted, claimed: str) -> None:
    with pytest.raises(NothingHappened, match=f"claim {claimed}"):
        hosted.wait("complete", job=claimed, timeout=0.05)


def test_the_comfyui_script_is_followed_step_by_step(hosted: Hosted) -> None:
    hosted.script_comfyui(
        {"on": "prompt", "kind": "oom"}, {"on": "boot", "kind": "exit", "code": 3}
    )
    say = hosted.comfyui_control_url
    told = [
        requests.post(say, json={"event": event, "pid": 7}, timeout=10).json()["fault"]
        for event in ("boot", "boot", "executing", "prompt")
    ]
    assert told == [
        {"on": "boot", "kind": "exit", "code": 3},
        None,
        None,
        {"on": "prompt", "kind": "oom"},
    ]
    assert hosted.wait("comfyui.executing")["data"] == {"pid": 7}


def test_an_outage_loses_neither_jobs_nor_blobs_nor_the_order_of_events(
    hosted: Hosted, worker: Caller, rendered: str
) -> None:
    url, before = hosted.url, hosted.now()
    with hosted.outage(), pytest.raises(requests.ConnectionError):
        worker.pending()
    assert hosted.url == url
    assert worker.complete(rendered).status_code == 200
    assert hosted.wait("complete", after=before)["seq"] > before


@pytest.mark.usefixtures("frame")
def test_it_stops_cleanly_while_requests_hang(hosted: Hosted) -> None:
    hosted.fault("GET /frames/*", blackhole=True)
    host, port = hosted.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /frames/1.webp HTTP/1.1\r\nHost: sandbox\r\n\r\n")
        hosted.wait("fault")
        assert hosted.stop() == 0
    assert hosted.log.read_text() == ""
