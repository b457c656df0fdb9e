"""What the operator types: status, doctor, and the switches for processes and clips."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from sandbox.launch import WORKER
from tests.conftest import Box


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
    assert (status["running"], status["degraded"]) == (True, None)
    assert status["waiting"] == {job: "to be made"}
    assert (status["progress"]["jobId"], status["progress"]["stage"]) == (job, "rendering")
    assert status["lastHeartbeatAt"].endswith("Z")
    told = ask(box, "status")[1]
    assert f"job {job}: rendering, clip 1/1, step 3/8" in told
    assert f"in the spool: {job} (to be made)" in told
    assert re.search(r"last heartbeat 2\S+Z \(-?\d+ s ago\)", told)
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


def test_status_says_that_a_box_takes_no_jobs_and_why(box: Box) -> None:
    box.hosted.script_comfyui(*[{"on": "boot", "kind": "exit", "rc": 1}] * 40)
    jobs = [box.add_job() for _ in range(3)]
    box.start("run")
    degraded = box.hosted.wait(
        "heartbeat", timeout=60, where=lambda event: event["data"]["status"] == "degraded"
    )
    # The status file is written by the main loop, at the latest with its next wait.
    box.hosted.wait("heartbeat", after=box.hosted.wait("heartbeat", after=degraded["seq"])["seq"])
    told = json.loads(ask(box, "status", "--json")[1])
    assert told["degraded"] == "comfyui_unavailable"
    text = ask(box, "status")[1]
    assert "It takes no job until this is mended: The renderer did not start." in text
    assert f"job {jobs[0]}: comfyui_unavailable" in text


def test_status_tells_that_a_film_waits_to_be_reported(box: Box) -> None:
    box.hosted.fault("PATCH /api/videogen/*/complete", times=100, status=503, body={})
    job = box.add_job()
    worker = box.start("run")
    box.hosted.wait("fault", timeout=40)
    worker.signal(signal.SIGTERM)
    worker.wait()
    assert f"in the spool: {job} (to report complete)" in ask(box, "status")[1]


def test_the_doctor_finds_nothing_wrong_with_a_good_box_that_never_ran(box: Box) -> None:
    code, found = findings(box, WORKER_ID="")
    assert code == 0, found
    sound = {"settings", "env file", "programs", "ffmpeg", "interpreter", "api", "blob"}
    sound |= {"watermark", "state", "disk", "models", "comfyui", "workflow", "texts"}
    assert {name: found[name]["status"] for name in sound} == dict.fromkeys(sound, "OK")
    assert {*found} - sound == {"memory", "gpu", "service"}
    assert box.hosted.blobs() == {}, "the probe was left in the store"
    for pid in {event["data"]["pid"] for event in box.hosted.events("comfyui.boot")}:
        assert not Path(f"/proc/{pid}").exists(), "the ComfyUI it booted still runs"


def test_the_doctor_works_beside_a_worker_that_renders(box: Box) -> None:
    box.hosted.script_comfyui({"on": "prompt", "kind": "hang", "at": 3})
    job = box.add_job()
    box.start("run")
    box.hosted.wait("comfyui.step", where=lambda event: event["data"]["step"] == 3)
    code, found = findings(box)
    assert code == 0, found
    assert "is not ended by us" in found["comfyui"]["detail"]
    [pid] = pids_of(box, job)
    assert Path(f"/proc/{pid}").exists(), "the doctor ended the worker's ComfyUI"
    assert not box.hosted.events("comfyui.free"), "the doctor emptied its caches"


def test_the_doctor_names_the_settings_and_skips_the_rest(box: Box) -> None:
    code, output = ask(box, "doctor", VIDEO_SIZE="big", API_URL="")
    assert code == 1
    assert "FAIL settings: VIDEO_SIZE='big'" in output
    assert "FAIL settings: API_URL is not set" in output
    assert "WARN comfyui: skipped, as settings failed" in output


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


def test_the_workflow_of_a_job_is_a_pair_that_belongs_together(box: Box) -> None:
    command = ["workflow", "a.png", "b.png", "--prompt", "walk", "--negative", "blurry"]
    plain, pair = (json.loads(ask(box, *command, *more)[1]) for more in ([], ["--text", "job"]))
    assert "CLIPTextEncode" in kinds_of(plain)
    saved, loaded = (keys_in(pair[part]) for part in ("texts", "clip"))
    assert len(saved) == 2
    assert saved == loaded
    assert not {"CLIPTextEncode", "DualCLIPLoaderGGUF"} & kinds_of(pair["clip"])


def kinds_of(graph: dict[str, Any]) -> set[str]:
    return {node["class_type"] for node in graph.values()}


def keys_in(graph: dict[str, Any]) -> set[str]:
    return {node["inputs"]["key"] for node in graph.values() if "key" in node["inputs"]}
