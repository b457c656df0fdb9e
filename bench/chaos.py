"""Nothing lost: real workers against one sandbox while everything around and in them dies.

    make chaos                                  # 200 jobs, 300 faults, 4 workers
    python -m bench.chaos --jobs 20 --faults 30 --seconds 60 --seed 7

The schedule follows from the seed; how it meets the workers is up to the machine. Ends with 1 when
a job is lost or delivered twice, a film is not the job's own, a job is failed for good for what
happened around it, a worker ends by itself, a process is left over or a stop takes too long.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ltx.job import job_bytes
from ltx.settings import Size
from sandbox.client import LIGHT, ROOT, Hosted, inherited
from tests.pictures import likeness, paint, picture

SIZE = (128, 64)
CLIP_FRAMES = 120
LEASE_S, BEAT_S = 4.0, 0.5
STOP_S, ORPHAN_S, TAIL_S, YOUNG_S = 20.0, 5.0, 150.0, 3.0
TICK_S = 0.1
# What a job may need, without which none is claimed, and room for logs and what waits.
DISK_BYTES = job_bytes(Size(*SIZE)) + 48 * 2**20
FULL_S = (0.2, 4.0)
ZEROS = bytes(4096)
ATTEMPTS = 1000
# Films of other jobs differ by 40 levels and more.
LIKENESS = 14.0
BAD_JOBS = 0.05
PAGE = "<!doctype html><h1>Checkpoint</h1>"
FINAL = ("completed", "failed", "cancelled")
TIMES = {
    "COMFYUI_BOOT_TIMEOUT_S": "8",
    "CLIP_TIMEOUT_S": "10",
    "JOB_TIMEOUT_S": "40",
    "POLL_INTERVAL_S": "0.3",
    "HEARTBEAT_INTERVAL_S": str(BEAT_S),
    "LOOKALIKE_TIME_SCALE": "0.2",
}


@dataclass
class Member:
    """One worker with a state folder of its own, started again whenever it has died."""

    number: int
    folder: Path
    environ: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    back_at: float = 0.0
    stop_by: float = 0.0
    spans: list[list[float]] = field(default_factory=list)
    orphans: int = 0
    slow_stops: int = 0
    crashes: list[int] = field(default_factory=list)
    free_at: float = 0.0

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def filler(self) -> Path:
        return self.state / "filler"

    def fill_disk(self, seconds: float) -> None:
        """Leaves no room in the state folder for a while."""
        self.free_at = time.monotonic() + seconds
        with contextlib.suppress(OSError), self.filler.open("ab", buffering=0) as file:
            # The bulk at once, then to the last byte.
            os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(self.state).free - 2**20))
            while True:
                file.write(ZEROS)

    def free_disk(self) -> None:
        self.free_at = 0.0
        self.filler.unlink(missing_ok=True)

    def start(self) -> None:
        command = [sys.executable, "-u", str(ROOT / "ltx_worker.py")]
        with (self.folder / "worker.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environ, stdout=log, stderr=log)
        self.spans.append([time.monotonic(), 0.0])
        self.stop_by = 0.0

    def kill(self, rest: float) -> None:
        """kill -9; whatever of it lives on after that is an orphan."""
        if self.process is None:
            return
        before = marked(self.state)
        self.process.kill()
        self.ended(rest)
        self.orphans += count_living(before)

    def ask_to_stop(self, rest: float) -> None:
        if self.process is not None and not self.stop_by:
            self.process.send_signal(signal.SIGTERM)
            self.stop_by = time.monotonic() + STOP_S
            self.back_at = rest

    def ended(self, rest: float) -> None:
        assert self.process is not None
        self.process.wait()
        self.spans[-1][1] = time.monotonic()
        self.process, self.back_at = None, time.monotonic() + rest

    def tend(self) -> None:
        """Notices its end, holds it to the time of a stop, and starts it again when due."""
        if self.free_at and time.monotonic() >= self.free_at:
            self.free_disk()
        if self.process is None:
            if time.monotonic() >= self.back_at:
                self.start()
        elif (code := self.process.poll()) is not None:
            # A signal may come before the worker has got as far as listening for one.
            young = time.monotonic() - self.spans[-1][0] < YOUNG_S
            if not self.stop_by or code not in (0, -signal.SIGTERM if young else 0):
                self.crashes.append(code)
            self.orphans += count_living(marked(self.state))
            self.ended(self.back_at if self.stop_by else 1.0)
        elif self.stop_by and time.monotonic() > self.stop_by:
            self.slow_stops += 1
            self.kill(0.0)


def marked(state: Path) -> list[int]:
    """The children of any worker on this state folder or below it."""
    mark = f"LTX_WORKER_STATE={state}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(one.startswith(mark) for one in (entry / "environ").read_bytes().split(b"\0")):
                found.append(int(entry.name))
    return found


def count_living(pids: list[int]) -> int:
    """How many of them outlive a short while; the kernel needs a moment to end a child."""
    alive, end = 0, time.monotonic() + ORPHAN_S
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            left = max(0.0, end - time.monotonic())
            alive += not select.select([handle], [], [], left)[0]
            os.close(handle)
    return alive


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
                frames[-1] = self.hosted.put_frame(f"{number}-bad.png", b"no picture")
            prompts = [f"walk {n}" for n in range(len(frames) - 1)]
            job = f"job-{number:04}"
            self.hosted.add_job(frames, prompts, id=job, maxAttempts=ATTEMPTS)
            self.jobs[job] = pictures
            self.bad |= {job} if bad else set()

    def open_jobs(self) -> list[str]:
        return [job["id"] for job in self.hosted.jobs() if job["state"] not in FINAL]


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
    return "disk: full" if member.process else "disk: full before a start"


def cancel_job(stage: Stage) -> str:
    open_jobs = stage.open_jobs()[: len(stage.crew)]
    heard = bool(open_jobs) and stage.hosted.cancel(stage.rng.choice(open_jobs))
    return "API: cancel" if heard else "API: cancel, too late"


KINDS: dict[Callable[[Stage], str], int] = {
    kill_worker: 26,
    stop_worker: 14,
    harm_comfyui: 16,
    harm_api: 20,
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


def play(stage: Stage, jobs: int, faults: int, seconds: float) -> None:
    """Strikes as time passes, and as jobs are done, so that all strikes come before the end."""
    began = time.monotonic()
    pace = faults / (0.8 * seconds)
    while time.monotonic() - began < seconds:
        for member in stage.crew:
            member.tend()
        left = len(stage.open_jobs())
        if not left:
            break
        due = max(
            pace * (time.monotonic() - began), faults * (jobs - left + len(stage.crew)) / jobs
        )
        while stage.faults.total() < min(due, faults):
            strike(stage)
        time.sleep(stage.rng.uniform(0.5, 1.5) * TICK_S)


def settle(stage: Stage) -> None:
    """Peace: what is still open has to be brought to its end by whoever is there."""
    stage.hosted.clear_faults()
    stage.hosted.clear_comfyui_script()
    for member in stage.crew:
        member.free_disk()
    end = time.monotonic() + TAIL_S
    while stage.open_jobs() and time.monotonic() < end:
        for member in stage.crew:
            member.tend()
        time.sleep(5 * TICK_S)
    for member in stage.crew:
        member.ask_to_stop(rest=0.0)
    for member in stage.crew:
        while member.process is not None:
            member.back_at = 1e9
            member.tend()
            time.sleep(TICK_S)


# What became of it


def film_is_wrong(path: Path, pictures: list[int], size: int) -> str:
    """Why a film is not the one of these pictures; '' when it is."""
    if path.stat().st_size != size:
        return f"it has {path.stat().st_size} bytes, the outcome says {size}"
    clips = len(pictures) - 1
    ask = ["ffprobe", "-v", "error", "-count_frames", "-select_streams", "v:0", "-show_entries"]
    ask += ["stream=nb_read_frames", "-of", "csv=p=0", str(path)]
    counted = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    if counted != str(CLIP_FRAMES * clips):
        return f"it has {counted} frames instead of {CLIP_FRAMES * clips}"
    pick = f"select='not(mod(n,{CLIP_FRAMES}))',setpts=N/TB"
    decode = ["ffmpeg", "-v", "error", "-i", str(path), "-vf", pick, "-fps_mode", "passthrough"]
    raw = subprocess.run([*decode, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True)
    shown = np.frombuffer(raw.stdout, np.uint8).reshape(-1, SIZE[1], SIZE[0], 3)
    for clip, frame in enumerate(shown):
        far = likeness(frame, paint(SIZE, pictures[clip]))
        if far > LIKENESS:
            return f"clip {clip + 1} opens on something else ({far:.0f} levels away)"
    return ""


def every(hosted: Hosted, kind: str) -> Iterator[dict[str, Any]]:
    seq = 0
    while found := hosted.events(kind, after=seq):
        yield from found
        seq = found[-1]["seq"]


def count_renders(hosted: Hosted) -> Counter[str]:
    """How often each clip was rendered to its end, by `job-clip`."""
    clips: dict[str, str] = {}
    for event in every(hosted, "comfyui.prompt"):
        nodes = event["data"]["prompt"].values()
        prefix = next(n["inputs"]["filename_prefix"] for n in nodes if "VHS" in n["class_type"])
        clips[event["data"]["promptId"]] = prefix.rpartition("/")[2].rpartition("-")[0]
    done = every(hosted, "comfyui.done")
    return Counter(
        clips[e["data"]["promptId"]] for e in done if "success" in str(e["data"]["status"])
    )


def longest_gap(stage: Stage) -> float:
    """Seconds between two heartbeats of one worker process."""
    beats: dict[str, list[float]] = {}
    for call in stage.hosted.requests("POST */heartbeat"):
        worker = (call["json"] or {}).get("workerId", "")
        beats.setdefault(worker, []).append(call["t"])
    gaps = [0.0]
    for member in stage.crew:
        times = beats.get(f"worker-{member.number}", [])
        for start, end in member.spans:
            within = [t for t in times if start <= t <= end]
            gaps += [after - before for before, after in pairwise(within)]
    return max(gaps)


def tell(stage: Stage, seconds: float) -> bool:
    """Prints the table; True when nothing was lost, doubled, wrong or left over."""
    rows = {job["id"]: job for job in stage.hosted.jobs()}
    files = {
        blob["pathname"].rpartition("/")[2].removesuffix(".mp4"): Path(blob["file"])
        for blob in stage.hosted.blobs().values()
    }
    states = Counter(row["state"] for row in rows.values())
    reasons = Counter(
        row["outcome"]["error"]["code"] for row in rows.values() if row["state"] == "failed"
    )
    completes = {
        job: [one for one in row["outcomes"] if one["kind"] == "complete"]
        for job, row in rows.items()
    }
    lost = [job for job, row in rows.items() if row["state"] not in FINAL]
    twice = [job for job, found in completes.items() if len(found) > 1]
    wrong = {
        job: why
        for job, found in completes.items()
        if found
        and (why := film_is_wrong(files[job], stage.jobs[job], found[-1]["body"]["sizeBytes"]))
    }
    wrong |= {job: "its picture is no picture" for job in stage.bad if completes[job]}
    blamed = [job for job, row in rows.items() if row["state"] == "failed" and job not in stage.bad]
    uploads = Counter(event["job"] for event in every(stage.hosted, "blob.put"))
    renders = count_renders(stage.hosted)
    orphans = sum(m.orphans for m in stage.crew) + count_living(marked(stage.crew[0].folder.parent))
    slow_stops = sum(member.slow_stops for member in stage.crew)
    crashes = [code for member in stage.crew for code in member.crashes]
    refused = [event["job"] for event in every(stage.hosted, "complete.rejected")]
    waiting = [path.parent.name for m in stage.crew for path in m.state.glob("jobs/*/job.json")]
    lines: list[tuple[str, object]] = [
        ("jobs", len(rows)),
        ("faults", stage.faults.total()),
        *((f"  {name}", count) for name, count in sorted(stage.faults.items())),
        ("delivered", states["completed"]),
        ("failed with a reason", f"{states['failed']} {dict(reasons) or ''}"),
        ("  of these, good jobs", f"{len(blamed)} {blamed or ''}"),
        ("cancelled", states["cancelled"]),
        ("lost", f"{len(lost)} {lost or ''}"),
        ("delivered twice", f"{len(twice)} {twice or ''}"),
        ("films that are wrong", f"{len(wrong)} {wrong or ''}"),
        ("films uploaded more than once", sum(count > 1 for count in uploads.values())),
        ("clips rendered", renders.total()),
        ("clips rendered more than once", sum(count > 1 for count in renders.values())),
        ("outcomes refused", f"{len(refused)} {refused or ''}"),
        ("left in a spool", f"{len(waiting)} {waiting or ''}"),
        ("orphan processes", orphans),
        ("worker starts", sum(len(member.spans) for member in stage.crew)),
        ("worker ends of its own", f"{len(crashes)} {crashes or ''}"),
        (f"stops that took over {STOP_S:g} s", slow_stops),
        (f"longest heartbeat gap (of {BEAT_S:g} s)", f"{longest_gap(stage):.2f} s"),
        ("took", f"{seconds:.0f} s"),
    ]
    for name, value in lines:
        print(f"{name:<36} {value}")
    return not (lost or twice or wrong or blamed or orphans or slow_stops or crashes)


def worker_environ(hosted: Hosted, number: int, folder: Path) -> dict[str, str]:
    return {
        **inherited(),
        **LIGHT,
        **TIMES,
        **hosted.worker_settings(),
        **hosted.lookalike_settings(),
        "VIDEO_SIZE": f"{SIZE[0]}x{SIZE[1]}",
        "STATE_DIR": str(folder / "state"),
        "WORKER_ID": f"worker-{number}",
    }


def enlist(hosted: Hosted, base: Path, number: int) -> Member:
    folder = base / f"worker-{number}"
    (folder / "state").mkdir(parents=True)
    return Member(number, folder, worker_environ(hosted, number, folder))


def mount_disk(state: Path) -> bool:
    """A small file system for a state folder, where we may make one."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(state)]
    return subprocess.run(mount, capture_output=True).returncode == 0


