"""A job's texts are read once, by a process that renders no clip, and kept in files."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ltx.comfyui.workflow import NEGATIVE_PROMPT
from sandbox.client import ROOT
from sandbox.launch import Running
from tests.comfyui.test_comfyui import frame_host
from tests.conftest import Box, foreign_comfyui
from tests.pictures import picture

LOADER = "LTXWorkerLoadConditioning"


@pytest.fixture
def box(box: Box) -> Box:
    box.settings["LTX_TEXT"] = "job"
    return box


def pids(box: Box, kind: str) -> list[int]:
    return [event["data"]["pid"] for event in box.hosted.events(f"comfyui.{kind}")]


def encoded(box: Box) -> list[str]:
    """Every text that an encoder has read, in their order."""
    return [event["data"]["text"] for event in box.hosted.events("comfyui.encoded")]


def texts(clips: int, words: str = "walk on") -> list[str]:
    return [*(f"{words}, part {n}" for n in range(clips)), NEGATIVE_PROMPT]


def kinds(box: Box) -> list[set[str]]:
    """The node classes of each clip's prompt."""
    prompts = (one["data"]["prompt"] for one in box.hosted.events("comfyui.prompt"))
    return [{node["class_type"] for node in prompt.values()} for prompt in prompts]


def reads_files(box: Box) -> list[bool]:
    """Of each clip's prompt, whether it loads files; otherwise it has the encoder."""
    found = [("CLIPTextEncode" in some, LOADER in some) for some in kinds(box)]
    assert all(encoder is not files for encoder, files in found)
    return [files for _, files in found]


def fault(kind: str, on: str = "text", **details: Any) -> dict[str, Any]:
    return {"on": on, "kind": kind, **details}


def files(box: Box) -> list[Path]:
    return sorted((box.state / "conditioning").iterdir())


def completed(box: Box, job: str, worker: Running) -> None:
    assert box.hosted.job(job)["state"] == "completed", worker.log
    assert box.children() == []


def test_texts_are_read_in_one_prompt_and_every_clip_loads_the_files(box: Box) -> None:
    job = box.add_job(clips=2)
    worker = box.run_once()
    completed(box, job, worker)
    (reader,) = pids(box, "text")
    assert sorted(encoded(box)) == sorted(texts(2))
    assert reads_files(box) == [True, True]
    assert reader not in pids(box, "prompt")
    assert len(set(pids(box, "prompt"))) == 2
    assert re.search(rf"text_done job={job} encoded=3 known=0 seconds=[\d.]+\n", worker.log)
    assert re.search(r"job_done .* text=[\d.]+ ", worker.log)


def test_the_reader_boots_beside_the_first_clips_process(box: Box) -> None:
    box.hosted.script_comfyui(fault("slow", "boot", seconds=1), fault("slow", "boot", seconds=1))
    box.add_job()
    box.start("run", "--once")
    ready = box.hosted.wait("comfyui.ready")
    assert len([one for one in box.hosted.events("comfyui.boot") if one["seq"] < ready["seq"]]) == 2


def test_known_texts_start_no_process_and_new_ones_are_read_alone(box: Box) -> None:
    for clips in (1, 1, 2):
        job = box.add_job(clips)
        completed(box, job, box.run_once())
    assert sorted(encoded(box)) == sorted(texts(2))
    assert [set(pids(box, "boot")) - set(pids(box, "prompt"))] == [set(pids(box, "text"))]
    known = [re.findall(r"encoded=(\d) known=(\d)", worker.log) for worker in box.running]
    assert known == [[("2", "0")], [("0", "2")], [("1", "2")]]


def test_files_are_for_the_owner_alone_and_their_names_tell_nothing(box: Box) -> None:
    box.add_job()
    box.run_once()
    assert stat.S_IMODE((box.state / "conditioning").stat().st_mode) == 0o700
    assert [stat.S_IMODE(file.stat().st_mode) for file in files(box)] == [0o600] * 2
    assert all(re.fullmatch("[0-9a-f]{64}", file.name) for file in files(box))


