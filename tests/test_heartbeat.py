"""Heartbeats: from register to exit, on their grid whatever the main thread does, and heard."""

from __future__ import annotations

import json
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ltx.progress import StageDurations
from ltx.settings import Settings
from sandbox.client import Hosted
from tests.conftest import Box, a_stage, made_once
from tests.programs import preceded

INTERVAL_S = 0.2
# Where the promise is broken, a beat is missing for as long as the work takes: 1.5 s or more.
LONGEST_GAP_S = 5 * INTERVAL_S
WORK_S = 1.5
BEAT = "POST /api/videogen/heartbeat"
PROGRESS = {"stage", "clip", "clips", "step", "steps", "percent", "etaSec", "lastProgressAt"}

Beat = dict[str, Any]


class Watched(NamedTuple):
    """What one worker sent while it did a job, hung in another and drained."""

    beats: list[Beat]
    done: str
    hung: str
    ended: dict[str, Any]
    rejected: list[Beat]
    registered: dict[str, Any]

    def during(self, job: str, stage: str) -> list[Beat]:
        return [
            beat
            for beat in self.beats
            if beat["job"] == job and beat["data"]["progress"]["stage"] == stage
        ]


def slow_encoder(folder: Path) -> str:
    """A PATH on which ffmpeg takes its time over the trimming of a clip."""
    return preceded(folder, "ffmpeg", f'case "$*" in *trim=*) sleep {WORK_S};; esac')


@pytest.fixture(scope="module")
def watched(shared_folder: Path) -> Watched:
    folder = made_once(shared_folder / "watched", watch_in)
    return Watched(**json.loads((folder / "record.json").read_text()))


def watch_in(folder: Path) -> None:
    with a_stage(folder) as box:
        record = watch(box, box.hosted)
    (folder / "record.json").write_text(json.dumps(record._asdict()))


def watch(box: Box, hosted: Hosted) -> Watched:
    hosted.fault("PUT /api/blob*", delay=WORK_S)
    path = slow_encoder(box.folder)
    worker = box.start(PATH=path, HEARTBEAT_INTERVAL_S=str(INTERVAL_S))
    hosted.wait("heartbeat", where=lambda beat: beat["data"]["status"] == "idle")
    done = box.add_job(clips=2)
    complete = hosted.wait("complete", done, timeout=60)
    hosted.wait("heartbeat", after=complete["seq"], where=lambda b: b["data"]["status"] == "idle")
    hosted.script_comfyui({"on": "prompt", "kind": "hang", "at": 3})
    hosted.fault("PATCH */fail", delay=WORK_S)
    hung = box.add_job()
    step = hosted.wait(
        "comfyui.step", after=complete["seq"], where=lambda e: e["data"]["step"] == 3
    )
    hosted.wait("heartbeat", hung, where=lambda beat: beat["t"] > step["t"] + WORK_S)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0, worker.log
    return Watched(
        hosted.events("heartbeat"),
        done,
        hung,
        hosted.wait("fail", hung),
        hosted.events("heartbeat.rejected"),
        hosted.wait("register"),
    )


def test_beats_tell_idle_busy_and_draining_with_the_job(watched: Watched) -> None:
    told = [(beat["data"]["status"], beat["data"]["jobId"]) for beat in watched.beats]
    changes = [now for before, now in pairwise([(None, None), *told]) if now != before]
    drained = [
        ("idle", None),
        ("busy", watched.done),
        ("idle", None),
        ("busy", watched.hung),
        ("draining", watched.hung),
    ]
    # A last beat may come between the job's end and the worker's.
    assert changes in (drained, [*drained, ("draining", None)])


def test_every_beat_has_the_contracts_body(watched: Watched) -> None:
    assert not watched.rejected
    for beat in watched.beats:
        body = beat["data"]
        assert body.keys() == {"cancel", "workerId", "status", "jobId", "progress"}
        assert body["workerId"] == "test-worker"
        assert body["progress"].keys() == PROGRESS