def unmount_disk(state: Path, keep: bool) -> None:
    if keep:
        shutil.copytree(state, state.with_name("state-at-the-end"))
    # Lazy, as a process that outlived its worker may be in it.
    subprocess.run(["umount", "--lazy", str(state)], check=True)


def mount_disks(crew: list[Member], stack: contextlib.ExitStack, keep: bool) -> bool:
    """One small disk for each worker, gone at the end; False when that is not permitted."""
    for member in crew:
        if not mount_disk(member.state):
            print("Nobody here may mount a tmpfs, so no disk gets full.", flush=True)
            return False
        stack.callback(unmount_disk, member.state, keep)
    return True


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600, help="how long faults strike at most")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--keep", type=Path, help="a new folder for logs, spools and films")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    began = time.monotonic()
    # The way out of a Ctrl-C, on which everything started and mounted here is taken away.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        if options.keep:
            options.keep.mkdir(parents=True)
        base = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory("-chaos")))
        base = base.resolve()
        hosted = stack.enter_context(Hosted(base / "hosted", lease_s=LEASE_S))
        crew = [enlist(hosted, base, number) for number in range(options.workers)]
        stage = Stage(hosted, crew, random.Random(options.seed))
        stage.small_disks = mount_disks(crew, stack, keep=bool(options.keep))
        for member in crew:
            stack.callback(partial(member.kill, 1e9))
        stage.add_jobs(options.jobs)
        play(stage, options.jobs, options.faults, options.seconds)
        settle(stage)
        return 0 if tell(stage, time.monotonic() - began) else 1


if __name__ == "__main__":
    sys.exit(main())
