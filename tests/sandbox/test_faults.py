"""What the sandbox does on request: frames, faults on the wire, and a record of everything."""

from __future__ import annotations

import io
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from sandbox.client import Hosted, NothingHappened
from sandbox.edges import EDGES
from tests.forks import ForkedHosted
from tests.sandbox.callers import Caller, Store

MIB = 1024 * 1024


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


@pytest.mark.parametrize("edge", EDGES)
def test_an_edge_is_played_by_name(hosted: Hosted, worker: Caller, edge: str) -> None:
    hosted.fault("GET */pending", edge=edge)
    asked = {"workerId": worker.worker}
    answer = worker.call("GET", "pending", params=asked, allow_redirects=False)
    played = EDGES[edge]
    assert answer.status_code == played.get("status", 302)
    assert "{path}" not in answer.text + answer.headers.get("Location", "")
    for name, value in played.get("headers", {}).items():
        assert answer.headers[name] == value
    assert bool(hosted.events("pending")) == bool(played.get("lands"))


def test_an_edge_that_nobody_knows_is_refused(hosted: Hosted) -> None:
    with pytest.raises(RuntimeError, match="KeyError"):
        hosted.fault("*", edge="of tomorrow")


def test_a_call_that_lands_is_done_before_its_answer_is_replaced(
    hosted: Hosted, worker: Caller, job: str
) -> None:
    hosted.fault("PATCH */claim", edge="200 page")
    assert worker.claim(job).text.startswith("<!doctype html>")
    assert hosted.job(job)["state"] == "claimed"


def test_a_fault_nobody_knows_is_refused(hosted: Hosted) -> None:
    with pytest.raises(RuntimeError, match="unknown actions"):
        hosted.fault("*", explode=True)


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
        {"on": "prompt", "kind": "oom"},
        {"on": "boot", "kind": "exit", "code": 3},
        {"on": "text", "kind": "kill"},
    )
    say = hosted.comfyui_control_url
    told = [
        requests.post(say, json={"event": event, "pid": 7}, timeout=10).json()["fault"]
        for event in ("boot", "boot", "executing", "hold", "text", "prompt")
    ]
    assert told == [
        {"on": "boot", "kind": "exit", "code": 3},
        None,
        None,
        None,
        {"on": "text", "kind": "kill"},
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
