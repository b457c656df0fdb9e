"""What a job asks for, and its folder in the spool."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ltx.errors import JobError
from ltx.files import read_json, write_json_durably
from ltx.settings import Size, is_plain_url
from ltx.state import has_mark, make_own, remove_own
from ltx.text import as_dict, is_text, one_line

FPS = 24
# LTX-2.3 wants 8n+1 frames; the 121st is the pinned last frame, on which the next clip opens.
CLIP_FRAMES = 121
KEPT_FRAMES = 120
CLIP_SECONDS = KEPT_FRAMES / FPS
# Other sizes are silently floored by EmptyLTXVLatentVideo: 1080 would render as 1056.
SIZE_MULTIPLE = 32
# A raw clip of pure noise, the worst there is: 138 MB at 1920x1088, measured on a real GPU.
CLIP_BYTES_PER_PIXEL = 67
MAX_FRAMES = 6
MAX_PROMPT_CHARS = 8_000
MAX_FRAME_BYTES = 64 * 2**20
MAX_FRAME_PIXELS = 64_000_000
JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True)
class Plan:
    """What a job asks for: clip i goes from frames[i] to frames[i + 1] as prompts[i] says."""

    frames: tuple[str, ...]
    prompts: tuple[str, ...]
    watermark: bool

    @property
    def clips(self) -> int:
        return len(self.prompts)


def bad_job(field: str, came: object, expected: str) -> JobError:
    shown = one_line(repr(came), 80)
    return JobError("bad_job", f"{field} is {shown}; expected {expected}.")


def parse_stage_data(data: object) -> Plan:
    """Reads both shapes of stageData. Raises JobError bad_job: field, value, what was expected."""
    if not isinstance(data, dict):
        raise bad_job("stageData", data, "an object")
    if "frames" in data:
        frames, prompts = data["frames"], data.get("clipPrompts")
        names = ("stageData.frames", "stageData.clipPrompts")
        watermark = data.get("watermark")
    else:
        frames = [data.get("imageUrl"), data.get("endImageUrl")]
        prompts, watermark = [data.get("klingPrompt")], data.get("watermark", False)
        names = ("stageData.imageUrl/endImageUrl", "stageData.klingPrompt")
    if not isinstance(watermark, bool):
        raise bad_job("stageData.watermark", watermark, "true or false")
    frames = check_texts(names[0], frames, range(2, MAX_FRAMES + 1), "frame addresses")
    for url in frames:
        if len(url) > 4096 or not is_plain_url(url):
            raise bad_job(names[0], url, "http(s) addresses without credentials")
    prompts = check_texts(names[1], prompts, range(len(frames) - 1, len(frames)), "prompts")
    for prompt in prompts:
        if len(prompt) > MAX_PROMPT_CHARS or not is_text(prompt):
            raise bad_job(names[1], prompt, f"text of at most {MAX_PROMPT_CHARS} characters")
    return Plan(frames, prompts, watermark)


def check_texts(field: str, value: object, counts: range, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise bad_job(field, value, f"a list of {what}")
    if len(value) not in counts:
        wanted = counts[0] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        raise bad_job(field, f"{len(value)} of them", f"{wanted} {what}")
    return tuple(value)


def render_size(size: Size) -> Size:
    """The size the model renders: rounded up, so that the excess can be cropped away."""
    width, height = (math.ceil(side / SIZE_MULTIPLE) * SIZE_MULTIPLE for side in size)
    return Size(width, height)


def job_bytes(size: Size) -> int:
    """Disk that the largest job may take: its frames, and each clip raw, trimmed and joined."""
    clips = (MAX_FRAMES - 1) * size.width * size.height * CLIP_BYTES_PER_PIXEL
    return MAX_FRAMES * MAX_FRAME_BYTES + 3 * clips


def describe_films(state_dir: Path) -> str:
    """What the films that wait to be delivered hold of the disk, as the end of a sentence."""
    sizes = [film.stat().st_size for film in state_dir.glob("jobs/*/output.mp4")]
    return f"; {len(sizes)} films that wait hold {sum(sizes) >> 20}" if sizes else ""


def seed_for(job_id: str, clip: int, attempt: int) -> int:
    """The same job, clip and attempt always give the same noise.

    53 bits, because the hosted side reads the seed as a JavaScript number.
    """
    digest = hashlib.sha256(f"{job_id}/{clip}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11


class Outcome(NamedTuple):
    """What becomes of a job: `complete` or `fail`, with the body of that call, or `kept`."""

    verb: str
    body: Mapping[str, Any]

    @property
    def word(self) -> str:
        """The verb, or the code of a failure."""
        return str(as_dict(self.body.get("error")).get("code", self.verb))


KEPT = Outcome("kept", {})


class Job:
    """A claimed job's folder in the spool; every file in it is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.id = folder, folder.name
        self.order = folder / "job.json"
        self.output, self.outcome = folder / "output.mp4", folder / "outcome.json"
        # There while it is not known whether the hosted side has heard of the outcome.
        self.asked = folder / "asked"

    def create(self, stage_data: object) -> None:
        make_own(self.folder)
        for name in ("frames", "clips"):
            (self.folder / name).mkdir(exist_ok=True)
        write_json_durably(self.order, {"stageData": stage_data})

    @property
    def stage_data(self) -> object:
        return read_json(self.order).get("stageData")

    def check(self) -> None:
        """Raises ValueError when what an earlier worker left cannot be gone on with."""
        if "stageData" not in read_json(self.order):
            raise ValueError("job.json holds no stageData")
        if self.outcome.exists() and not self.decided and not self.output.exists():
            raise ValueError("outcome.json holds no outcome, and there is no film")

    def source(self, frame: int) -> Path:
        return self.folder / "frames" / f"{frame}.download"

    def frame(self, frame: int) -> Path:
        return self.folder / "frames" / f"{frame}.png"

    def raw(self, clip: int) -> Path:
        return self.folder / "clips" / f"{clip:03}.raw.mp4"

    def clip(self, clip: int) -> Path:
        return self.folder / "clips" / f"{clip:03}.mp4"

    def record(self, clip: int) -> Path:
        # Not the stem of the clip: its half-written file is beside it, and the encode writes there.
        return self.folder / "clips" / f"{clip:03}.record.json"

    def has_clips(self) -> bool:
        """Whether a clip has been rendered, so that making the film anew would cost more."""
        return any((self.folder / "clips").glob("*.mp4"))

    def conclude(self, outcome: Outcome) -> None:
        """Writes the outcome down, once."""
        write_json_durably(self.outcome, outcome._asdict())

    @property
    def decided(self) -> Outcome | None:
        """The outcome that was written down, if one was and can be read."""
        found = read_json(self.outcome)
        is_outcome = found.get("verb") in ("complete", "fail")
        return Outcome(found["verb"], as_dict(found.get("body"))) if is_outcome else None

    def close(self) -> None:
        """Removes the folder, for a job that is not one of the queue."""
        self.remove()

    def remove(self) -> None:
        # The order goes first: what is left of a folder without one is nobody's job.
        if has_mark(self.folder):
            self.order.unlink(missing_ok=True)
        remove_own(self.folder)
