"""The page of `make sandbox`: who may use it, what it refuses, and what it shows of a film."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from sandbox.client import LIGHT, inherited
from sandbox.studio import describe_worker
from tests.conftest import ROOT
from tests.pictures import picture

QUICK = {
    "VIDEO_SIZE": "320x180",
    "LOOKALIKE_BOOT_S": "0.1",
    "LOOKALIKE_LOAD_S": "0.1",
    "LOOKALIKE_STEP_S": "0.2",
    "LOOKALIKE_DECODE_S": "0.1",
}


class Studio:
    """What `make sandbox` runs, and a plain HTTP client for its page."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "studio.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sandbox.studio", "--port", "0"],
                cwd=ROOT,
                env={**inherited(), **LIGHT, **QUICK, "TMPDIR": str(folder)},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, (line, self.log.read_text())
        self.url = found[0]

    def get(self, path: str, **headers: str) -> requests.Response:
        return requests.get(self.url + path, headers=headers, timeout=30)

    def post(self, path: str, **kw: Any) -> requests.Response:
        kw.setdefault("headers", {"Origin": self.url})
        return requests.post(self.url + path, timeout=30, **kw)

    def add_picture(self, content: bytes) -> str:
        name: str = self.post("/api/pictures", data=content).json()["name"]
        return name

    def add_job(self, *pictures: bytes) -> str:
        names = [self.add_picture(content) for content in pictures]
        prompts = [f"walk on, part {number}" for number in range(1, len(names))]
        job = {"pictures": names, "prompts": prompts, "watermark": True}
        found: str = self.post("/api/jobs", json=job).json()["id"]
        return found

    def wait(self, job: str, until: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """What the page shows of a job, as soon as it shows this."""
        deadline = time.monotonic() + 60
        while True:
            jobs: list[dict[str, Any]] = self.get("/api/state").json()["jobs"]
            shown = {one["id"]: one for one in jobs}
            if until(shown[job]):
                return shown[job]
            assert time.monotonic() < deadline, (shown, self.log.read_text()[-3000:])
            time.sleep(0.1)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=60)
        return self.process.returncode


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("studio")
    studio = Studio(folder)
    yield studio
    assert studio.stop() == 0, studio.log.read_text()
    # The last worker of this folder, and with it all that it started, is gone with the page.
    assert not left_running(folder)
    assert not [*folder.glob("ltx-studio-*")]


