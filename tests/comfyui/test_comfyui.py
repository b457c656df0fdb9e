"""ComfyUI as a child process: a fresh one for every clip, and what happens when it fails."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ltx.errors import FAULTS
from sandbox.client import ROOT, Hosted, free_port
from tests.conftest import Box, foreign_comfyui, serving
from tests.pictures import picture

sys.path.insert(0, str(ROOT / "sandbox" / "comfyui"))

from schemas import load_schemas

Event = dict[str, Any]
Step = dict[str, Any]
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# What a clip of a 128x72 film looks like when it comes from ComfyUI.
RENDERED = "testsrc=size=128x96:rate=24"


def on_prompt(kind: str, **details: Any) -> Step:
    return {"on": "prompt", "kind": kind, **details}


def on_boot(kind: str, **details: Any) -> Step:
    return {"on": "boot", "kind": kind, **details}


NO_FAULT = on_boot("slow", seconds=0)


class Shift:
    """The serving worker during one test: what was heard since the test began."""

    def __init__(self, box: Box) -> None:
        self.box, self.hosted = box, box.hosted
        self.began = box.hosted.now()

    def events(self, kind: str) -> list[Event]:
        return self.hosted.events(f"comfyui.{kind}", after=self.began)

    def pids(self, kind: str = "prompt") -> list[int]:
        return [event["data"]["pid"] for event in self.events(kind)]

    def serve(self, *script: Step, clips: int = 1, text: str = "walk on") -> tuple[Event, str]:
        """A job under scripted faults: its outcome, and the worker's log about it."""
        self.hosted.script_comfyui(*script)
        job = self.box.add_job(clips, text=text)
        outcome = self.box.await_outcome(job)
        return outcome, self.log_of(job)

    def log_of(self, job: str) -> str:
        return self.box.running[-1].log.partition(f"claimed job={job}")[2]

    def images(self) -> list[list[str]]:
        """The names of both images, prompt by prompt."""
        return [
            [
                node["inputs"]["image"]
                for node in event["data"]["prompt"].values()
                if node["class_type"] == "LoadImage"
            ]
            for event in self.events("prompt")
        ]


