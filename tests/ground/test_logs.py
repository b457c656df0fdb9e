"""The log: one line a stage, one a job, no secret, nothing forged."""

from __future__ import annotations

import base64
import json
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus

import pytest

from ltx.operator.console import LogFormat
from ltx.settings import Settings
from ltx.text import Redactor
from tests.conftest import Box, a_stage, made_once

# Every character of it has a different form in at least one encoding.
SECRET = "pa+ss/wo&rd=?%41~!x\"'(z)"
TOKEN = "vercel_blob_rw_Sandbox0Store1234_0123456789abcdefSecret"
NONSENSE = {"frames": "none"}
POLL = "GET /api/videogen/pending"
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "
LINE = re.compile(rf"{STAMP}(INFO|WARNING|ERROR) [a-z_]+( |$)")
FORGED = "2099-01-01 00:00:00,000 INFO delivered job=forged verb=complete"


def forms(secret: str) -> dict[str, str]:
    """The ways in which a secret may come back from somebody else."""
    return {
        "plain": secret,
        "url": quote(secret),
        "url, slashes too": quote(secret, safe=""),
        "url, as JavaScript's encodeURIComponent": quote(secret, safe="!'()*~"),
        "url, as a form": quote_plus(secret),
        "url, in small letters": re.sub("%..", lambda one: one[0].lower(), quote(secret, safe="")),
        "json": json.dumps(secret)[1:-1],
        "base64": base64.b64encode(secret.encode()).decode(),
        "base64 for addresses": base64.urlsafe_b64encode(secret.encode()).decode(),
    }


def leaks(text: str, secret: str) -> list[str]:
    """What of a secret is in a text: whole in some form, or eight characters in a row of it."""
    whole = [name for name, form in forms(secret).items() if form.rstrip("=") in text]
    pieces = {secret[n : n + 8] for n in range(len(secret) - 7)} - {"vercel_b"}
    known = ("vercel_blob_rw_", "Sandbox0Store1234")
    return whole + [
        piece for piece in pieces if piece in text and not any(piece in one for one in known)
    ]


# Stages and summary


class Story(NamedTuple):
    job: str
    log: str


@pytest.fixture(scope="module")
def story(shared_folder: Path) -> Story:
    """The log of a job of two clips that went well."""
    folder = made_once(shared_folder / "story", tell_story)
    return Story(*json.loads((folder / "record.json").read_text()))


def tell_story(folder: Path) -> None:
    with a_stage(folder) as box:
        job = box.add_job(clips=2)
        record = Story(job, box.run_once().log)
        (folder / "record.json").write_text(json.dumps(record))


@pytest.mark.parametrize("stage", ["download", "check", "join", "upload"])
def test_a_stage_of_the_job_has_one_line_with_job_and_milliseconds(
    story: Story, stage: str
) -> None:
    lines = [line for line in story.log.splitlines() if f" {stage}_done " in line]
    assert len(lines) == 1
    assert re.search(rf"job={story.job}\b.* ms=\d+$", lines[0])


@pytest.mark.parametrize("clip", [1, 2])
@pytest.mark.parametrize("stage", ["boot", "load", "render", "encode"])
def test_a_stage_of_a_clip_has_one_line_with_job_clip_and_milliseconds(
    story: Story, stage: str, clip: int
) -> None:
    lines = [line for line in story.log.splitlines() if f" {stage}_done " in line]
    told = [line for line in lines if f" clip={clip} " in line]
    assert len(lines) == 2
    assert len(told) == 1
    assert re.search(rf"job={story.job}\b.* ms=\d+$", told[0])


def test_a_job_ends_with_one_line_that_sums_up_its_stages(story: Story) -> None:
    lines = [line for line in story.log.splitlines() if " job_done " in line]
    assert len(lines) == 1
    assert f"job={story.job} " in lines[0]
    for stage in ("download", "boot", "load", "render", "encode", "upload", "total"):
        assert re.search(rf" {stage}=\S*\d", lines[0]), stage


def test_the_summary_tells_the_rendering_of_each_clip(story: Story) -> None:
    summary = next(line for line in story.log.splitlines() if " job_done " in line)
    assert len(re.findall(r"\d+\.\d", summary.partition(" render")[2].split(" ")[0])) == 2, summary


def test_every_line_has_time_level_and_event(story: Story) -> None:
    assert not [line for line in story.log.splitlines() if not LINE.match(line)]


def test_the_journal_is_not_told_the_time_it_knows(box: Box) -> None:
    box.hosted.add_stage(NONSENSE)
    lines = box.run_once(JOURNAL_STREAM="8:1234").log.splitlines()
    assert lines
    levels = r"(<6>INFO|<4>WARNING|<3>ERROR) [a-z_]+( |$)"
    assert all(re.match(levels, line) for line in lines)
    assert any(line.startswith("<3>ERROR job_failed ") for line in lines)


