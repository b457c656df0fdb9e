"""Texts are read once: each is encoded into a file, which every clip's process loads."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Mapping

from ltx.cancellation import Cancellation
from ltx.comfyui.client import Comfy, ComfyLost
from ltx.comfyui.conditioning import PACK_DESCRIPTION, conditioning_key
from ltx.comfyui.model_files import NoIdentity, encoder_files, read_version
from ltx.comfyui.standby import ComfyProcesses
from ltx.errors import JobError, Unavailable
from ltx.film.failures import explain
from ltx.progress import Progress
from ltx.settings import Settings
from ltx.text import log_event, one_line

Keys = dict[str, str]


class Texts:
    """The texts of the job in hand by the keys of their files, and the process that reads them.

    Without keys every clip's graph has the text encoder in it: with LTX_TEXT=clip, on a ComfyUI
    that is not ours, and where our node pack or what a key is made of is missing.
    """

    def __init__(
        self,
        settings: Settings,
        cancellation: Cancellation,
        progress: Progress,
        processes: ComfyProcesses,
    ) -> None:
        self.settings, self.cancellation, self.progress = settings, cancellation, progress
        self.processes, self.process = processes, processes.text
        self.files = processes.conditioning
        self.basis: object = None
        self.job_id, self.keys = "", Keys()
        # Whether the process is kept for the job after this one, where there is room.
        self.keeps = False
        self.preloads = True
        self.reason = ""

    def begin(self, texts: Iterable[str], keeps: bool) -> None:
        """Takes a job's texts in hand; where one has no file, the process that reads it boots."""
        self.keeps, self.preloads = keeps, True
        self.keys = self._find_keys(texts)
        if self.keys and self._unread(self.keys):
            # Where none can be booted, the job will be told when it needs it.
            with contextlib.suppress(JobError):
                self.process.start(self.basis)

    def _find_keys(self, texts: Iterable[str]) -> Keys:
        if self.settings.text_mode == "clip" or self.processes.is_foreign:
            return {}
        try:
            models, version = encoder_files(self.settings), read_version(self.settings.comfyui_dir)
            self.files.prepare()
        except (NoIdentity, OSError) as error:
            self._note(one_line(error))
            return {}
        self.basis = models, version
        return {text: conditioning_key(text, models, version) for text in texts}

    def _note(self, reason: str) -> None:
        """Says once why every clip has to read its texts itself."""
        if reason and reason != self.reason:
            message = f"Every clip reads its texts itself, which takes longer: {reason}."
            log_event("texts_by_clip", message, logging.WARNING)
        self.reason = reason

    def _unread(self, keys: Mapping[str, str]) -> Keys:
        return {text: key for text, key in keys.items() if not self.files.has(key)}

    def preload(self) -> None:
        """Has the encoder loaded while something else is waited for."""
        self.process.preload()

    def read(self, job_id: str) -> None:
        """Encodes, in one prompt, what has no file yet. Raises JobError."""
        if not self.keys:
            return
        self.job_id, started = job_id, time.monotonic()
        self.files.trim(self.keys.values())
        known, unread = len(self.keys), self._unread(self.keys)
        if unread:
            self.progress.update("conditioning")
            self._encode(unread)
        if self.keys:
            spent, known = time.monotonic() - started, known - len(unread)
            self.progress.spend("text", spent)
            counts = {"encoded": len(unread), "known": known}
            log_event("text_done", job=job_id, **counts, seconds=round(spent, 1))

    def keys_for(self, comfy: Comfy, texts: Iterable[str]) -> Keys | None:
        """Where a clip's process finds its texts; None when its graph has to have the encoder.

        Raises JobError, Unavailable.
        """
        if not self.keys or not comfy.child or not self._has_pack(comfy):
            return None
        keys = {text: self.keys[text] for text in texts}
        if lost := self._unread(keys):
            self._encode(lost)
        self._settle()
        return keys if self.keys else None

    def forget(self, keys: Iterable[str]) -> None:
        """Has these texts encoded again: ComfyUI could not load their files."""
        for key in keys:
            (self.files.folder / key).unlink(missing_ok=True)

    def _has_pack(self, comfy: Comfy) -> bool:
        """Whether this ComfyUI has our node pack in our version. Raises Unavailable."""
        told = comfy.pack()
        if told == PACK_DESCRIPTION:
            self._note("")
            return True
        lacks = (
            f"has other nodes of this name ({one_line(told, 60)})" if told else "lacks its nodes"
        )
        self._note(f"ComfyUI {lacks}; doctor tells more")
        return False

    def _encode(self, keys: Keys) -> None:
        """Two attempts, as for a clip; the process is then kept or ended."""
        seconds = self.settings.clip_timeout
        late = JobError("clip_timeout", f"The texts were not encoded within {seconds:g} s.")
        with self.cancellation.deadline("texts", seconds, late):
            try:
                self._attempt(keys)
            except JobError as error:
                if not error.again:
                    raise
                message = f"{error}\n{error.tail}".strip()
                log_event("text_retry", message, logging.WARNING, job=self.job_id)
                # It may have written all of them before it failed.
                if unread := self._unread(keys):
                    self._attempt(unread)
        self._settle()

    def _attempt(self, keys: Keys) -> None:
        try:
            self.process.start(self.basis)
            if not self._has_pack(self.process.ready()):
                self.keys = {}
                return self.process.end()
            self.process.encode(keys)
            if self._unread(keys):
                message = "ComfyUI reported success without the file of a text."
                raise JobError("comfyui_failed", message, again=True)
        except (ComfyLost, Unavailable, JobError) as error:
            reason = explain(error, "The texts", self.process.tail())
            self.process.end()
            raise reason from error

    def _settle(self) -> None:
        """Keeps the process for the next job where there is room, and asks it to end where not."""
        if not (self.keeps and self.process.fits):
            self.process.dismiss()

    def finish(self) -> None:
        """At a job's end: nothing that is not kept is left running."""
        self._settle()
        if not self.process.alive:
            self.process.end()

    def rest(self) -> None:
        """Between jobs: the encoder is loaded ahead where there is room, and ended where not."""
        if not self.process.fits:
            return self.process.end()
        if self.keys and self.preloads and self.processes.spare and not self.process.alive:
            # Once: one that does not boot is the next job's to tell.
            self.preloads = False
            with contextlib.suppress(JobError):
                self.process.start(self.basis)
        self.process.preload()