def assert_failed(outcome: Event, code: str, told: str) -> None:
    assert outcome["kind"] == "fail", outcome
    error = outcome["data"]["error"]
    assert error["code"] == code
    assert error["message"].startswith(FAULTS[code].sentence)
    assert error["retryable"] is FAULTS[code].retryable
    assert told in error["message"]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("comfyui")
    python = folder / "python"
    # The worker's environment is fixed once it runs; what a ComfyUI lacks changes test by test.
    python.write_text(f'#!/bin/sh\n. "{folder}/environ"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (folder / "environ").write_text("")
    with serving(folder, COMFYUI_PYTHON=str(python), CLIP_GATE="enforce", LTX_TEXT="job") as box:
        yield box


@pytest.fixture
def shift(stage: Box) -> Iterator[Shift]:
    """The worker that serves all these tests; after each it must be alive, alone and polling."""
    worker = stage.running[-1]
    assert worker.process.poll() is None, "the worker did not survive an earlier test"
    yield Shift(stage)
    stage.hosted.clear_comfyui_script()
    (stage.folder / "environ").write_text("")
    assert worker.process.poll() is None, worker.log[-3000:]
    assert stage.children() == []
    stage.hosted.wait("pending", after=stage.hosted.now())


# A job without trouble


class Quiet(BaseHTTPRequestHandler):
    """A server of the test's own, which logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, body: object, status: int = 200, kind: str = "application/json") -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def frame_host(before: Callable[[], object]) -> Iterator[str]:
    """Serves one picture, each time only after `before` returns."""

    class Frames(Quiet):
        def do_GET(self) -> None:
            before()
            self.answer(picture((320, 180)), kind="image/png")

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Frames)) as port:
        yield f"http://127.0.0.1:{port}/frame.png"


@contextlib.contextmanager
def served(server: ThreadingHTTPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def test_comfyui_boots_on_demand_before_the_job_is_claimed(shift: Shift) -> None:
    """Each clip has a fresh process, image names and a prompt id that were never used before."""
    shift.hosted.wait("pending", after=shift.began)
    assert shift.pids("boot") == [], "a ComfyUI was booted for no job"
    outcome, log = shift.serve(clips=2)
    assert outcome["kind"] == "complete", log
    ready = shift.events("ready")[0]
    assert ready["seq"] < shift.hosted.wait("claim", after=shift.began)["seq"]
    assert len(shift.pids()) == 2
    # The tests before this one, and the jobs in them, count as well.
    shift.began = 0
    assert len(set(shift.pids())) == len(shift.pids())
    names = [name for images in shift.images() for name in images]
    assert len(set(names)) == len(names)
    prompt_ids = [event["data"]["promptId"] for event in shift.events("prompt")]
    assert len(set(prompt_ids)) == len(prompt_ids)
    assert [one for one in prompt_ids if not UUID.fullmatch(one)] == []


def test_a_prompt_carries_an_id_of_our_own(box: Box) -> None:
    """A real ComfyUI would make one up, which is lost when its answer is; so this one looks."""
    heard: list[dict[str, Any]] = []
    known = load_schemas()

    class Listening(Quiet):
        def do_GET(self) -> None:
            if self.path.startswith("/object_info/"):
                return self.answer(known)
            self.answer({"system": {"comfyui_version": "0.27.0", "argv": []}})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/prompt":
                heard.append(json.loads(body))
                return self.answer({"error": {"message": "heard enough"}}, 400)
            self.answer({"name": "image.png"})

    with served(ThreadingHTTPServer(("127.0.0.1", box.port), Listening)):
        job = box.add_job()
        worker = box.run_once()
    assert box.failure(job)["code"] == "comfyui_rejected", worker.log
    (prompt,) = heard
    assert UUID.fullmatch(prompt["prompt_id"])


# The websocket is a hint


@pytest.mark.parametrize("kind", ["ws_refuse", "ws_garbage"])
def test_a_bad_websocket_does_no_harm(shift: Shift, kind: str) -> None:
    outcome, log = shift.serve(on_prompt(kind, at=1))
    assert outcome["kind"] == "complete", log
    assert len(shift.pids()) == 1, "the clip was rendered twice"


def test_progress_goes_on_after_the_websocket_was_lost(shift: Shift) -> None:
    (shift.box.folder / "environ").write_text("export LOOKALIKE_STEP_S=0.25\n")
    outcome, log = shift.serve(on_prompt("ws_drop", at=1))
    assert outcome["kind"] == "complete", log
    assert len(shift.pids()) == 1, "the clip was rendered twice"
    beats = shift.hosted.events("heartbeat", after=shift.began)
    assert max(beat["data"]["progress"]["step"] for beat in beats) > 1


# Failures that would repeat: one attempt


@pytest.mark.parametrize(
    ("fault", "code", "told", "tail"),
    [
        (on_prompt("reject"), "comfyui_rejected", "Prompt refused", "got prompt"),
        (
            on_prompt("node_errors"),
            "comfyui_rejected",
            "VHS_VideoCombine: Required input is missing",
            "got prompt",
        ),
        (
            on_prompt("execution_error"),
            "comfyui_failed",
            "SamplerCustomAdvanced: RuntimeError: expected scalar type BFloat16",
            "NodeError: expected scalar type",
        ),
    ],
    ids=["refused", "200 with node_errors", "execution error"],
)
def test_an_error_that_would_repeat_is_not_tried_again(
    shift: Shift, fault: Step, code: str, told: str, tail: str
) -> None:
    outcome, log = shift.serve(fault)
    assert_failed(outcome, code, told)
    assert tail in log
    assert len(shift.pids()) == 1


# Failures that a fresh process may mend: two attempts


@pytest.mark.parametrize(
    ("kind", "tail"),
    [("oom", "Got an OOM"), ("segfault", "Extension modules"), ("kill", "3/8")],
)
def test_a_clip_whose_comfyui_died_or_ran_out_of_memory_is_rendered_by_a_fresh_one(
    shift: Shift, kind: str, tail: str
) -> None:
    outcome, log = shift.serve(on_prompt(kind))
    assert outcome["kind"] == "complete", log
    assert outcome["data"]["clips"][0]["attempts"] == 2
    assert len(set(shift.pids())) == 2
    first, second = shift.images()
    assert not set(first) & set(second)
    assert tail in log, "why the clip was tried again is not told"


@pytest.mark.parametrize(
    ("faults", "code", "told", "tail"),
    [
        (["oom", "oom"], "gpu_out_of_memory", "torch.OutOfMemoryError", ["Got an OOM"]),
        (["segfault", "kill"], "comfyui_failed", "killed", ["SIGSEGV", "3/8"]),
        (
            ["no_history", "no_output"],
            "comfyui_failed",
            "is not there",
            ["knows the prompt", "Prompt executed"],
        ),
        (["short_file", "truncated"], "bad_clip", "Clip 1", ["Prompt executed"]),
        (["wrong_size", "short_clip"], "bad_clip", "97", ["64", "Prompt executed"]),
    ],
    ids=["out of memory", "died", "no output", "no film", "another film"],
)
def test_a_clip_that_fails_twice_fails_the_job(
    shift: Shift, faults: list[str], code: str, told: str, tail: list[str]
) -> None:
    outcome, log = shift.serve(*map(on_prompt, faults))
    assert_failed(outcome, code, told)
    assert [words for words in tail if words not in log] == []
    assert len(set(shift.pids())) == 2


def test_an_output_outside_comfyuis_folder_is_refused(shift: Shift) -> None:
    """The file would do as a clip, were it ComfyUI's to give."""
    film = shift.box.folder / "private.mp4"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", RENDERED, "-frames:v", "121"]
    subprocess.run([*command, "-pix_fmt", "yuv420p", str(film)], check=True)
    output = shift.box.state / "comfyui" / str(shift.box.port) / "output"
    outcome, log = shift.serve(
        on_prompt("escape", filename=film.name, subfolder=os.path.relpath(film.parent, output)),
        on_prompt("escape", filename=film.name, subfolder=str(film.parent)),
    )
    assert_failed(outcome, "comfyui_failed", "private.mp4")
    assert len(shift.pids()) == 2, log
    assert film.exists()


# Booting


def test_a_comfyui_that_cannot_boot_is_unavailable(shift: Shift) -> None:
    """How often it is tried is the worker's business; the last one tells why."""
    outcome, log = shift.serve(on_boot("segfault"), on_boot("exit"), on_boot("exit"))
    assert_failed(outcome, "comfyui_unavailable", "exit code 1")
    assert "ModuleNotFoundError: No module named 'torch'" in log
    assert shift.pids() == []


def test_a_boot_that_takes_too_long_is_ended(box: Box) -> None:
    """A stranger on our port answers everything with 200, but it is no ComfyUI."""
    box.hosted.script_comfyui(on_boot("hang"), on_boot("stranger"))
    job = box.add_job()
    worker = box.run_once(COMFYUI_BOOT_TIMEOUT_S="3")
    error = box.failure(job)
    assert error["code"] == "comfyui_unavailable"
    assert "within 3 s" in error["message"]
    assert "Device: cuda:0" in worker.log
    assert box.hosted.events("comfyui.prompt") == []
    assert box.children() == []


def test_a_port_that_another_program_holds_is_told(shift: Shift) -> None:
    class Stranger(Quiet):
        def do_GET(self) -> None:
            self.answer({"system": "mine"})

    with served(ThreadingHTTPServer(("127.0.0.1", shift.box.port), Stranger)):
        outcome, log = shift.serve()
    assert_failed(outcome, "comfyui_unavailable", "held by another program")
    assert "is already in use" in log


def test_an_unreachable_remote_comfyui_is_not_replaced_by_one_of_ours(box: Box) -> None:
    url = f"http://127.0.0.2:{free_port()}"
    job = box.add_job()
    assert box.run_once(COMFYUI_URL=url).wait() == 1
    error = box.failure(job)
    assert error["code"] == "comfyui_unavailable"
    assert url in error["message"]
    assert box.hosted.events("comfyui.*") == []


# Somebody else's ComfyUI


def seen(hosted: Hosted, *kinds: str) -> list[str]:
    """These ComfyUI events, in the order in which they came."""
    found = [event["kind"].removeprefix("comfyui.") for event in hosted.events("comfyui.*")]
    return [kind for kind in found if kind in kinds]


def test_a_foreign_comfyui_is_used_freed_told_of_once_and_never_ended(box: Box) -> None:
    with foreign_comfyui(box) as foreign:
        job = box.add_job(clips=2)
        worker = box.run_once(COMFYUI_STANDBY="1")
        assert box.hosted.job(job)["state"] == "completed", worker.log
        assert seen(box.hosted, "boot", "free", "prompt") == ["boot", *["free", "prompt"] * 2]
        freed = box.hosted.wait("comfyui.free")["data"]
        assert freed["wishes"] == ["free_memory", "unload_models"]
        assert worker.log.count("comfyui_foreign") == 1
        assert foreign.process.poll() is None


def test_a_clip_whose_foreign_comfyui_died_is_rendered_by_one_of_ours(box: Box) -> None:
    box.hosted.script_comfyui(on_prompt("segfault"))
    with foreign_comfyui(box) as foreign:
        job = box.add_job()
        worker = box.run_once()
    assert box.hosted.job(job)["state"] == "completed", worker.log
    assert pids(box.hosted, "prompt") == pids(box.hosted, "boot")
    assert pids(box.hosted, "boot")[0] == foreign.process.pid
    assert box.children() == []


def test_a_foreign_comfyui_that_takes_the_port_while_ours_boots_is_not_taken_for_ours(
    box: Box,
) -> None:
    """It is used for what it is: with its caches freed first."""
    box.hosted.script_comfyui(on_boot("hang"))
    job = box.add_job()
    worker = box.start("run", "--once")
    ours = box.hosted.wait("comfyui.boot")["data"]["pid"]
    with foreign_comfyui(box) as foreign:
        # Within a heartbeat's time the worker has asked the port more than once who is there.
        beat = box.hosted.wait("heartbeat", after=box.hosted.now())
        box.hosted.wait("heartbeat", after=beat["seq"])
        os.kill(ours, signal.SIGKILL)
        worker.wait()
        assert foreign.process.poll() is None
    assert box.hosted.job(job)["state"] == "completed", worker.log
    assert seen(box.hosted, "free", "prompt") == ["free", "prompt"]


# The standby


SLOW = on_prompt("slow", factor=20)


def pids(hosted: Hosted, kind: str) -> list[int]:
    return [event["data"]["pid"] for event in hosted.events(f"comfyui.{kind}")]


def test_the_standby_boots_while_a_clip_renders_and_renders_the_next(box: Box) -> None:
    box.hosted.script_comfyui(SLOW)
    job = box.add_job(clips=2)
    worker = box.run_once(COMFYUI_STANDBY="1")
    assert box.hosted.job(job)["state"] == "completed", worker.log
    story = seen(box.hosted, "boot", "ready", "prompt", "done")
    assert story[:6] == ["boot", "ready", "prompt", "boot", "ready", "done"]
    assert pids(box.hosted, "prompt") == pids(box.hosted, "boot")[:2]
    assert box.children() == []


@pytest.mark.long
def test_a_standby_that_dies_costs_only_a_plain_restart(box: Box) -> None:
    """The first dies while it boots, the second while it waits."""
    box.hosted.script_comfyui(NO_FAULT, on_boot("exit"), SLOW, SLOW)
    job = box.add_job(clips=3)
    worker = box.start("run", "--once", COMFYUI_STANDBY="1")
    second_clip = box.hosted.wait("comfyui.prompt", after=box.hosted.wait("comfyui.done")["seq"])
    standby = box.hosted.wait("comfyui.ready", after=second_clip["seq"])["data"]["pid"]
    os.kill(standby, signal.SIGKILL)
    worker.wait()
    row = box.hosted.job(job)
    assert row["state"] == "completed", worker.log
    assert [clip["attempts"] for clip in row["outcome"]["clips"]] == [1, 1, 1]
    booted = pids(box.hosted, "boot")
    assert booted[3] == standby
    assert pids(box.hosted, "prompt") == [booted[0], booted[2], booted[4]]
    assert box.children() == []
    assert "No module named 'torch'" in worker.log, "what the standby died of is not told"


def test_vram_that_does_not_come_back_is_told_once(box: Box) -> None:
    crowded = on_boot("crowded", seconds=600)
    box.hosted.script_comfyui(NO_FAULT, crowded, crowded)
    job = box.add_job(clips=3)
    worker = box.run_once()
    assert box.hosted.job(job)["state"] == "completed", worker.log
    assert worker.log.count("vram_missing mb=") == 1


def test_a_standby_renders_the_next_job_and_is_ended_when_none_comes(box: Box) -> None:
    box.add_job()
    last = box.add_job()
    worker = box.start("run", COMFYUI_STANDBY="1", COMFYUI_IDLE_STOP_S="1")
    assert box.await_outcome(last)["kind"] == "complete", worker.log
    booted = pids(box.hosted, "boot")
    assert len(booted) == 3
    assert pids(box.hosted, "prompt") == booted[:2]
    for _ in range(40):
        if not box.children():
            break
        box.hosted.wait("heartbeat", after=box.hosted.now())
    assert box.children() == []
    assert worker.process.poll() is None


# One process for a whole job


def test_with_restart_job_one_process_renders_the_job_and_the_next_job_has_a_fresh_one(
    box: Box,
) -> None:
    box.add_job(clips=2)
    last = box.add_job(clips=1)
    worker = box.start("run", COMFYUI_RESTART="job")
    assert box.await_outcome(last)["kind"] == "complete", worker.log
    first, second, third = pids(box.hosted, "prompt")
    assert first == second != third
    offsets = [min(map(int, one["data"]["prompt"])) for one in box.hosted.events("comfyui.prompt")]
    assert offsets == [1, 1001, 1]
    assert box.hosted.events("comfyui.free") == []


def test_with_restart_job_the_next_jobs_process_boots_beside_the_last_clip(box: Box) -> None:
    first, last = box.add_job(clips=2), box.add_job(clips=1)
    worker = box.start("run", COMFYUI_RESTART="job", COMFYUI_STANDBY="1")
    assert box.await_outcome(last)["kind"] == "complete", worker.log
    booted, prompts = pids(box.hosted, "boot"), pids(box.hosted, "prompt")
    assert prompts == [booted[0], booted[0], booted[1]]
    begun = box.hosted.events("comfyui.prompt")[1]["seq"]
    standby = box.hosted.events("comfyui.boot")[1]["seq"]
    assert begun < standby < box.await_outcome(first)["seq"]


@pytest.mark.parametrize(("stays", "processes"), [("", 1), ("1", 2)], ids=["freed", "kept"])
def test_with_restart_job_memory_that_grows_is_freed_or_the_process_replaced(
    box: Box, stays: str, processes: int
) -> None:
    job = box.add_job(clips=3)
    box.settings.update({"LOOKALIKE_LEAK_MB": "150", "LOOKALIKE_LEAK_STAYS": stays})
    worker = box.run_once(COMFYUI_RESTART="job")
    assert box.hosted.job(job)["state"] == "completed", worker.log
    story = seen(box.hosted, "boot", "prompt", "free")
    assert story == ["boot", "prompt", "prompt", "free", *["boot"] * (processes - 1), "prompt"]
    assert worker.log.count("comfyui_grown") == 1