def left_running(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environ, command = (
                (process / "environ").read_bytes(),
                (process / "cmdline").read_bytes(),
            )
        except OSError:
            continue
        if f"TMPDIR={folder}".encode() in environ and command:
            found.append(command.decode())
    return found


STRANGERS: dict[str, dict[str, str]] = {
    "another host": {"Host": "rebound.example"},
    "another port": {"Host": "127.0.0.1:1"},
    "another origin": {"Origin": "http://evil.example"},
    "an opaque origin": {"Origin": "null"},
    "another scheme": {"Origin": "https://127.0.0.1"},
}


@pytest.mark.parametrize("headers", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_can_neither_read_nor_send(studio: Studio, headers: dict[str, str]) -> None:
    for answer in (
        studio.get("/api/state", **headers),
        studio.post("/api/jobs", json={}, headers={"Origin": studio.url, **headers}),
    ):
        assert answer.status_code == 403
        assert answer.json()["error"].endswith(".")


def test_a_post_without_an_origin_is_refused(studio: Studio) -> None:
    assert studio.post("/api/pictures", data=picture((32, 32), 1), headers={}).status_code == 403


def test_only_this_machine_is_listened_to(studio: Studio) -> None:
    port = f":{int(studio.url.rpartition(':')[2]):04X} "
    lines = Path(f"/proc/{studio.process.pid}/net/tcp").read_text().splitlines()
    listening = [line.split()[1] for line in lines if port in line and line.split()[3] == "0A"]
    assert listening == [f"0100007F{port.strip()}"]


def test_the_control_routes_are_out_of_reach(studio: Studio) -> None:
    for path in ("/control/jobs", "/control/events", "/frames/01-hall.jpg", "/api/blob"):
        assert studio.get(path).status_code == 404


def test_a_file_that_is_no_picture_is_refused_with_a_sentence(studio: Studio) -> None:
    answer = studio.post("/api/pictures", data=b"GIF89a, renamed to .png")
    assert (answer.status_code, answer.json()) == (
        415,
        {"error": "This is no JPEG, PNG or WebP picture."},
    )


def test_a_picture_above_64_mb_is_refused_with_a_sentence(studio: Studio) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(65):
            yield b"\xff\xd8\xff" + bytes(2**20)

    answer = studio.post("/api/pictures", data=endless())
    assert (answer.status_code, answer.json()) == (
        413,
        {"error": "The picture is larger than 64 MB."},
    )


def test_a_job_that_is_not_complete_is_refused_with_what_it_lacks(studio: Studio) -> None:
    names = [studio.add_picture(picture((64, 36), number)) for number in range(2)]
    good = {"pictures": names, "prompts": ["walk on"], "watermark": False}
    table: list[tuple[Any, str]] = [
        ([], "A film needs 2 to 6 pictures."),
        ({**good, "pictures": names[:1]}, "A film needs 2 to 6 pictures."),
        ({**good, "pictures": names * 4}, "A film needs 2 to 6 pictures."),
        ({**good, "pictures": [names[0], "../x"]}, "A picture is not here; add it again."),
        ({**good, "pictures": [names[0], {}]}, "A picture is not here; add it again."),
        ({**good, "prompts": []}, "A film needs a prompt between each two pictures."),
        ({**good, "prompts": [" "]}, "A prompt is empty."),
        ({**good, "prompts": ["x" * 2001]}, "A prompt is longer than 2000 letters."),
        ({**good, "watermark": "yes"}, "The watermark is either true or false."),
    ]
    for job, sentence in table:
        answer = studio.post("/api/jobs", json=job)
        assert (answer.status_code, answer.json()) == (400, {"error": sentence}), job


def test_a_film_is_followed_clip_by_clip_then_plays_in_parts(studio: Studio) -> None:
    job = studio.add_job(*(picture((320, 180), number) for number in range(3)))
    second = studio.wait(job, lambda one: one.get("progress", {}).get("clip") == 2)
    assert second["words"].count("clip 2 of 2") == 1
    assert 0 < second["progress"]["percent"] < 100
    ready = studio.wait(job, lambda one: one.get("stills"))
    assert ready["words"].startswith("Ready: 10 s, 320 x 180, 24 frames a second")
    assert len(ready["stills"]) == 6
    assert studio.get(ready["stills"][-1]).content.startswith(b"\x89PNG")
    part = studio.get(ready["film"], Range="bytes=4-7")
    assert (part.status_code, part.content) == (206, b"ftyp")
    assert part.headers["Content-Type"] == "video/mp4"


def test_a_failure_comes_with_its_public_sentence_and_code(studio: Studio) -> None:
    broken = picture((320, 180), 1)[:200]
    failed = studio.wait(
        studio.add_job(picture((320, 180), 0), broken), lambda one: one["state"] == "failed"
    )
    assert failed["error"]["code"] == "frame_invalid"
    assert failed["error"]["message"].startswith("A picture is not a usable JPEG, PNG or WebP.")


def test_a_worker_that_is_down_or_takes_no_job_is_told_in_words() -> None:
    def beat(status: str, stage: str) -> dict[str, Any]:
        return {"status": status, "progress": {"stage": stage}}

    idle, unfit = beat("idle", "idle"), beat("degraded", "degraded: gpu_out_of_memory")
    table: list[tuple[int | None, float, dict[str, Any], str, str]] = [
        (None, 1, {}, "starting", "starting"),
        (None, 1, idle, "idle", "ready"),
        (None, 60, idle, "down", "not been heard of for 60 s"),
        (78, 1, idle, "down", "exit code 78"),
        (None, 1, unfit, "degraded", "The graphics card ran out of memory. (gpu_out_of_memory)"),
    ]
    for code, silent_s, last, state, words in table:
        shown = describe_worker(code, silent_s, last)
        assert shown["state"] == state
        assert words in shown["words"]
