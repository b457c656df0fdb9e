"""What the operator types: status, doctor, and the switches for processes and clips."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from tests.conftest import WORKER, Box


def ask(box: Box, *arguments: str, **changes: str) -> tuple[int, str]:
    """Exit code and output of a command."""
    command = [sys.executable, str(WORKER), *arguments]
    done = subprocess.run(
        command, env=box.environ(**changes), capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout


def findings(box: Box, **changes: str) -> tuple[int, dict[str, dict[str, Any]]]:
    code, output = ask(box, "doctor", "--json", **changes)
    return code, {finding["check"]: finding for finding in json.loads(output)}


def pids_of(box: Box, job: str) -> list[int]:
    """The ComfyUI processes that were given this job's prompts, one for each prompt."""
    prompts = box.hosted.events(kind="comfyui.prompt")
    return [event["data"]["pid"] for event in prompts if job in json.dumps(event["data"])]


def test_status_tells_of_a_job_while_it_renders_and_says_when_nobody_works(box: Box) -> None:
    box.hosted.script_comfyui({"on": "prompt", "kind": "hang"})
    job = box.add_job()
    worker = box.start("run")
    box.hosted.wait("heartbeat", where=lambda event: event["data"]["progress"]["step"] == 3)
    code, output = ask(box, "status", "--json")
    status = json.loads(output)
    assert code == 0
    assert (status["running"], status["waiting"]) == (True, [job])
    assert (status["progress"]["jobId"], status["progress"]["stage"]) == (job, "rendering")
    assert status["lastHeartbeatAt"].endswith("Z")
    assert f"job {job}: rendering, clip 1/1, step 3" in ask(box, "status")[1]
    worker.signal(signal.SIGTERM)
    worker.wait()
    code, output = ask(box, "status")
    assert code == 0
    assert "No worker runs" in output
    assert f"job {job}: shutdown" in output
    assert "in the spool: nothing" in output


def test_status_knows_an_idle_worker(box: Box) -> None:
    box.start("run")
    box.hosted.wait("heartbeat", after=box.hosted.wait("heartbeat")["seq"])
    code, output = ask(box, "status")
    assert code == 0
    assert output.startswith("idle\nlast heartbeat 2")


def test_the_doctor_finds_nothing_wrong_with_a_good_box_that_never_ran(box: Box) -> None:
    code, found = findings(box, WORKER_ID="")
    assert code == 0, found
    assert {name: finding["status"] for name, finding in found.items()} == {
        **dict.fromkeys(("settings", "programs", "api", "blob", "watermark", "comfyui"), "OK"),
        "gpu": "WARN",
    }


def test_the_doctor_names_each_trouble_and_the_next_step(box: Box) -> None:
    box.watermark.write_bytes(b"no picture")
    code, found = findings(box, VIDEOGEN_WORKER_SECRET="not-the-right-one")
    assert code == 1
    troubles = {name for name, finding in found.items() if finding["status"] == "FAIL"}
    assert troubles == {"api", "watermark"}
    assert all(found[name]["next"] for name in troubles)
    code, output = ask(box, "doctor", VIDEO_SIZE="big", API_URL="")
    assert code == 1
    assert "FAIL settings: VIDEO_SIZE='big'" in output
    assert "FAIL settings: API_URL is not set" in output


def test_one_process_makes_a_whole_job_when_asked_to(box: Box) -> None:
    job = box.add_job(2)
    box.run_once(COMFYUI_RESTART="job")
    first, second = pids_of(box, job)
    assert first == second
    assert box.hosted.job(job)["state"] == "completed"


def test_a_clip_that_is_cut_short_is_rendered_again_only_when_the_gate_is_closed(box: Box) -> None:
    attempts = {}
    for gate in ("enforce", "warn", "off"):
        box.hosted.script_comfyui({"on": "prompt", "kind": "short_clip"})
        job = box.add_job()
        worker = box.run_once(CLIP_GATE=gate)
        attempts[gate] = len(pids_of(box, job))
        assert ("bad_clip_kept" in worker.log) == (gate == "warn")
        assert box.hosted.job(job)["state"] == ("completed" if gate == "enforce" else "failed")
    assert attempts == {"enforce": 2, "warn": 1, "off": 1}
