"""The making of one job's film, from frames to an MP4."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ltx.cancellation import Cancellation
from ltx.comfyui.answers import ConditioningLost, Gap, find_video
from ltx.comfyui.client import Comfy, ComfyLost, Rendering
from ltx.comfyui.standby import ComfyProcesses
from ltx.comfyui.workflow import (
    NEGATIVE_PROMPT,
    STEPS,
    ClipSpec,
    Workflow,
    build_probe,
    build_workflow,
)
from ltx.errors import JobError, ToolFailed, Unavailable
from ltx.files import read_json, replace_durably, write_json_durably
from ltx.film.clips import join_command
from ltx.film.failures import explain
from ltx.film.ffmpeg import Media
from ltx.film.finishing import Finishing, PendingClip
from ltx.film.pictures import (
    check_picture,
    check_watermark,
    half_the_cores,
    prepare_frames,
    turn_like,
)
from ltx.film.texts import Texts
from ltx.job import KEPT_FRAMES, Job, Plan, render_size, seed_for
from ltx.progress import Progress
from ltx.settings import Settings, Size
from ltx.text import log_event, one_line

KEPT_BAD_CLIPS = 10


class RenderContext:
    """What makes films and outlives each of them: ComfyUI, ffmpeg, the progress they report."""

    def __init__(
        self,
        settings: Settings,
        cancellation: Cancellation,
        progress: Progress,
        seed: int | None = None,
    ) -> None:
        self.settings, self.cancellation, self.progress, self.seed = (
            settings,
            cancellation,
            progress,
            seed,
        )
        self.processes = ComfyProcesses(settings, cancellation)
        self.texts = Texts(settings, cancellation, progress, self.processes)
        self.media = Media(settings, cancellation)
        # A worker keeps a ComfyUI waiting for the next job; who makes one film does not.
        self.expects_more = False
        self.watermark: tuple[tuple[int, int, int], Size] | None = None

    def watermark_size(self) -> Size:
        """Decodes the watermark fully if it has changed. Raises JobError watermark_missing."""
        path = self.settings.watermark
        try:
            status = path.stat()
        except OSError:
            return check_watermark(self.media, path)
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if not self.watermark or self.watermark[0] != seen:
            self.watermark = seen, check_watermark(self.media, path)
        return self.watermark[1]

    def foresee(self, texts: Iterable[str]) -> None:
        """Boots what a job will need; does not wait for it."""
        self.processes.warm()
        self.texts.begin([*texts, NEGATIVE_PROMPT], self.expects_more)

    def probe(self) -> None:
        """Raises JobError unless a new ComfyUI boots and has all parts of the workflow."""
        self.processes.stop()
        try:
            self.check_graph()
        finally:
            self.processes.stop()

    def check_graph(self) -> None:
        """Looks whether the next clip's ComfyUI fits our graph; one that does not is ended.

        Raises Gap where it does not fit, JobError comfyui_unavailable where none can be asked.
        """
        try:
            self.processes.ready().check_parts(build_probe(self.settings))
        except Gap:
            # Mended on the disk, it fits only as another process.
            self.processes.stop()
            raise
        except Unavailable as error:
            raise JobError("comfyui_unavailable", one_line(error)) from error


Fetch = Callable[[str, Path, str], None]


def frame_field(number: int) -> str:
    """Where a job names a frame."""
    return f"stageData.frames[{number}]"


class Film:
    """The making of one job's film: all that needs neither queue nor upload.

    What is already in the job's folder is not made again. Raises JobError.
    """

    def __init__(self, context: RenderContext, job: Job, plan: Plan) -> None:
        self.context, self.job, self.plan = context, job, plan
        self.settings, self.cancellation, self.progress = (
            context.settings,
            context.cancellation,
            context.progress,
        )
        self.processes, self.media, self.texts = context.processes, context.media, context.texts
        self.size = self.settings.size
        # The clips that are still to be rendered, the next one first.
        self.waiting: list[int] = []

    def make(self, fetch: Fetch) -> None:
        """Leaves the film in job.output; fetch(url, path, field) brings a frame."""
        self.progress.update("checking", clips=self.plan.clips)
        mark = self.context.watermark_size() if self.plan.watermark else None
        try:
            if missing := self._missing_clips():
                self.context.foresee(self.plan.prompts[clip] for clip in missing)
            self._download(fetch)
            self._cut_frames()
            makers = (self.settings, self.media, self.progress)
            self.finishing = Finishing(*makers, self.job, self.size, mark)
            self._make_clips()
            self.processes.dismiss()
            self._join()
        except ToolFailed as error:
            raise JobError("media_failed", one_line(error)) from error
        finally:
            self.processes.retire()
            self.texts.finish()

    def _missing_clips(self) -> list[int]:
        return [clip for clip in range(self.plan.clips) if not self.job.clip(clip).exists()]

    def _download(self, fetch: Fetch) -> None:
        self.progress.update("downloading")
        with self.progress.timed("download", job=self.job.id, frames=len(self.plan.frames)):
            for number, url in enumerate(self.plan.frames):
                self.texts.preload()
                source = self.job.source(number)
                if not source.exists():
                    fetch(url, source.with_suffix(".part"), frame_field(number))
                    replace_durably(source.with_suffix(".part"), source)

    def _cut_frames(self) -> None:
        """Checks every picture and cuts it to what will be rendered: portrait if the first is."""
        self.progress.update("checking")
        self.texts.preload()
        with self.progress.timed("check", job=self.job.id):
            numbers = range(len(self.plan.frames))
            pictures = [check_picture(self.job.source(n), frame_field(n)) for n in numbers]
            self.size = turn_like(pictures[0], self.size)
            frames = [(one, self.job.frame(n)) for n, one in enumerate(pictures)]
            missing = [(picture, frame) for picture, frame in frames if not frame.exists()]
            prepare_frames(self.media, missing, render_size(self.size), half_the_cores())

    def _make_clips(self) -> None:
        """Renders each missing clip; each is measured and encoded beside the next rendering."""
        self.waiting = self._missing_clips()
        if not all(self.job.raw(clip).exists() for clip in self.waiting):
            self._read_texts()
        with contextlib.ExitStack() as children:
            pending: list[PendingClip] = []
            while self.waiting or pending:
                if self.waiting:
                    clip = self.waiting.pop(0)
                    if not self.job.raw(clip).exists():
                        self._render(clip)
                    pending.append(self.finishing.start(clip))
                    children.enter_context(pending[-1].child)
                if not self.waiting:
                    self.progress.update("encoding")
                # One that has failed already spares the GPU the clips behind it.
                ready = [one for one in pending if not self.waiting or not one.child.alive]
                pending = [one for one in pending if one not in ready]
                again = [one.clip for one in ready if not self.finishing.accept(one)]
                self.waiting = [*again, *self.waiting]

    def _read_texts(self) -> None:
        try:
            self.texts.read(self.job.id)
        except JobError as error:
            if error.machine:
                # The process that waits for the clip is of the same ComfyUI; mended on the disk,
                # it is mended only in another one.
                self.processes.stop()
            raise

    def _render(self, clip: int) -> None:
        """One raw clip, with a second attempt where a fresh ComfyUI may do better."""
        seconds = self.settings.clip_timeout
        late = JobError("clip_timeout", f"Clip {clip + 1} was not done within {seconds:g} s.")
        with self.cancellation.deadline("clip", seconds, late):
            refused = "refused" in read_json(self.job.record(clip))
            for attempt in (2,) if refused else (1, 2):
                try:
                    return self._attempt(clip, attempt)
                except JobError as error:
                    if attempt == 2 or not error.again:
                        raise
                    message = f"{error}\n{error.tail}".strip()
                    log_event(
                        "clip_retry", message, logging.WARNING, job=self.job.id, clip=clip + 1
                    )

    def _attempt(self, clip: int, attempt: int) -> None:
        self.progress.update("booting", clip=clip + 1, step=0, steps=STEPS)
        with self.progress.timed("boot", job=self.job.id, clip=clip + 1):
            comfy = self.processes.fresh(again=attempt > 1)
        fixed, started = self.context.seed, time.monotonic()
        seed = seed_for(self.job.id, clip, attempt)
        if fixed is not None:
            seed = fixed + clip + (attempt - 1) * self.plan.clips
        part = self.job.raw(clip).with_suffix(".part")
        try:
            comfy.fetch(find_video(self._run_workflow(comfy, clip, seed)), part)
            if self.settings.comfyui_restart == "clip":
                self.processes.dismiss()
            self.finishing.inspect(clip, attempt, part)
        except (ComfyLost, Unavailable, ToolFailed, JobError) as error:
            raise explain(error, f"Clip {clip + 1}", comfy.tail()) from error
        spent = round(time.monotonic() - started, 1)
        record = {"seed": seed, "renderSec": spent, "attempts": attempt}
        if refused := read_json(self.job.record(clip)).get("refused"):
            record["refused"] = refused
        write_json_durably(self.job.record(clip), record)
        replace_durably(part, self.job.raw(clip))

    def _wants_another(self) -> bool:
        """Whether the next clip, or after the last one the next job, will get a fresh process."""
        if self.waiting:
            return self.settings.comfyui_restart == "clip"
        return self.context.expects_more

    def _run_workflow(self, comfy: Comfy, clip: int, seed: int) -> Mapping[str, Any]:
        spec = self._upload_spec(comfy, clip, seed)
        keys = self.texts.keys_for(comfy, (spec.prompt, spec.negative))
        workflow = build_workflow(spec, self.settings, keys)
        comfy.check_parts(workflow)
        loaded = started = time.monotonic()
        self.progress.update("rendering")
        for state in self._run_prompt(comfy, workflow, keys):
            if state.step and loaded == started:
                loaded = time.monotonic()
                self.progress.note("load", loaded - started, job=self.job.id, clip=clip + 1)
            self.progress.update("rendering", step=state.step)
            # From where the sampler begins, what is left of a clip lasts as long as a boot.
            if self._wants_another():
                self.processes.stand_by()
        spent = time.monotonic() - loaded
        self.progress.note("render", spent, job=self.job.id, clip=clip + 1, seed=seed)
        return state.outputs

    def _run_prompt(
        self, comfy: Comfy, workflow: Workflow, keys: Mapping[str, str] | None
    ) -> Iterator[Rendering]:
        try:
            yield from comfy.render(workflow)
        except ConditioningLost:
            self.texts.forget((keys or {}).values())
            raise

    def _upload_spec(self, comfy: Comfy, clip: int, seed: int) -> ClipSpec:
        """What to render, with its two images where the workflow will find them.

        No name is ever used twice: ComfyUI answers a repeated graph from its cache.
        """
        name = f"{self.job.id}-{uuid.uuid4().hex[:8]}"
        ends = (self.job.frame(clip), self.job.frame(clip + 1))
        first, last = (comfy.upload(path, f"{name}-{path.name}") for path in ends)
        size = render_size(self.size)
        return ClipSpec(
            clip, first, last, self.plan.prompts[clip], seed, f"ltx-worker/{name}", size
        )

    def _join(self) -> None:
        self.progress.update("joining")
        listing, part = self.job.folder / "clips" / "list.txt", self.job.output.with_suffix(".part")
        names = (self.job.clip(clip).name for clip in range(self.plan.clips))
        listing.write_text("".join(f"file '{name}'\n" for name in names))
        frames = KEPT_FRAMES * self.plan.clips
        with self.progress.timed("join", job=self.job.id):
            # By its bare name: ffmpeg takes a path for a URL, which a # or ? would cut.
            join = join_command(Path(listing.name), part.absolute(), frames)
            self.media.run(join, cwd=listing.parent)
            self.media.check_video(part, frames, self.size)
        replace_durably(part, self.job.output)