def test_the_film_is_the_same_whoever_reads_the_texts(box: Box) -> None:
    frames = [str(box.folder / "hosted" / f"{n}.png") for n in range(3)]
    for number, frame in enumerate(frames):
        shutil.copy(picture_file(box, number), frame)
    films = []
    for mode in ("job", "clip"):
        film = box.folder / f"{mode}.mp4"
        command = ("render", *frames, "--prompt", "walk on", "--prompt", "turn", "--seed", "7")
        worker = box.start(*command, "-o", str(film), LTX_TEXT=mode)
        assert worker.wait() == 0, worker.log
        films.append(film.read_bytes())
    assert films[0] == films[1]
    assert reads_files(box) == [True, True, False, False]


def picture_file(box: Box, number: int) -> Path:
    path = box.folder / f"picture-{number}.png"
    path.write_bytes(picture((320, 180), number))
    return path


@pytest.mark.parametrize("restart", ["clip", "job"])
def test_ltx_text_clip_has_the_encoder_in_every_graph(box: Box, restart: str) -> None:
    job = box.add_job(clips=2)
    completed(box, job, box.run_once(LTX_TEXT="clip", COMFYUI_RESTART=restart))
    assert reads_files(box) == [False, False]
    assert pids(box, "text") == []


def test_with_restart_job_the_one_process_loads_the_files(box: Box) -> None:
    job = box.add_job(clips=2)
    completed(box, job, box.run_once(COMFYUI_RESTART="job"))
    assert reads_files(box) == [True, True]
    assert len(set(pids(box, "prompt"))) == len(pids(box, "text")) == 1


def test_a_standby_reads_nothing_and_renders_from_files(box: Box) -> None:
    job = box.add_job(clips=2)
    completed(box, job, box.run_once(COMFYUI_STANDBY="1"))
    assert reads_files(box) == [True, True]
    assert pids(box, "text")[0] not in pids(box, "prompt")


# Without the pack


@pytest.mark.parametrize("lack", ["nodes", "encoder", "version"])
def test_without_what_it_takes_every_clip_reads_its_texts_and_that_is_said_once(
    box: Box, lack: str
) -> None:
    comfyui = shutil.copytree(ROOT / "sandbox" / "comfyui", box.folder / "comfyui")
    encoder = comfyui / "models" / "text_encoders" / "gemma-3-12b-it-qat-Q4_K_M.gguf"
    version = comfyui / "comfyui_version.py"
    if lack != "nodes":
        (encoder if lack == "encoder" else version).unlink()
    missing = {"LOOKALIKE_MISSING_NODES": LOADER if lack == "nodes" else ""}
    jobs = [box.add_job(clips=2), box.add_job()]
    worker = box.start("run", COMFYUI_DIR=str(comfyui), **missing)
    assert [box.await_outcome(job)["kind"] for job in jobs] == ["complete"] * 2, worker.log
    assert reads_files(box) == [False] * 3
    assert worker.log.count("WARNING texts_by_clip ") == 1
    told = {"nodes": "lacks its nodes", "encoder": encoder.name, "version": version.name}
    assert told[lack] in worker.log


def test_a_broken_pack_costs_time_and_no_job(box: Box) -> None:
    box.hosted.script_comfyui(*[fault("pack_broken", "boot")] * 3)
    job = box.add_job()
    worker = box.run_once()
    completed(box, job, worker)
    assert reads_files(box) == [False]
    assert "texts_by_clip" in worker.log


def test_a_folder_that_cannot_be_made_costs_time_and_no_job(box: Box) -> None:
    box.add_job()
    box.run_once()
    shutil.rmtree(box.state / "conditioning")
    (box.state / "conditioning").write_text("in the way")
    job = box.add_job()
    worker = box.run_once()
    completed(box, job, worker)
    assert reads_files(box) == [True, False]
    assert "conditioning: File exists" in worker.log


