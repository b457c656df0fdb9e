"""What strikes, and where: at workers, ComfyUI, disks and every call of the hosted side."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench.chaos.crew import SIZE, Member
from sandbox.client import Hosted
from sandbox.edges import EDGES
from tests.pictures import picture

FULL_S = (0.2, 4.0)
ATTEMPTS = 1000
BAD_JOBS = 0.05
PAGE = "<!doctype html><h1>Checkpoint</h1>"
# A file of the customer's that is no picture; a text in its place would be the host's fault.
GIF = b"GIF89a"
FINAL = ("completed", "failed", "cancelled")


@dataclass
class Stage:
    """The sandbox, the workers, and the jobs with the pictures that their films must show."""

    hosted: Hosted
    crew: list[Member]
    rng: random.Random
    jobs: dict[str, list[int]] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    faults: Counter[str] = field(default_factory=Counter)
    small_disks: bool = False

    def add_jobs(self, count: int) -> None:
        for number in range(count):
            pictures = [number * 10 + n for n in range(self.rng.choice((2, 2, 3)))]
            frames = [self.hosted.put_frame(f"{p}.png", picture(SIZE, p)) for p in pictures]
            bad = self.rng.random() < BAD_JOBS
            if bad:
                frames[-1] = self.hosted.put_frame(f"{number}-bad.png", GIF)
            # Of one job alone, so that each has texts to read.
            prompts = [f"walk {number}, {n}" for n in range(len(frames) - 1)]
            job = f"job-{number:04}"
            self.hosted.add_job(frames, prompts, id=job, maxAttempts=ATTEMPTS)
            self.jobs[job] = pictures
            self.bad |= {job} if bad else set()

    def open_jobs(self) -> list[str]:
        return [job["id"] for job in self.hosted.jobs() if job["state"] not in FINAL]

    def spooled_jobs(self) -> list[str]:
        """What a worker has not let go of yet, whatever the hosted side has heard."""
        return [p.parent.name for m in self.crew for p in m.state.glob("jobs/*/job.json")]


def kill_worker(stage: Stage) -> str:
    stage.rng.choice(stage.crew).kill(rest=stage.rng.uniform(0, 1.5))
    return "worker: kill -9"


def stop_worker(stage: Stage) -> str:
    stage.rng.choice(stage.crew).ask_to_stop(rest=stage.rng.uniform(0, 1.5))
    return "worker: SIGTERM"


def harm_comfyui(stage: Stage) -> str:
    kinds = ("kill", "segfault", "oom", "hang", "freeze", "exit", "boot hang", "no_output")
    kind = stage.rng.choice(kinds)
    if kind in ("exit", "boot hang"):
        stage.hosted.script_comfyui({"on": "boot", "kind": kind.split()[-1]})
    else:
        at = stage.rng.randint(1, 8)
        stage.hosted.script_comfyui({"on": "prompt", "kind": kind, "at": at, "deaf": True})
    return f"ComfyUI: {kind}"


def harm_texts(stage: Stage) -> str:
    kind = stage.rng.choice(("kill", "segfault", "oom", "hang", "freeze", "damaged"))
    stage.hosted.script_comfyui({"on": "text", "kind": kind, "deaf": True})
    return f"ComfyUI, texts: {kind}"


ANSWERS: dict[str, dict[str, Any]] = {
    "429": {"status": 429, "body": {"error": "slow down"}, "headers": {"Retry-After": "1"}},
    "5xx": {"status": 503, "body": {"error": "busy"}},
    "HTML": {"status": 403, "body": PAGE},
    "HTML as 200": {"status": 200, "body": PAGE},
    "reset": {"reset": True},
    "slow": {"delay": 2},
    "lost reply": {"landThenReset": True},
    "cut short": {"truncate": 3},
}
CALLS = ("GET */pending", "PATCH */claim", "PATCH */complete", "PATCH */fail")


def harm_api(stage: Stage) -> str:
    name = stage.rng.choice([*ANSWERS, "black hole"])
    action = ANSWERS.get(name, {"blackhole": True})
    times = 1 if name == "black hole" else stage.rng.choice((1, 1, 2, 5))
    stage.hosted.fault(stage.rng.choice(CALLS), times=times, **action)
    return f"API: {name}"


def put_edge(stage: Stage) -> str:
    name = stage.rng.choice([*EDGES])
    call, times = stage.rng.choice(CALLS), stage.rng.choice((1, 1, 2, 5))
    stage.hosted.fault(call, times=times, edge=name)
    return f"edge: {name}"


def harm_heartbeats(stage: Stage) -> str:
    """Long enough, at times, for every lease to run out. None of them hides its sender."""
    name = stage.rng.choice(("429", "5xx", "HTML", "slow", "lost reply"))
    times = stage.rng.choice((2, 20, 100))
    stage.hosted.fault("POST */heartbeat", times=times, **ANSWERS[name])
    return f"heartbeats: {name}"


def harm_blob(stage: Stage) -> str:
    # The worker gives a silent store a minute, so silence is the rarest.
    name = stage.rng.choices([*ANSWERS, "black hole"], [4] * len(ANSWERS) + [1])[0]
    call = stage.rng.choice(("PUT /api/blob*", "PUT /api/blob*", "GET /api/blob*"))
    stage.hosted.fault(call, **ANSWERS.get(name, {"blackhole": True}))
    return f"Blob: {name}"


def harm_frames(stage: Stage) -> str:
    name = stage.rng.choice(("5xx", "429", "reset", "slow", "cut short"))
    stage.hosted.fault("GET /frames/*", **ANSWERS[name])
    return f"frames: {name}"


def fill_disk(stage: Stage) -> str:
    seconds = stage.rng.uniform(*FULL_S)
    member = stage.rng.choice(stage.crew)
    member.fill_disk(seconds)
    return "disk: full" if member.running else "disk: full before a start"


def cancel_job(stage: Stage) -> str:
    open_jobs = stage.open_jobs()[: len(stage.crew)]
    heard = bool(open_jobs) and stage.hosted.cancel(stage.rng.choice(open_jobs))
    return "API: cancel" if heard else "API: cancel, too late"


KINDS: dict[Callable[[Stage], str], int] = {
    kill_worker: 26,
    stop_worker: 14,
    harm_comfyui: 16,
    harm_texts: 4,
    harm_api: 12,
    put_edge: 20,
    harm_heartbeats: 5,
    harm_blob: 12,
    harm_frames: 5,
    fill_disk: 10,
    cancel_job: 2,
}


def strike(stage: Stage) -> None:
    kinds = {kind: n for kind, n in KINDS.items() if stage.small_disks or kind is not fill_disk}
    kind = stage.rng.choices([*kinds], [*kinds.values()])[0]
    stage.faults[kind(stage)] += 1
