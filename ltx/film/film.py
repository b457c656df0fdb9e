"""The making of one job's film, from frames to an MP4."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx.cancellation import Halt
from ltx.comfyui.answers import find_video
from ltx.comfyui.client import Comfy, ComfyLost
from ltx.comfyui.standby import ComfyFleet
from ltx.comfyui.workflow import STEPS, Shot, build_workflow
from ltx.errors import DISK_FULL, NO_SPACE, JobError, ToolFailed, Unavailable
from ltx.files import keep, keep_json, read_json
from ltx.film.clip_gate import judge, look_command, read_look
from ltx.film.clips import Placement, contact_sheet, join_command, place_watermark, trim_command
from ltx.film.ffmpeg import Media, ffmpeg_command
from ltx.film.pictures import check_picture, check_watermark, half_the_cores, prepare_frames
from ltx.job import CLIP_FRAMES, KEPT_FRAMES, Job, Plan, render_size, seed_for
from ltx.process import Child
from ltx.progress import Progress
from ltx.settings import Settings, Size
from ltx.text import MAX_JSON_BYTES, one_line, say

KEPT_BAD_CLIPS = 10


class Studio:
    """What makes films and outlives each of them: ComfyUI, ffmpeg, the progress they report."""

    def __init__(
        self, settings: Settings, halt: Halt, progress: Progress, seed: int | None = None
    ) -> None:
        self.settings, self.halt, self.progress, self.seed = settings, halt, progress, seed
        self.fleet = ComfyFleet(settings, halt)
        self.media = Media(settings, halt)
        # A worker keeps a ComfyUI waiting for the next job; who makes one film does not.
        self.expects_more = False

    def probe(self) -> None:
        """Raises JobError unless a ComfyUI boots and has all parts of the workflow."""
        try:
            shot = Shot(0, "first.png", "last.png", "", 0, "probe", render_size(self.settings.size))
            self.fleet.fresh().check_parts(build_workflow(shot, self.settings))
        except Unavailable as error:
            raise JobError("comfyui_unavailable", one_line(error)) from error
        finally:
            self.fleet.stop()


Fetch = Callable[[str, Path, str], None]


def frame_field(number: int) -> str:
    """Where a job names a frame."""
    return f"stageData.frames[{number}]"


def explain(error: Exception, clip: int, tail: str) -> JobError:
    """What a failed attempt at a clip means for the job."""
    if isinstance(error, ToolFailed):
        told = JobError("bad_clip", f"Clip {clip + 1}: {one_line(error)}.", again=True)
    elif isinstance(error, JobError):
        told = error
    else:
        told = JobError("comfyui_failed", f"ComfyUI: {error}.", again=True)
    # ComfyUI's files are on the same disk as ours.
    if told.code in ("bad_clip", "comfyui_failed") and NO_SPACE in f"{error}\n{tail}":
        told = JobError("media_failed", DISK_FULL)
    told.tail = told.tail or tail
    return told


@dataclass(frozen=True, eq=False)
class Beside:
    """What runs for a finished raw clip while the next one renders."""

    clip: int
    look: Child | None
    encode: Child
    started: float  # time.time()

    def is_ended(self) -> bool:
        """Whether waiting for it takes no time; a look that has ended decides first."""
        return not self.encode.alive and not (self.look and self.look.alive)


class Film:
    """The making of one job's film: all that needs neither queue nor upload.

    What is already in the job's folder is not made again. Raises JobError.
    """

    def __init__(self, studio: Studio, job: Job, plan: Plan) -> None:
        self.studio, self.job, self.plan = studio, job, plan
        self.settings, self.halt, self.progress = studio.settings, studio.halt, studio.progress
        self.fleet, self.media = studio.fleet, studio.media
        self.size, self.mark = self.settings.size, Size(0, 0)
        # The clips that are still to be rendered, the next one first.
        self.waiting: list[int] = []

    def make(self, fetch: Fetch) -> None:
        """Leaves the film in job.output; fetch(url, path, field) brings a frame."""
        self.progress.update("checking", clips=self.plan.clips)
        if self.plan.watermark:
            self.mark = check_watermark(self.media, self.settings.watermark)
        try:
            if not all(self.job.clip(clip).exists() for clip in range(self.plan.clips)):
                self.fleet.warm()
            self._download(fetch)
            self._cut_frames()
            self._make_clips()
            self._join()
        except ToolFailed as error:
            raise JobError("media_failed", one_line(error)) from error
        finally:
            self.fleet.retire()

    def _download(self, fetch: Fetch) -> None:
        self.progress.update("downloading")
        with self.progress.timed("download", job=self.job.id, frames=len(self.plan.frames)):
            for number, url in enumerate(self.plan.frames):
                source = self.job.source(number)
                if not source.exists():
                    fetch(url, source.with_suffix(".part"), frame_field(number))
                    keep(source.with_suffix(".part"), source)

    def _cut_frames(self) -> None:
        """Checks every picture and cuts it to what will be rendered: portrait if the first is."""
        self.progress.update("checking")
        with self.progress.timed("check", job=self.job.id):
            numbers = range(len(self.plan.frames))
            pictures = [check_picture(self.job.source(n), frame_field(n)) for n in numbers]
            if pictures[0].size.height > pictures[0].size.width:
                self.size = Size(*self.size[::-1])
            frames = [(one, self.job.frame(n)) for n, one in enumerate(pictures)]
            missing = [(picture, frame) for picture, frame in frames if not frame.exists()]
            prepare_frames(self.media, missing, render_size(self.size), half_the_cores())

    def _make_clips(self) -> None:
        """Renders each missing clip; each is looked at and encoded beside the next rendering."""
        clips = range(self.plan.clips)
        self.waiting = [clip for clip in clips if not self.job.clip(clip).exists()]
        with contextlib.ExitStack() as children:
            beside: list[Beside] = []
            while self.waiting or beside:
                if self.waiting:
                    clip = self.waiting.pop(0)
                    if not self.job.raw(clip).exists():
                        self._render(clip)
                    beside.append(self._start_beside(clip, children))
                if not self.waiting:
                    self.progress.update("encoding")
                # One that has failed already spares the GPU the clips behind it.
                ready = [one for one in beside if not self.waiting or one.is_ended()]
                beside = [one for one in beside if one not in ready]
                again = [one.clip for one in ready if not self._accept(one)]
                self.waiting = [*again, *self.waiting]

    def _start_beside(self, clip: int, children: contextlib.ExitStack) -> Beside:
        """Starts the look at a raw clip and its encode."""
        look, raw = None, self.job.raw(clip)
        if self.settings.clip_gate != "off":
            ends = (self.job.frame(clip), self.job.frame(clip + 1))
            command = ffmpeg_command(look_command(raw, *ends, render_size(self.size)))
            look = children.enter_context(self.media.start(command))
        encode = children.enter_context(self.media.start(self._trim(clip)))
        return Beside(clip, look, encode, time.time())

    def _accept(self, beside: Beside) -> bool:
        """Keeps a clip that may be delivered; False when it has to be rendered once more.

        Raises JobError bad_clip when it has been already.
        """
        clip, told = beside.clip, self._look(beside)
        record = read_json(self.job.record(clip))
        if told and self.settings.clip_gate == "enforce":
            beside.encode.end()
            attempt = int(record.get("attempts", 1))
            # A restart has to know that one of the two attempts is spent.
            keep_json(self.job.record(clip), {**record, "refused": told})
            self._keep_bad(clip, attempt, self.job.raw(clip))
            if attempt > 1:
                raise JobError("bad_clip", told)
            say("clip_retry", told, logging.WARNING, job=self.job.id, clip=clip + 1)
            return False
        if told:
            say("bad_clip_kept", told, logging.WARNING, job=self.job.id, clip=clip + 1)
        self.media.finish(beside.encode)
        self._keep_clip(clip, beside.started)
        return True

    def _look(self, beside: Beside) -> str:
        """Why a clip is bad, nothing when it is not; its record tells what was measured."""
        child, clip = beside.look, beside.clip
        if not child:
            return ""
        try:
            self.media.finish(child)
            look = read_look(os.pread(child.output.fileno(), MAX_JSON_BYTES, 0).decode())
        except (ToolFailed, KeyError) as error:
            return f"Clip {clip + 1} cannot be decoded whole: {one_line(error)}."
        record = {**read_json(self.job.record(clip)), "gate": look.told()}
        keep_json(self.job.record(clip), record)
        failed = judge(look)
        say("clip_looked_at", job=self.job.id, clip=clip + 1, failed=len(failed), **look.told())
        return f"Clip {clip + 1}: {'; '.join(map(str, failed))}." if failed else ""

    def _keep_bad(self, clip: int, attempt: int, path: Path) -> None:
        """A clip that was refused, and a contact sheet of it, for the operator to look at."""
        folder = self.settings.state_dir / "bad-clips"
        folder.mkdir(exist_ok=True)
        kept = folder / f"{self.job.id}-clip{clip + 1}-attempt{attempt}.mp4"
        path.replace(kept)
        with contextlib.suppress(ToolFailed):
            self.media.run(contact_sheet(kept, kept.with_suffix(".jpg")))
        clips = sorted(folder.glob("*.mp4"), key=lambda file: file.stat().st_mtime)
        for old in clips[:-KEPT_BAD_CLIPS]:
            old.unlink()
            old.with_suffix(".jpg").unlink(missing_ok=True)

    def _trim(self, clip: int) -> list[str]:
        source = self.settings.watermark if self.plan.watermark else None
        place = place_watermark(self.mark, self.size) if source else Placement(0, 0, 0, 0)
        part = self.job.clip(clip).with_suffix(".part")
        return ffmpeg_command(trim_command(self.job.raw(clip), part, self.size, source, place))

    def _keep_clip(self, clip: int, started: float) -> None:
        part = self.job.clip(clip).with_suffix(".part")
        self.media.check_video(part, KEPT_FRAMES, self.size)
        # The encode ended while something else was waited for; its file knows when.
        self.progress.note("encode", part.stat().st_mtime - started, job=self.job.id, clip=clip + 1)
        keep(part, self.job.clip(clip))
        self.job.raw(clip).unlink()

    def _render(self, clip: int) -> None:
        """One raw clip, with a second attempt where a fresh ComfyUI may do better."""
        seconds = self.settings.clip_timeout
        late = JobError("clip_timeout", f"Clip {clip + 1} was not done within {seconds:g} s.")
        with self.halt.limit("clip", seconds, late):
            refused = "refused" in read_json(self.job.record(clip))
            for attempt in (2,) if refused else (1, 2):
                try:
                    return self._attempt(clip, attempt)
                except JobError as error:
                    if attempt == 2 or not error.again:
                        raise
                    told = f"{error}\n{error.tail}".strip()
                    say("clip_retry", told, logging.WARNING, job=self.job.id, clip=clip + 1)

    def _attempt(self, clip: int, attempt: int) -> None:
        self.progress.update("booting", clip=clip + 1, step=0, steps=STEPS)
        with self.progress.timed("boot", job=self.job.id, clip=clip + 1):
            comfy = self.fleet.fresh(again=attempt > 1)
        fixed, started = self.studio.seed, time.monotonic()
        seed = seed_for(self.job.id, clip, attempt)
        if fixed is not None:
            seed = fixed + clip + (attempt - 1) * self.plan.clips
        part = self.job.raw(clip).with_suffix(".part")
        try:
            comfy.fetch(find_video(self._run_workflow(comfy, clip, seed)), part)
            self.fleet.dismiss()
            self._inspect(clip, attempt, part)
        except (ComfyLost, Unavailable, ToolFailed, JobError) as error:
            raise explain(error, clip, comfy.tail()) from error
        spent = round(time.monotonic() - started, 1)
        record = {"seed": seed, "renderSec": spent, "attempts": attempt}
        if refused := read_json(self.job.record(clip)).get("refused"):
            record["refused"] = refused
        keep_json(self.job.record(clip), record)
        keep(part, self.job.raw(clip))

    def _inspect(self, clip: int, attempt: int, path: Path) -> None:
        """ComfyUI reports success for files that are cut short; CLIP_GATE says what then."""
        if self.settings.clip_gate == "off":
            return
        try:
            self.media.check_video(path, CLIP_FRAMES, render_size(self.size))
        except ToolFailed as error:
            if self.settings.clip_gate == "enforce":
                self._keep_bad(clip, attempt, path)
                raise
            say("bad_clip_kept", str(error), logging.WARNING, job=self.job.id, clip=clip + 1)

    def _images(self, clip: int) -> dict[Path, str]:
        """Both images of a clip, and names for them.

        No name is ever used twice: ComfyUI answers a repeated graph from its cache.
        """
        frames = (self.job.frame(clip), self.job.frame(clip + 1))
        return {path: f"{self.job.id}-{uuid.uuid4().hex[:8]}-{path.name}" for path in frames}

    def _run_workflow(self, comfy: Comfy, clip: int, seed: int) -> dict[str, Any]:
        first, last = (comfy.upload(path, name) for path, name in self._images(clip).items())
        prefix, size = f"ltx-worker/{self.job.id}-{uuid.uuid4().hex[:8]}", render_size(self.size)
        shot = Shot(clip, first, last, self.plan.prompts[clip], seed, prefix, size)
        moments = [time.monotonic()]

        def on_step(step: int) -> None:
            # From where the sampler begins, what is left of a clip lasts as long as a boot.
            if self.studio.expects_more or self.waiting:
                self.fleet.stand_by()
            if step and len(moments) == 1:
                moments.append(time.monotonic())
                self.progress.note("load", moments[1] - moments[0], job=self.job.id, clip=clip + 1)
            self.progress.update("rendering", step=step)

        def meanwhile() -> None:
            if self.waiting:
                self.fleet.prepare(self._images(self.waiting[0]))

        self.progress.update("rendering")
        outputs = comfy.render(build_workflow(shot, self.settings), on_step, meanwhile)
        spent = time.monotonic() - moments[-1]
        self.progress.note("render", spent, job=self.job.id, clip=clip + 1, seed=seed)
        return outputs

    def _join(self) -> None:
        self.progress.update("joining")
        listing, part = self.job.folder / "clips" / "list.txt", self.job.output.with_suffix(".part")
        names = (self.job.clip(clip).name for clip in range(self.plan.clips))
        listing.write_text("".join(f"file '{name}'\n" for name in names))
        with self.progress.timed("join", job=self.job.id):
            self.media.run(join_command(listing, part))
            self.media.check_video(part, KEPT_FRAMES * self.plan.clips, self.size)
        keep(part, self.job.output)