def test_each_line_of_a_message_carries_its_priority_into_the_journal() -> None:
    settings = Settings.load({"JOURNAL_STREAM": "8:1234"}, needed=())
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "first\nsecond\nthird", (), None)
    text = LogFormat(settings).format(record)
    assert text == "<3>ERROR first\n<3>    second\n<3>    third"


# Secrets


@pytest.mark.parametrize("form", forms(SECRET))
def test_a_secret_is_blotted_out_in_every_form(form: str) -> None:
    redact = Redactor()
    redact.hide([SECRET])
    text = redact(f"the answer was <{forms(SECRET)[form]}>, sorry")
    assert not leaks(text, SECRET), text
    assert text.startswith("the answer was <")
    assert text.endswith(">, sorry")


@pytest.mark.parametrize("length", [0, 175, 190])
def test_an_api_that_answers_the_secret_back_does_not_get_it_into_the_log(
    tmp_path: Path, length: int
) -> None:
    echo = "x" * length + SECRET
    with a_stage(tmp_path, secret=SECRET) as box:
        box.hosted.fault(POLL, status=500, body=echo)
        box.hosted.fault("PATCH */claim", status=500, body={"error": echo})
        box.hosted.fault("PATCH */fail", redirect=f"https://elsewhere.example/{quote(echo)}")
        box.hosted.add_stage(NONSENSE)
        worker = box.run_once()
    assert worker.log.count("deliver_retry") == 1
    assert not leaks(worker.log, SECRET), worker.log


def test_a_wrong_secret_is_not_shown(box: Box) -> None:
    worker = box.start(VIDEOGEN_WORKER_SECRET=SECRET)
    assert worker.wait() == 78
    assert "VIDEOGEN_WORKER_SECRET" in worker.log
    assert not leaks(worker.log, SECRET)


@pytest.mark.parametrize("length", [0, 230])
def test_a_blob_store_that_names_the_token_gets_it_neither_into_the_log_nor_to_the_api(
    box: Box, length: int
) -> None:
    told = f"{'x' * length}The token {TOKEN} may not write here."
    body = {"error": {"code": "bad_request", "message": told}}
    box.hosted.fault("PUT /api/blob*", status=403, body=body)
    job = box.add_job()
    worker = box.run_once()
    assert box.failure(job)["code"] == "upload_failed"
    assert "upload_refused" in worker.log
    assert not leaks(worker.log, TOKEN), worker.log
    assert not leaks(box.failure(job)["message"], TOKEN), box.failure(job)


def test_a_secret_in_a_jobs_data_is_not_logged(tmp_path: Path) -> None:
    with a_stage(tmp_path, secret=SECRET) as box:
        box.hosted.add_stage({"frames": [SECRET, f"{'x' * 60}{SECRET}"], "watermark": False})
        box.hosted.add_stage({"frames": "x" * 70 + SECRET, "watermark": False})
        for _ in range(2):
            worker = box.run_once()
            assert "bad_job" in worker.log
            assert not leaks(worker.log, SECRET), worker.log


@pytest.mark.parametrize(
    "settings",
    [
        {"VIDEOGEN_WORKER_SECRET": "with a space in it"},
        {"BLOB_READ_WRITE_TOKEN": "vercel_blob_rw_OnlyHalfOfAToken"},
    ],
)
def test_an_invalid_secret_is_named_but_not_shown(box: Box, settings: dict[str, str]) -> None:
    worker = box.start(**settings)
    assert worker.wait() == 78
    for name, value in settings.items():
        assert f"{name}=(hidden)" in worker.log
        assert value not in worker.log


# Foreign text


def test_newlines_from_outside_forge_no_line(box: Box) -> None:
    breaks = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"]
    forged = "".join(f"{end}{FORGED}" for end in breaks)
    error: dict[str, Any] = {"status": 500, "body": {"error": f"oops{forged}"}}
    for call in (POLL, "PATCH */claim", "PATCH */fail"):
        box.hosted.fault(call, **error)
    box.hosted.fault(POLL, status=500, body=f"oops{forged}")
    box.hosted.script_comfyui(
        {"on": "prompt", "kind": "execution_error", "message": f"boom{forged}"}
    )
    job = box.add_job()
    worker = box.run_once()
    assert box.failure(job)["code"] == "comfyui_failed"
    lines = worker.log.splitlines()
    assert any("forged" in line for line in lines)
    assert not [line for line in lines if line.startswith(FORGED)]
    assert not [line for line in lines if not LINE.match(line) and not line.startswith("    ")]


def test_the_last_lines_of_comfyuis_log_come_without_colours(box: Box) -> None:
    ended = {"on": "boot", "kind": "exit", "message": "no torch here"}
    box.hosted.script_comfyui(ended, ended)
    box.add_job()
    log = box.run_once().log
    assert "[ERROR] no torch here" in log
    assert "\x1b" not in log
    assert not re.search(r"\[\d+m", log)