def test_a_foreign_comfyui_always_gets_the_encoder(box: Box) -> None:
    with foreign_comfyui(box) as foreign:
        job = box.add_job(clips=2)
        completed(box, job, box.run_once())
        assert set(pids(box, "boot")) == {foreign.process.pid}
    assert reads_files(box) == [False, False]


# When reading fails


@pytest.mark.parametrize("kind", ["oom", "segfault", "kill", "damaged"])
def test_what_a_fresh_process_may_mend_is_tried_once_more_with_what_is_missing(
    box: Box, kind: str
) -> None:
    box.hosted.script_comfyui(fault(kind, at=2))
    job = box.add_job(clips=2)
    worker = box.run_once()
    completed(box, job, worker)
    assert reads_files(box) == [True, True]
    assert len(set(pids(box, "text"))) == 2
    assert "text_retry" in worker.log
    if kind != "damaged":
        assert sorted(encoded(box)) == sorted(texts(2)), "a text that was kept was read again"


def test_texts_that_were_all_kept_are_not_read_again_whatever_became_of_their_prompt(
    box: Box,
) -> None:
    box.hosted.script_comfyui(fault("no_history"))
    job = box.add_job()
    completed(box, job, box.run_once())
    assert sorted(encoded(box)) == sorted(texts(1))


@pytest.mark.parametrize(
    ("faults", "code", "told", "tries"),
    [
        ([fault("execution_error")], "comfyui_failed", "expected scalar type", 1),
        ([fault("oom"), fault("oom")], "gpu_out_of_memory", "OutOfMemoryError", 2),
        ([fault("kill"), fault("segfault")], "comfyui_failed", "it ended by itself", 2),
        ([fault("reject")], "comfyui_rejected", "Prompt refused", 1),
    ],
)
def test_a_job_whose_texts_cannot_be_read_fails_before_any_clip(
    box: Box, faults: list[dict[str, Any]], code: str, told: str, tries: int
) -> None:
    box.hosted.script_comfyui(*faults)
    job = box.add_job()
    worker = box.run_once()
    error = box.failure(job)
    assert error["code"] == code
    assert told in error["message"]
    assert len(set(pids(box, "text"))) == tries, worker.log
    assert pids(box, "prompt") == []
    assert box.children() == []


def test_texts_that_take_too_long_end_with_the_clips_time(box: Box) -> None:
    box.hosted.script_comfyui(fault("hang", deaf=True))
    job = box.add_job()
    box.run_once(CLIP_TIMEOUT_S="4")
    error = box.failure(job)
    assert error["code"] == "clip_timeout"
    assert "The texts were not encoded within 4 s." in error["message"]
    assert box.children() == []


def test_a_file_that_comfyui_cannot_load_is_made_again(box: Box) -> None:
    box.hosted.script_comfyui(fault("damaged", "prompt"))
    job = box.add_job()
    worker = box.run_once()
    completed(box, job, worker)
    assert [clip["attempts"] for clip in box.hosted.job(job)["outcome"]["clips"]] == [2]
    assert sorted(encoded(box)) == sorted([*texts(1), *texts(1)])


def test_a_file_that_is_damaged_between_jobs_is_made_again_before_it_is_loaded(box: Box) -> None:
    box.add_job()
    box.run_once()
    first, second = files(box)
    first.write_bytes(first.read_bytes()[:-1])
    job = box.add_job()
    completed(box, job, box.run_once())
    assert len(encoded(box)) == 3
    assert pids(box, "prompt") == list(dict.fromkeys(pids(box, "prompt")))
    assert files(box) == [first, second]


# Killed and taken up


