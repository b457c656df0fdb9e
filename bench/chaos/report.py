"""What became of the jobs, their films and the workers, and whether it may be so."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.chaos.crew import BEAT_S, SIZE, STOP_S, count_living
from bench.chaos.faults import FINAL, Stage
from sandbox.client import Hosted
from sandbox.launch import started_on
from tests.pictures import likeness, paint

CLIP_FRAMES = 120
# Films of other jobs differ by 40 levels and more.
LIKENESS = 14.0


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
    done = (event["data"] for event in every(hosted, "comfyui.done"))
    # A prompt that only reads texts is none of the clips.
    return Counter(
        clips[one["promptId"]]
        for one in done
        if one["promptId"] in clips and "success" in str(one["status"])
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


Row = tuple[str, object, bool]  # what, how many of it or which, whether that must not be


def listed(what: str, found: Collection[object], *, bad: bool) -> Row:
    return what, f"{len(found)} {found or ''}", bad and bool(found)


def tell(stage: Stage, seconds: float) -> bool:
    """Prints the table; True when nothing was lost, doubled, wrong or left over."""
    jobs = stage.hosted.jobs()
    rows: list[Row] = [
        ("jobs", len(jobs), False),
        ("faults", stage.faults.total(), False),
        *((f"  {name}", count, False) for name, count in sorted(stage.faults.items())),
        *tell_jobs(stage, {job["id"]: job for job in jobs}),
        *tell_work(stage),
        *tell_workers(stage),
        ("took", f"{seconds:.0f} s", False),
    ]
    for name, value, _ in rows:
        print(f"{name:<36} {value}")
    return not any(bad for _, _, bad in rows)


def tell_jobs(stage: Stage, jobs: Mapping[str, Any]) -> Iterator[Row]:
    states = Counter(job["state"] for job in jobs.values())
    failed = [name for name, job in jobs.items() if job["state"] == "failed"]
    reasons = Counter(jobs[name]["outcome"]["error"]["code"] for name in failed)
    completes = {
        name: [one["body"] for one in job["outcomes"] if one["kind"] == "complete"]
        for name, job in jobs.items()
    }
    lost = [name for name, job in jobs.items() if job["state"] not in FINAL]
    twice = [name for name, found in completes.items() if len(found) > 1]
    yield "delivered", states["completed"], False
    yield "failed with a reason", f"{len(failed)} {dict(reasons) or ''}", False
    yield listed("  of these, good jobs", [n for n in failed if n not in stage.bad], bad=True)
    yield "cancelled", states["cancelled"], False
    yield listed("lost", lost, bad=True)
    yield listed("delivered twice", twice, bad=True)
    yield listed("films that are wrong", find_wrong(stage, completes), bad=True)


def find_wrong(stage: Stage, completes: Mapping[str, list[dict[str, Any]]]) -> dict[str, str]:
    """By job, why its film is not the one of its pictures."""
    files = {
        blob["pathname"].rpartition("/")[2].removesuffix(".mp4"): Path(blob["file"])
        for blob in stage.hosted.blobs().values()
    }
    wrong = {
        job: film_is_wrong(files[job], stage.jobs[job], found[-1]["sizeBytes"])
        for job, found in completes.items()
        if found
    }
    wrong |= {job: "its picture is no picture" for job in stage.bad if completes[job]}
    return {job: why for job, why in wrong.items() if why}


def tell_work(stage: Stage) -> Iterator[Row]:
    uploads = Counter(event["job"] for event in every(stage.hosted, "blob.put"))
    renders = count_renders(stage.hosted)
    refused = [event["job"] for event in every(stage.hosted, "complete.rejected")]
    yield "films uploaded more than once", sum(count > 1 for count in uploads.values()), False
    yield "clips rendered", renders.total(), False
    yield "clips rendered more than once", sum(count > 1 for count in renders.values()), False
    yield listed("outcomes refused", refused, bad=False)
    yield listed("left in a spool", stage.spooled_jobs(), bad=True)


def tell_workers(stage: Stage) -> Iterator[Row]:
    left = count_living(started_on(stage.crew[0].folder.parent))
    orphans = sum(member.orphans for member in stage.crew) + left
    slow_stops = sum(member.slow_stops for member in stage.crew)
    crashes = [code for member in stage.crew for code in member.crashes]
    yield "orphan processes", orphans, bool(orphans)
    yield "worker starts", sum(len(member.spans) for member in stage.crew), False
    yield listed("worker ends of its own", crashes, bad=True)
    yield f"stops that took over {STOP_S:g} s", slow_stops, bool(slow_stops)
    yield f"longest heartbeat gap (of {BEAT_S:g} s)", f"{longest_gap(stage):.2f} s", False
