"""How each group of cases is played."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from bench import usage
from bench.hostile.case import Case
from bench.hostile.stage import CASE_S, SIZE, Stage
from sandbox.client import free_port
from sandbox.evil import Act, EvilComfy, answer
from tests.pictures import likeness

OWN = "a ComfyUI of ours"
ALIKE = 4.0  # levels; another picture or another orientation is 20 and more away


def batched(table: list[Case], size: int) -> list[list[Case]]:
    return [table[start : start + size] for start in range(0, len(table), size)]


def play_jobs(stage: Stage, group: list[Case], stage_of: Callable[[Case, int], Any]) -> None:
    """All of them queued at once; each has to end with its code."""
    jobs = [stage.hosted.add_stage(stage_of(case, n)) for n, case in enumerate(group)]
    for case, job in zip(group, jobs, strict=True):
        came, message = stage.outcome(job)
        stage.judge(case, came, f"({message:.200})")


def play_frames(make: Callable[[Stage, Any], str]) -> Callable[[Stage, list[Case]], None]:
    def play(stage: Stage, group: list[Case]) -> None:
        def stage_of(case: Case, number: int) -> Any:
            frames = [make(stage, case.given), stage.good]
            # Mostly in front, where nothing has to be done for it first.
            return stage.job_of(*(frames[::-1] if number % 8 == 7 else frames))

        play_jobs(stage, group, stage_of)

    return play


def play_ids(stage: Stage, group: list[Case]) -> None:
    for case in group:
        if case.expected != "left alone":
            came, _ = stage.outcome(stage.hosted.add_stage(None, id=case.given["id"]))
            stage.judge(case, came)
            continue
        after = stage.hosted.now()
        row = stage.hosted.add_stage(None, raw=case.given)
        first = stage.hosted.wait("pending", row, after=after)
        stage.hosted.wait("pending", row, after=first["seq"])
        stage.hosted.cancel(row)
        events = stage.hosted.events("request.start", after=after)
        touched = [e for e in events if e["data"]["method"] == "PATCH"]
        spool = list((stage.worker.state / "jobs").glob("*"))
        stage.judge(case, "touched" if touched or spool else "left alone")


def play_films(stage: Stage, group: list[Case]) -> None:
    """Pictures, five to a job behind a plain one, and texts, one to a clip.

    What reaches ComfyUI has to look like what a picture shows, and to be the very text.
    """
    pictures = batched([case for case in group if case.group == "pictures"], 5)
    texts = batched([case for case in group if case.group == "prompts"], 5)
    none: list[Case] = []
    for some, told in zip_longest(pictures, texts, fillvalue=none):
        stage.comfy.overrule()
        urls = [stage.serve(answer(case.given[0])) for case in some] or [stage.good] * len(told)
        job = stage.job_of(stage.good, *urls)
        job["clipPrompts"] = [*(case.given for case in told), *job["clipPrompts"]][: len(urls)]
        came, why = stage.outcome(stage.hosted.add_stage(job))
        for number, case in enumerate(some, start=1):
            sent = stage.comfy.pictures.get(number, b"")
            far = distance(sent, case.given[1]) if sent else 256.0
            stage.judge(case, came if far < ALIKE else f"{came}, {far:.0f} levels away", why)
        for case in told[: len(urls)]:
            stage.judge(case, came if case.given in stage.comfy.texts else "another text", why)


def distance(sent: bytes, image: Image.Image) -> float:
    wanted = ImageOps.fit(image.convert("RGB"), SIZE, Image.Resampling.LANCZOS)
    got = Image.open(io.BytesIO(sent))
    return likeness(np.asarray(got.convert("RGB")), np.asarray(wanted)) if got.size == SIZE else 256


def play_comfyui(stage: Stage, group: list[Case]) -> None:
    for case in group:
        path, given, times = case.given
        stage.comfy.prompted.clear()
        act = given if callable(given) else tell_record(stage.comfy, given)
        stage.comfy.overrule(path, act, times)
        came, why = stage.outcome(stage.hosted.add_stage(stage.job_of(stage.good, stage.good)))
        stage.judge(case, came, why)
    stage.comfy.overrule()


def tell_record(comfy: EvilComfy, record: Any) -> Act:
    return lambda talk: answer({comfy.prompt_id: record})(talk)


def play_api(stage: Stage, group: list[Case]) -> None:
    for case in group:
        path, act = case.given
        call = f"{'GET' if path == '/pending' else 'PATCH'} {path}"
        done = stage.proxy.spoil(call, act)
        if path == "/pending":
            went_on = done.wait(CASE_S) and stage.proxy.await_next(call, CASE_S)
        else:
            went_on = stage.outcome(stage.hosted.add_stage(None))[0] == "bad_job" and done.is_set()
        stage.judge(case, "goes on" if went_on else "stopped")


def play_heartbeats(stage: Stage, group: list[Case]) -> None:
    call = "POST /heartbeat"
    for case in group:
        done = stage.proxy.spoil(call, case.given)
        went_on = done.wait(CASE_S) and stage.proxy.await_next(call, CASE_S)
        stage.judge(case, "goes on" if went_on else "stopped")


def play_blob(stage: Stage, group: list[Case]) -> None:
    for case in group:
        done = stage.proxy.spoil("PUT /blob", case.given)
        came, why = stage.outcome(stage.hosted.add_stage(stage.job_of(stage.good, stage.good)))
        came = "delivered" if came == "renders" and done.is_set() else came
        stage.judge(case, came, why)


def play_slow(stage: Stage, group: list[Case]) -> None:
    """Workers in a hurry, as each case lasts until the worker gives up."""
    clips = [case for case in group if isinstance(case.given, tuple)]
    frames = [case for case in group if case not in clips]
    if frames:
        stage.start("hurried-jobs", JOB_TIMEOUT_S="4")
        play_frame_hosts(stage, frames)
        stage.worker.stop()
    if clips:
        stage.start("hurried-clips", CLIP_TIMEOUT_S="3")
        play_comfyui(stage, clips)
        stage.worker.stop()


def play_frame_hosts(stage: Stage, group: list[Case]) -> None:
    for case in group:
        url = stage.serve(case.given)
        came, why = stage.outcome(stage.hosted.add_stage(stage.job_of(url, stage.good)))
        stage.judge(case, came, why)


def play_real(stage: Stage, group: list[Case]) -> None:
    """The same pictures and texts with a ComfyUI look-alike as a child of the worker."""
    pictures = [case for case in group if case.group == "pictures"][-5:]
    texts = [case.given for case in group if case.group == "prompts"][:5]
    urls = [stage.good, *(stage.serve(answer(case.given[0])) for case in pictures)]
    job = {"frames": urls, "clipPrompts": texts, "watermark": True}
    came, why = stage.outcome(stage.hosted.add_stage(job))
    stage.judge(Case(OWN, "five pictures and texts", "renders", None), came, why)


PLAYERS: dict[str, Callable[[Stage, list[Case]], None]] = {
    "job data": lambda stage, group: play_jobs(stage, group, lambda case, _: case.given),
    "job ids": play_ids,
    "frame addresses": play_frames(lambda stage, url: str(url)),
    "frame redirects": play_frames(Stage.serve),
    "frame hosts": play_frames(Stage.serve),
    "no pictures": play_frames(lambda stage, content: stage.serve(answer(content))),
    "pictures and prompts": play_films,
    "ComfyUI": play_comfyui,
    "API": play_api,
    "Blob": play_blob,
}


def play_all(stage: Stage, table: list[Case], quick: bool) -> None:
    groups: dict[str, list[Case]] = {}
    for case in table:
        film = case.group in ("pictures", "prompts")
        groups.setdefault("pictures and prompts" if film else case.group, []).append(case)
    stage.start("evil-peers", CLIP_TIMEOUT_S="20")
    # Heartbeats have a thread of their own, and so have their troubles: 15 s each.
    beats = threading.Thread(
        target=play_heartbeats, args=(stage, groups.pop("heartbeats", [])), daemon=True
    )
    beats.start()
    slow = groups.pop("slow peers", [])
    for name, group in groups.items():
        began = time.monotonic()
        PLAYERS[name](stage, group)
        told = f"  {name:28} {len(group):4} cases {time.monotonic() - began:6.1f} s"
        peak = usage.megabytes(stage.worker.pid, "VmHWM")
        print(f"{told}, worker's peak {peak:.0f} MB", flush=True)
    beats.join()
    stage.worker.stop()
    play_slow(stage, slow)
    if not quick:
        stage.start("own-comfyui", COMFYUI_URL=f"http://127.0.0.1:{free_port()}")
        play_real(stage, table)
        stage.worker.stop()
