"""What an earlier worker left never stops the work behind it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ltx.job import Job
from ltx.state import claim_folder
from tests.conftest import Box

STAGE = {"frames": ["https://x.example/a", "https://x.example/b"], "clipPrompts": ["walk"]}


def empty_outcome(job: Job) -> None:
    job.outcome.touch()


def half_an_outcome(job: Job) -> None:
    job.outcome.write_text('{"verb": "comp')


def no_film(job: Job) -> None:
    job.outcome.write_text(json.dumps({"verb": "", "body": {}}))


def no_picture_in_the_film(job: Job) -> None:
    job.outcome.touch()
    job.output.write_bytes(b"no film at all")


def half_an_order(job: Job) -> None:
    job.order.write_text('{"stageD')


SPOILED = [empty_outcome, half_an_outcome, no_film, no_picture_in_the_film, half_an_order]


@pytest.mark.parametrize("spoil", SPOILED, ids=[one.__name__ for one in SPOILED])
def test_a_job_that_cannot_be_read_is_set_aside_and_the_next_is_served(
    box: Box, spoil: Callable[[Job], None]
) -> None:
    claim_folder(box.state)
    broken = Job(box.state / "jobs" / "broken")
    broken.create({**STAGE, "watermark": False})
    spoil(broken)
    job = box.add_job()
    worker = box.start("run")
    assert box.await_outcome(job)["kind"] == "complete"
    assert worker.log.count("ERROR job_set_aside job=broken ") == 1, worker.log
    [kept] = (box.state / "set-aside").iterdir()
    assert kept.name.startswith("broken-")
    assert f"it was moved to {kept}" in worker.log
    assert not broken.folder.exists()


def test_comfyui_is_ended_when_idle_although_the_api_is_down(box: Box) -> None:
    job = box.add_job()
    box.start("run", COMFYUI_STANDBY="1", COMFYUI_IDLE_STOP_S="1")
    box.await_outcome(job)
    box.hosted.fault("GET */pending*", times=-1, status=503)
    deadline = time.monotonic() + 40
    while box.children() and time.monotonic() < deadline:
        box.hosted.wait("request.start", after=box.hosted.now(), timeout=40)
    assert not box.children()


STATS = """
import http.server, json, sys, time
asked = 0
class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global asked
        asked += 1
        if asked == 2:
            time.sleep(20)
        device = {"vram_free": 1, "vram_total": 1}
        system = {"comfyui_version": "0.27.0", "argv": sys.argv}
        body = json.dumps({"system": system, "devices": [device]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Server).serve_forever()
"""


def test_a_comfyui_that_falls_silent_when_it_is_ready_is_ended_and_not_taken_for_anothers(
    box: Box, tmp_path: Path
) -> None:
    folder = tmp_path / "silent"
    folder.mkdir()
    (folder / "main.py").write_text(STATS)
    job = box.add_job(maxAttempts=1)
    worker = box.run_once(COMFYUI_DIR=str(folder))
    assert box.failure(job)["code"] == "comfyui_unavailable"
    assert "comfyui_foreign" not in worker.log
    assert not box.children()
