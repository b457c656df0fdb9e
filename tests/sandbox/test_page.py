"""The page of `make sandbox`: who may use it, what it refuses, and what it shows of a film."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, FilePayload, Page, expect

from sandbox.browse import StudioProcess, chromium
from sandbox.studio_words import describe_worker
from tests.pictures import picture

# One studio and one browser for all of these.
pytestmark = pytest.mark.xdist_group("page")

QUICK = {
    "VIDEO_SIZE": "320x180",
    "LOOKALIKE_BOOT_S": "0.1",
    "LOOKALIKE_LOAD_S": "0.1",
    "LOOKALIKE_STEP_S": "0.2",
    "LOOKALIKE_DECODE_S": "0.1",
}


class Studio(StudioProcess):
    """Its page, asked without a browser."""

    def get(self, path: str, **headers: str) -> requests.Response:
        return requests.get(self.url + path, headers=headers, timeout=30)

    def post(self, path: str, **kw: Any) -> requests.Response:
        kw.setdefault("headers", {"Origin": self.url})
        return requests.post(self.url + path, timeout=30, **kw)

    def add_picture(self, content: bytes) -> str:
        name: str = self.post("/api/pictures", data=content).json()["name"]
        return name


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("studio")
    studio = Studio(folder, QUICK)
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


def test_nobody_but_the_page_itself_can_read_or_send(studio: Studio) -> None:
    for who, headers in STRANGERS.items():
        for answer in (
            studio.get("/api/state", **headers),
            studio.post("/api/jobs", json={}, headers={"Origin": studio.url, **headers}),
        ):
            assert answer.status_code == 403, who
            assert answer.json()["error"].endswith("."), who
    assert studio.post("/api/jobs", json={}, headers={}).status_code == 403
    for path in ("/control/jobs", "/control/events", "/frames/01-hall.jpg", "/api/blob"):
        assert studio.get(path).status_code == 404, path
    port = f"{int(studio.url.rpartition(':')[2]):04X}"
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    listening = [one[1] for one in sockets if one[1].endswith(f":{port}") and one[3] == "0A"]
    assert listening == [f"0100007F:{port}"]


def test_what_cannot_become_a_film_is_refused_with_a_sentence(studio: Studio) -> None:
    def too_large() -> Iterator[bytes]:
        for _ in range(65):
            yield b"\xff\xd8\xff" + bytes(2**20)

    uploads: list[tuple[Any, int, str]] = [
        (b"GIF89a", 415, "This is no JPEG, PNG or WebP picture."),
        (b"", 415, "This is no JPEG, PNG or WebP picture."),
        (too_large(), 413, "The picture is larger than 64 MB."),
    ]
    for data, status, sentence in uploads:
        answer = studio.post("/api/pictures", data=data)
        assert (answer.status_code, answer.json()) == (status, {"error": sentence})
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


PICTURES = {f"view-{number}.png": picture((320, 180), number) for number in range(3)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(studio: Studio, browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(studio.url)
    yield page
    page.close()
    assert not complaints


def upload(page: Page, files: dict[str, bytes]) -> None:
    given: list[FilePayload] = [
        {"name": name, "mimeType": "image/png", "buffer": content}
        for name, content in files.items()
    ]
    page.locator("#files").set_input_files(given)


def tab_to(page: Page, selector: str) -> None:
    """By the Tab key alone."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"the Tab key does not reach {selector}")


PLAYS = """video => new Promise(done =>
    video.addEventListener("timeupdate", () => video.currentTime > 0.3 && done()))"""


def test_a_film_is_ordered_by_keyboard_followed_and_played(studio: Studio, page: Page) -> None:
    expect(page.locator("#send")).to_be_disabled()
    expect(page.locator("#missing")).to_have_text("To send: Add two pictures or more.")
    tab_to(page, "#files")
    upload(page, PICTURES)
    expect(page.locator("#missing")).to_contain_text("Write the prompt from picture 1 to 2.")
    tab_to(page, "[aria-label='Move picture 3 earlier']")
    page.keyboard.press("Enter")
    order = ["1. view-0.png", "2. view-2.png", "3. view-1.png"]
    expect(page.locator("#board .name")).to_have_text(order)
    expect(page.locator("[aria-label='Move picture 2 earlier']")).to_be_focused()
    for row in (2, 4):
        tab_to(page, f"#board li:nth-child({row}) textarea")
        page.keyboard.type("walk on")
    tab_to(page, "#watermark")
    page.keyboard.press("Space")
    tab_to(page, "#send")
    page.keyboard.press("Enter")
    expect(page.locator(".clips li[data-state=now]")).to_have_text(
        re.compile("Clip 2: step . of 8"), timeout=60_000
    )
    assert 0 < page.locator("progress").first.evaluate("bar => bar.value") < 100
    newest = page.locator(".film").first
    expect(newest.locator(".words")).to_contain_text("Ready: 10 s, 320 x 180", timeout=60_000)
    expect(page.locator("#news")).to_have_text(re.compile(r"Film \d is ready"))
    expect(newest.locator(".sheet img")).to_have_count(6, timeout=60_000)
    video = newest.locator("video")
    tab_to(page, "video")
    page.keyboard.press("Space")
    video.evaluate(PLAYS)
    assert video.evaluate("video => video.videoWidth") == 320
    film = video.evaluate("video => video.src")
    part = studio.get(film.removeprefix(studio.url), Range="bytes=4-7")
    assert (part.status_code, part.content) == (206, b"ftyp")


DROP = """files => {
    const transfer = new DataTransfer();
    for (const [name, bytes] of files)
        transfer.items.add(new File([new Uint8Array(bytes)], name));
    const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
    document.getElementById("drop").dispatchEvent(new DragEvent("drop", options));
}"""


def test_what_is_wrong_with_a_dropped_file_is_said_in_words(page: Page) -> None:
    good, other, _ = PICTURES.values()
    dropped = {"good.png": good, "notes.txt": b"no picture", "broken.png": other[:200]}
    page.evaluate(DROP, [[name, list(content)] for name, content in dropped.items()])
    refused = "notes.txt: This is no JPEG, PNG or WebP picture."
    expect(page.get_by_role("alert")).to_have_text(refused)
    expect(page.locator("#board .name")).to_have_text(["1. good.png", "2. broken.png"])
    page.get_by_label("Prompt from picture 1 to 2").fill("walk on")
    page.keyboard.press("Control+Enter")
    failed = page.locator(".film[data-state=failed] .error")
    sentence = "A picture is not a usable JPEG, PNG or WebP."
    expect(failed).to_contain_text(sentence, timeout=60_000)
    expect(failed.locator("code")).to_have_text("frame_invalid")
    expect(page.locator("#news")).to_contain_text(sentence)


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
