"""What the worker is doing and how long it usually takes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ltx.files import read_json, write_json
from ltx.settings import Settings
from ltx.text import as_dict, as_list, format_utc, log_event


def percent_done(stage: str, clip: int, clips: int, step: int, steps: int) -> float:
    """Percent of a job: 2 for preparing, 92 for the clips, the rest for joining and upload.

    clip counts from 1; sampling is taken as the middle 75 % of a clip.
    """
    done = step / steps if steps else 0.0
    if stage == "rendering":
        return 2 + 92 * (clip - 1 + 0.15 + 0.75 * done) / max(clips, 1)
    return {
        "conditioning": 2.0,
        "joining": 94.0,
        "uploading": 95 + 4 * done,
        "reporting": 99.0,
    }.get(stage, 0.0)


class StageDurations:
    """How long the parts of a job take on this machine with these settings; outlives a restart."""

    KEPT = 20

    def __init__(self, settings: Settings) -> None:
        self.path = settings.state_dir / "pace.json"
        ways = (settings.comfyui_restart, settings.comfyui_standby, settings.text_mode)
        self.terms = f"{settings.size} {settings.sampler} {ways}"
        known = read_json(self.path)
        self.seconds = as_dict(known.get("seconds")) if known.get("terms") == self.terms else {}

    def note(self, part: str, seconds: float) -> None:
        newest = [*as_list(self.seconds.get(part)), round(seconds, 1)][-self.KEPT :]
        self.seconds[part] = newest
        # Lost without harm, so a full disk is nobody's concern here.
        with contextlib.suppress(OSError):
            write_json(self.path, {"terms": self.terms, "seconds": self.seconds})

    def typical(self, part: str) -> float | None:
        """The median of the newest; None when there is none."""
        numbers = (one for one in as_list(self.seconds.get(part)) if isinstance(one, int | float))
        known = sorted(numbers)
        return known[len(known) // 2] if known else None


# The parts of a job whose duration is known, in their order; before them it is being prepared.
PARTS = ("conditioning", "clip", "encoding", "joining", "uploading", "reporting")


def part_of(stage: str) -> str:
    """The part that a stage belongs to; '' while the job is prepared."""
    if stage in ("booting", "rendering"):
        return "clip"
    return stage if stage in PARTS else ""


class Progress:
    """What the worker is doing: the one source of heartbeats, STATUS=, `status` and the bar."""

    def __init__(self, durations: StageDurations) -> None:
        self.durations = durations
        self._lock = threading.Lock()
        self.trouble = ""
        # Why the hosted side is not heard, in a sentence; '' while it is.
        self.silence: Callable[[], str] = str
        # Of each stage of the job, one number a clip where every clip goes through it.
        self.seconds: dict[str, list[float]] = {}
        self.begin("")

    def begin(self, job_id: str) -> None:
        with self._lock:
            self.seconds = {}
            self.job_id, self.stage = job_id, "starting"
            self.clip = self.clips = self.step = self.steps = 0
            self.percent, self.touched = 0.0, time.time()
            self.part, self.part_began = ("", 0), time.monotonic()

    def update(self, stage: str, **numbers: int) -> None:
        """numbers: clip (from 1), clips, step, steps. Percent never goes backwards."""
        with self._lock:
            if not self.job_id:
                return
            self.stage, self.touched = stage, time.time()
            for name, value in numbers.items():
                setattr(self, name, value)
            ended = self._time_parts()
            done = percent_done(stage, self.clip, self.clips, self.step, self.steps)
            self.percent = max(self.percent, round(done, 1))
        # Behind the lock, as a disk that stalls must not stall the heartbeat's snapshot.
        if ended:
            self.durations.note(*ended)

    @contextlib.contextmanager
    def timed(self, name: str, **fields: object) -> Iterator[None]:
        """One log line for a finished stage, and its seconds for the job's summary."""
        started = time.monotonic()
        yield
        self.note(name, time.monotonic() - started, **fields)

    def note(self, name: str, seconds: float, **fields: object) -> None:
        self.spend(name, seconds)
        log_event(f"{name}_done", **fields, ms=round(seconds * 1000))

    def spend(self, name: str, seconds: float) -> None:
        """Counts a stage's seconds for the job's summary."""
        self.seconds.setdefault(name, []).append(seconds)

    def _time_parts(self) -> tuple[str, float] | None:
        """The part that has just gone on to the next, and its seconds; none for one that failed."""
        part, now = (part_of(self.stage), self.clip), time.monotonic()
        if part == self.part:
            return None
        (before, _), (after, _) = self.part, part
        ended = (before, now - self.part_began)
        self.part, self.part_began = part, now
        went_on = before and after and (after != "reporting" or before == "uploading")
        return ended if went_on else None

    def _seconds_left(self) -> int | None:
        """By what the parts took before; None until a clip was made on this machine."""
        clip, part = self.durations.typical("clip"), self.part[0]
        if clip is None or not self.clips:
            return None
        behind = PARTS.index(part) + 1 if part else 0
        first = PARTS.index("clip") + 1
        left = sum(self.durations.typical(name) or 0.0 for name in PARTS[max(first, behind) :])
        if part in ("", "conditioning", "clip"):
            left += clip * (self.clips - self.clip)
        if part:
            spent = time.monotonic() - self.part_began
            left += max(0.0, (self.durations.typical(part) or 0.0) - spent)
        return round(left)

    def snapshot(self) -> dict[str, Any]:
        """The contract's `progress`, and the `jobId` that it is about."""
        with self._lock:
            counts = {"clip": self.clip, "clips": self.clips, "step": self.step}
            return {
                "jobId": self.job_id or None,
                "stage": self.stage if self.job_id else self._idle_stage(),
                **counts,
                "steps": self.steps,
                "percent": self.percent,
                "etaSec": self._seconds_left() if self.job_id else None,
                "lastProgressAt": format_utc(self.touched),
            }

    def _idle_stage(self) -> str:
        return f"degraded: {self.trouble}" if self.trouble else self.silence() or "idle"

    def sentence(self) -> str:
        silence = self.silence()
        if not self.job_id:
            stage = self._idle_stage()
            return f"{stage}; {silence}" if silence and silence != stage else stage
        now = self.snapshot()
        where = f"clip {now['clip']}/{now['clips']} " if now["clip"] else ""
        step = f"step {now['step']}/{now['steps']} " if now["stage"] == "rendering" else ""
        left = f", about {now['etaSec']} s left" if now["etaSec"] is not None else ""
        done = f"{where}{step}{now['percent']:.0f} %{left}"
        return f"job {self.job_id}: {now['stage']} {done}{silence and f'; {silence}'}"