def test_after_kill_9_while_texts_are_read_none_is_read_twice(box: Box) -> None:
    box.hosted.script_comfyui(fault("hang", at=3, deaf=True))
    job = box.add_job(clips=2)
    worker = box.start("run")
    box.hosted.wait("comfyui.encoded", after=box.hosted.wait("comfyui.encoded")["seq"])
    stage = {"stage": "conditioning"}
    box.hosted.wait("heartbeat", where=lambda one: stage.items() <= one["data"]["progress"].items())
    readers = [os.pidfd_open(pid) for pid in pids(box, "boot")]
    worker.end()
    wait_for_all(readers)
    kept = len(files(box))
    worker = box.start("run", "--once")
    worker.wait()
    completed(box, job, worker)
    assert kept == 2
    assert sorted(encoded(box)) == sorted(texts(2))
    assert f"text_done job={job} encoded=1 known=2" in worker.log


def wait_for_all(handles: list[int]) -> None:
    for handle in handles:
        assert select.select([handle], [], [], 10)[0]
        os.close(handle)


# Kept between jobs


KEPT = {"LTX_TEXT_KEEP_GB": "0"}


def test_a_kept_process_reads_the_texts_of_the_next_job_with_its_encoder_loaded(box: Box) -> None:
    jobs = [box.add_job(text="walk on"), box.add_job(text="turn left")]
    worker = box.start("run", **KEPT)
    assert [box.await_outcome(job)["kind"] for job in jobs] == ["complete", "complete"], worker.log
    first, second = pids(box, "text")
    assert first == second
    assert box.children() == [first]


def test_a_kept_process_goes_when_no_job_comes(box: Box) -> None:
    job = box.add_job()
    worker = box.start("run", **KEPT, COMFYUI_IDLE_STOP_S="1")
    reader = box.hosted.wait("comfyui.text")["data"]["pid"]
    handle = os.pidfd_open(reader)
    assert box.await_outcome(job)["kind"] == "complete", worker.log
    wait_for_all([handle])
    assert worker.process.poll() is None


def test_a_kept_process_goes_with_the_worker(box: Box) -> None:
    job = box.add_job()
    worker = box.start("run", **KEPT)
    assert box.await_outcome(job)["kind"] == "complete", worker.log
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert box.children() == []


def test_while_the_worker_waits_a_reader_that_is_gone_is_loaded_ahead(box: Box) -> None:
    job = box.add_job()
    worker = box.start("run", **KEPT, COMFYUI_STANDBY="1")
    assert box.await_outcome(job)["kind"] == "complete", worker.log
    polled = box.hosted.wait("pending", after=box.hosted.events("complete")[0]["seq"])
    (reader,) = pids(box, "text")
    os.kill(reader, signal.SIGKILL)
    held = box.hosted.wait("comfyui.hold", after=polled["seq"])["data"]["pid"]
    last = box.add_job(text="turn left")
    assert box.await_outcome(last)["kind"] == "complete", worker.log
    assert pids(box, "text") == [reader, held]


def test_the_encoder_loads_while_the_frames_are_downloaded(box: Box) -> None:
    """The first frame comes when both processes are up, the third when the encoder loads."""

    def await_ready() -> None:
        box.hosted.wait("comfyui.ready", after=box.hosted.wait("comfyui.ready")["seq"])

    steps: Iterator[Callable[[], object]]
    steps = iter([await_ready, lambda: None, lambda: box.hosted.wait("comfyui.hold")])
    with frame_host(lambda: next(steps)()) as url:
        job = box.hosted.add_job([url] * 3, ["walk on"] * 2)
        completed(box, job, box.run_once())
    assert pids(box, "hold") == pids(box, "text")


def test_an_encoder_that_changed_on_the_disk_is_loaded_anew(box: Box) -> None:
    comfyui = box.folder / "comfyui"
    shutil.copytree(ROOT / "sandbox" / "comfyui", comfyui)
    worker = box.start("run", **KEPT, COMFYUI_DIR=str(comfyui))
    assert box.await_outcome(box.add_job())["kind"] == "complete", worker.log
    os.utime(comfyui / "models" / "text_encoders" / "gemma-3-12b-it-qat-Q4_K_M.gguf")
    assert box.await_outcome(box.add_job())["kind"] == "complete", worker.log
    assert sorted(encoded(box)) == sorted([*texts(1), *texts(1)])
    assert len(set(pids(box, "text"))) == 2
