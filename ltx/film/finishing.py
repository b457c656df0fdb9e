"""What ComfyUI rendered becomes a clip that may be delivered, or is refused."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ffmpeg

from ltx.errors import JobError, ToolFailed
from ltx.files import read_json, replace_durably, write_json_durably
from ltx.film.clip_gate import judge, measure_clip, read_measures
from ltx.film.clips import contact_sheet, encode_clip, place_watermark
from ltx.film.ffmpeg import Media, ffmpeg_command, read_clip
from ltx.job import CLIP_FRAMES, KEPT_FRAMES, Job, render_size
from ltx.process import Child
from ltx.progress import Progress
from ltx.settings import Settings, Size
from ltx.state import make_own, note_newest
from ltx.text import MAX_JSON_BYTES, log_event, one_line

KEPT_BAD_CLIPS = 10


@dataclass(frozen=True, eq=False)
class PendingClip:
    """The pass over a raw clip, which runs while the next clip renders."""

    clip: int
    child: Child
    started: float  # time.time()


class Finishing:
    """Measures, cuts, watermarks and encodes each raw clip of a job, in one pass.

    size: of the film. mark: the watermark's own size, None for a film without one.
    """

    def __init__(
        self, settings: Settings, media: Media, progress: Progress, job: Job,
        size: Size, mark: Size | None,
    ) -> None:  # fmt: skip
        self.settings, self.media, self.progress, self.job = settings, media, progress, job
        self.size, self.mark = size, mark

    def start(self, clip: int) -> PendingClip:
        return PendingClip(clip, self.media.start(ffmpeg_command(self._pass(clip))), time.time())

    def accept(self, pending: PendingClip) -> bool:
        """Keeps a clip that may be delivered; False when it has to be rendered once more.

        Raises JobError bad_clip when it has been already, ToolFailed when the encode failed.
        """
        clip, message = pending.clip, self._measure(pending)
        if message and self.settings.clip_gate == "enforce":
            self._refuse(clip, message)
            return False
        if message:
            log_event("bad_clip_kept", message, logging.WARNING, job=self.job.id, clip=clip + 1)
        self._keep(clip, pending.started)
        return True

    def inspect(self, clip: int, attempt: int, path: Path) -> None:
        """ComfyUI reports success for files that are cut short; CLIP_GATE says what then.

        Raises ToolFailed.
        """
        if self.settings.clip_gate == "off":
            return
        try:
            self.media.check_video(path, CLIP_FRAMES, render_size(self.size))
        except ToolFailed as error:
            if self.settings.clip_gate == "enforce":
                self._keep_bad(clip, attempt, path)
                raise
            log_event("bad_clip_kept", str(error), logging.WARNING, job=self.job.id, clip=clip + 1)

    def _pass(self, clip: int) -> Any:
        """One decode for the measures and the encode; without a gate the encode alone."""
        frames = self._read(clip)
        if self.settings.clip_gate == "off":
            return self._encode(clip, frames)
        halves, ends = frames.split(), (self.job.frame(clip), self.job.frame(clip + 1))
        measures = measure_clip(halves[0], *ends, render_size(self.size))
        return ffmpeg.merge_outputs(measures, self._encode(clip, halves[1]))

    def _read(self, clip: int) -> Any:
        """Where damage is a reason to refuse, none is concealed."""
        strict = {"err_detect": "explode"} if self.settings.clip_gate == "enforce" else {}
        return read_clip(self.job.raw(clip), **strict)

    def _encode(self, clip: int, frames: Any) -> Any:
        mark = self.settings.watermark if self.mark else None
        place = place_watermark(self.mark or self.size, self.size)
        return encode_clip(frames, self._part(clip), self.size, mark, place)

    def _part(self, clip: int) -> Path:
        return self.job.clip(clip).with_suffix(".part")

    def _measure(self, pending: PendingClip) -> str:
        """Why a clip is bad, nothing when it is not; its record tells what was measured."""
        clip = pending.clip
        try:
            self.media.finish(pending.child)
        except ToolFailed as error:
            return self._explain(clip, error)
        if self.settings.clip_gate == "off":
            return ""
        text = os.pread(pending.child.output.fileno(), MAX_JSON_BYTES, 0).decode()
        try:
            measures = read_measures(text)
        except (ToolFailed, KeyError) as error:
            return f"Clip {clip + 1} cannot be decoded whole: {one_line(error)}."
        found, failed = measures.rounded(), judge(measures)
        record = {**read_json(self.job.record(clip)), "gate": found}
        write_json_durably(self.job.record(clip), record)
        log_event("clip_measured", job=self.job.id, clip=clip + 1, failed=len(failed), **found)
        return f"Clip {clip + 1}: {'; '.join(map(str, failed))}." if failed else ""

    def _explain(self, clip: int, error: ToolFailed) -> str:
        """What is wrong with a clip whose pass failed; raises the error if it is not the clip."""
        if self.settings.clip_gate == "enforce":
            try:
                self.media.run(self._read(clip).output("-", f="null"))
            except ToolFailed as damage:
                return f"Clip {clip + 1} cannot be decoded whole: {one_line(damage)}."
        raise error

    def _refuse(self, clip: int, message: str) -> None:
        """Throws the encode away and leaves the clip to be rendered once more, or fails."""
        self._part(clip).unlink(missing_ok=True)
        record = read_json(self.job.record(clip))
        attempt = int(record.get("attempts", 1))
        # A restart has to know that one of the two attempts is spent.
        write_json_durably(self.job.record(clip), {**record, "refused": message})
        self._keep_bad(clip, attempt, self.job.raw(clip))
        if attempt > 1:
            raise JobError("bad_clip", message)
        log_event("clip_retry", message, logging.WARNING, job=self.job.id, clip=clip + 1)

    def _keep_bad(self, clip: int, attempt: int, path: Path) -> None:
        """A clip that was refused, and a contact sheet of it, for the operator to look at."""
        folder = self.settings.state_dir / "bad-clips"
        make_own(folder)
        kept = folder / f"{self.job.id}-clip{clip + 1}-attempt{attempt}.mp4"
        path.replace(kept)
        note_newest(folder, (kept.name, kept.with_suffix(".jpg").name), KEPT_BAD_CLIPS)
        with contextlib.suppress(ToolFailed):
            self.media.run(contact_sheet(kept, kept.with_suffix(".jpg")))

    def _keep(self, clip: int, started: float) -> None:
        part = self._part(clip)
        self.media.check_video(part, KEPT_FRAMES, self.size)
        # The pass ended while something else was waited for; its file knows when.
        self.progress.note("encode", part.stat().st_mtime - started, job=self.job.id, clip=clip + 1)
        replace_durably(part, self.job.clip(clip))
        self.job.raw(clip).unlink()