def test_beats_follow_registration_at_once_and_go_on_to_the_exit(watched: Watched) -> None:
    first = watched.beats[0]
    assert first["seq"] > watched.registered["seq"]
    assert first["t"] - watched.registered["t"] < LONGEST_GAP_S
    assert watched.ended["t"] - watched.beats[-1]["t"] < LONGEST_GAP_S


def test_percent_never_falls_within_a_job(watched: Watched) -> None:
    percents = [b["data"]["progress"]["percent"] for b in watched.beats if b["job"] == watched.done]
    assert percents == sorted(percents)
    assert percents[0] < 50
    assert 95 <= percents[-1] <= 100


def test_the_eta_comes_from_the_clips_that_this_machine_made_before(watched: Watched) -> None:
    def etas(job: str, *clips: int) -> list[int | None]:
        progress = [b["data"]["progress"] for b in watched.beats if b["job"] == job]
        return [now["etaSec"] for now in progress if now["clip"] in clips]

    assert set(etas(watched.done, 0, 1)) == {None}, "it was made up before the first clip"
    assert None not in etas(watched.done, 2)
    assert None not in etas(watched.hung, 0, 1)
    assert etas(watched.done, 2)[-1] == 0


def durations_of(folder: Path, size: str = "1280x720") -> StageDurations:
    return StageDurations(Settings.load({"STATE_DIR": str(folder), "VIDEO_SIZE": size}, needed=()))


def test_the_pace_outlives_a_restart_but_not_a_change_of_what_sets_it(tmp_path: Path) -> None:
    for seconds in (50.0, 40.0, 400.0):
        durations_of(tmp_path).note("clip", seconds)
    assert durations_of(tmp_path).typical("clip") == 50.0
    assert durations_of(tmp_path).typical("joining") is None
    assert durations_of(tmp_path, "1920x1080").typical("clip") is None


def test_a_pace_file_that_is_damaged_counts_for_nothing(tmp_path: Path) -> None:
    durations_of(tmp_path).note("clip", 50.0)
    path = tmp_path / "pace.json"
    path.write_text(path.read_text().replace("50.0", '"soon"'))
    assert durations_of(tmp_path).typical("clip") is None
    path.write_text("{")
    assert durations_of(tmp_path).typical("clip") is None


def test_progress_counts_clips_and_steps(watched: Watched) -> None:
    now = watched.during(watched.hung, "rendering")[-1]["data"]["progress"]
    assert (now["clip"], now["clips"], now["step"], now["steps"]) == (1, 1, 3, 8)
    last = watched.during(watched.done, "uploading")[-1]["data"]["progress"]
    assert (last["clip"], last["clips"]) == (2, 2)


def test_the_time_of_the_last_progress_stands_still_while_nothing_moves(watched: Watched) -> None:
    hung = [b for b in watched.during(watched.hung, "rendering") if b["data"]["status"] == "busy"]
    times = [b["data"]["progress"]["lastProgressAt"] for b in hung]
    assert len(set(times[-5:])) == 1
    assert (
        times[-1]
        > watched.during(watched.done, "uploading")[0]["data"]["progress"]["lastProgressAt"]
    )


@pytest.mark.parametrize(
    ("job", "stage"),
    [("done", "encoding"), ("done", "uploading"), ("hung", "rendering"), ("hung", "reporting")],
)
def test_the_cadence_holds_while_the_main_thread(watched: Watched, job: str, stage: str) -> None:
    # The work takes 1.5 s, which is seven beats; a loaded machine may lose some of them.
    assert len(watched.during(getattr(watched, job), stage)) >= 3


def test_no_beat_is_missing_between_the_first_and_the_last(watched: Watched) -> None:
    gaps = [after["t"] - before["t"] for before, after in pairwise(watched.beats)]
    assert max(gaps) < LONGEST_GAP_S


def test_slow_answers_do_not_shift_the_grid_of_beats(box: Box) -> None:
    box.hosted.fault(BEAT, times=-1, delay=0.4)
    box.start(HEARTBEAT_INTERVAL_S="0.5")
    seq = 0
    for _ in range(6):
        seq = box.hosted.wait("heartbeat", after=seq)["seq"]
    calls = box.hosted.requests(BEAT)
    # Six beats on a grid of 0.5 s take 2.5 s; a pause after each answer would make it 4.5 s.
    assert calls[5]["t"] - calls[0]["t"] < 3.5
    assert calls[5]["t"] - calls[0]["t"] > 2.3


def test_a_job_survives_every_answer_a_heartbeat_can_get(box: Box) -> None:
    hosted = box.hosted
    answers: list[dict[str, Any]] = [
        {"status": 500, "body": {"error": "oops"}},
        {"status": 401, "body": {"error": {"code": "unauthorized"}}},
        {"status": 403, "body": "<h1>Checkpoint</h1>"},
        {"status": 404, "body": {"error": "no such call"}},
        {"status": 200, "body": "not json"},
        {"status": 200, "body": ["a list"]},
        {"status": 200, "body": {"cancel": 5, "leaseUntil": "soon"}},
        {"status": 200, "body": {"cancel": [None, "another-job"]}},
        {"reset": True},
        {"truncate": 1},
    ]
    # The last of them never answers at all, for longer than the job takes.
    for answer in [*answers, {"blackhole": True}]:
        hosted.fault(BEAT, **answer)
    job = box.add_job()
    worker = box.run_once(HEARTBEAT_INTERVAL_S="0.05")
    assert worker.process.returncode == 0, worker.log
    assert len(hosted.requests(BEAT)) == len(answers) + 1
    claimed, done = hosted.wait("claim", job), hosted.wait("complete", job)
    # A beat without an answer holds its thread for 15 s.
    assert done["t"] - claimed["t"] < 12


def test_the_first_and_every_tenth_failed_beat_is_logged(box: Box) -> None:
    box.hosted.fault(BEAT, times=21, status=500, body={"error": "oops"})
    worker = box.start(HEARTBEAT_INTERVAL_S="0.05")
    recovered = box.hosted.wait("heartbeat")
    # The answer to the first good beat has been read once the next one comes.
    box.hosted.wait("heartbeat", after=recovered["seq"])
    lines = [line for line in worker.log.splitlines() if "heartbeat_unavailable" in line]
    assert [line.partition("tries=")[2].split()[0] for line in lines] == ["1", "10", "20"]
    assert worker.log.count("heartbeat_back tries=21") == 1


@pytest.mark.parametrize("moment", ["rendering", "uploading"])
def test_a_cancel_in_the_answer_ends_the_job_and_nothing_is_stored(box: Box, moment: str) -> None:
    hosted = box.hosted
    if moment == "rendering":
        hosted.script_comfyui({"on": "prompt", "kind": "hang", "deaf": True, "at": 3})
    else:
        hosted.fault("PUT /api/blob*", stopReading=True)
    job = box.add_job()
    worker = box.start("run", "--once", HEARTBEAT_INTERVAL_S=str(INTERVAL_S))
    hosted.wait("heartbeat", job, where=lambda b: b["data"]["progress"]["stage"] == moment)
    assert hosted.cancel(job)
    told = hosted.wait("heartbeat", job, where=lambda beat: job in beat["data"]["cancel"])
    failed = hosted.wait("fail", job)
    # Nothing else would end the job within minutes.
    assert failed["t"] - told["t"] < 5
    assert worker.wait() == 1
    assert failed["data"]["error"]["code"] == "cancelled"
    assert hosted.job(job)["state"] == "cancelled"
    assert not hosted.blobs()
    assert not Path(f"/proc/{hosted.wait('comfyui.boot')['data']['pid']}").exists()
