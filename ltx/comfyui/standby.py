"""A fresh ComfyUI process for every clip, the next one booting while this one renders."""

from __future__ import annotations

import contextlib
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from ltx.cancellation import Cancellation
from ltx.comfyui.client import LOCAL_HOSTS, VRAM_BACK, Comfy
from ltx.comfyui.conditioning import ConditioningFiles
from ltx.comfyui.model_files import PATHS_FLAG
from ltx.comfyui.text_process import TextProcess
from ltx.errors import JobError, Unavailable
from ltx.process import Child, free_port
from ltx.settings import Settings
from ltx.state import make_own, note_newest, remove_own
from ltx.text import log_event, one_line

KEPT_LOGS = 10


class ComfyProcesses:
    """Boots ComfyUI processes, hands out fresh ones and ends them, but never one it did not boot.

    `current` renders; `spare` boots or waits beside it for the next clip; `text` reads texts.
    """

    def __init__(self, settings: Settings, cancellation: Cancellation) -> None:
        self.settings, self.cancellation = settings, cancellation
        self.current: Comfy | None = None
        self.spare: Comfy | None = None
        self.conditioning = ConditioningFiles(settings.state_dir / "conditioning")
        self.text = TextProcess(settings, cancellation, lambda: self._boot(reads=True))
        # A standby that fails is replaced by a plain boot; a plain boot that fails is a failure.
        self.is_standby = False
        self.foreign_logged = False
        self.stranger = ""
        # The most that was seen free while nothing of ours was loaded.
        self.vram_free = 0

    @property
    def is_foreign(self) -> bool:
        """Whether the next clip goes to a ComfyUI that somebody else runs."""
        comfy = self.spare or self.current
        return comfy is not None and comfy.child is None

    def warm(self) -> None:
        """Starts booting what fresh() will hand out; does not wait for it."""
        # Where none can be booted, the job that needs one will be told.
        with contextlib.suppress(JobError):
            self._warm()

    def _warm(self) -> Comfy:
        if self.spare is None or not self.spare.child:
            if self.spare:
                self.spare.end()
            self.spare = (None if self.current else self._find_foreign()) or self._boot()
        return self.spare

    def ready(self) -> Comfy:
        """What fresh() will hand out, once it answers. Raises JobError."""
        comfy = self._warm()
        if comfy.child:
            comfy.await_ready(self.settings.boot_timeout)
        return comfy

    def fresh(self, again: bool = False) -> Comfy:
        """A ComfyUI that has rendered nothing yet; one that is not ours has emptied its caches.

        With COMFYUI_RESTART=job a job's next clip goes to the same process, unless it is tried
        again after a failure.
        """
        if not again and (kept := self._kept()):
            return kept
        self.retire()
        standby, self.is_standby = self.is_standby, False
        self.current, self.spare = self._warm(), None
        try:
            if self.current.child:
                self.current.await_ready(self.settings.boot_timeout)
                self._look_at_vram(self.current)
            else:
                self.current.flush()
        except Unavailable as error:
            self.retire()
            raise JobError("comfyui_unavailable", one_line(error), again=True) from error
        except JobError as error:
            if not standby or error.code != "comfyui_unavailable":
                raise
            log_event("standby_failed", f"{error.detail}\n{error.tail}", logging.WARNING)
            return self.fresh(again)
        return self.current

    def _kept(self) -> Comfy | None:
        """The process that renders on; None where a fresh one is due."""
        comfy = self.current if self.settings.comfyui_restart == "job" else None
        if comfy is None or not comfy.child or not comfy.child.alive:
            return None
        try:
            return comfy if comfy.is_lean() else None
        except Unavailable:
            return None

    def stand_by(self) -> None:
        """Boots the next process while this one renders, so that its boot costs no time."""
        wanted = self.settings.comfyui_standby
        if wanted and self.current and self.current.child and not self.is_standby:
            self.is_standby = True
            self.warm()

    def _look_at_vram(self, comfy: Comfy) -> None:
        """Says once when less is free than there was with nothing of ours loaded."""
        free = comfy.vram().free
        if free < VRAM_BACK * self.vram_free:
            message = "Something else on this machine uses the GPU."
            missing = (self.vram_free - free) >> 20
            log_event("vram_missing", message, logging.WARNING, mb=missing)
            self.vram_free = free
        self.vram_free = max(self.vram_free, free)

    def dismiss(self) -> None:
        """Asks the process that has rendered to end; does not wait for it."""
        if self.current and self.current.child:
            self.current.child.ask_to_end()

    def retire(self) -> None:
        """Ends the process that has rendered; its memory is free when this returns."""
        if self.current:
            self.current.end()
        self.current = None

    def stop(self) -> None:
        for comfy in (self.current, self.spare, self.text.comfy):
            if comfy and comfy.child:
                comfy.child.ask_to_end()
        self.retire()
        self.text.end()
        if self.spare:
            self.spare.end()
        self.spare, self.is_standby = None, False

    def _find_foreign(self) -> Comfy | None:
        comfy = Comfy(self.settings.comfyui_url, self.cancellation)
        if not comfy.answers():
            self.note_stranger(comfy.stranger)
            comfy.end()
            return None
        if not self.foreign_logged:
            log_event("comfyui_foreign", "Using a ComfyUI that we did not start.", url=comfy.url)
            self.foreign_logged = True
        return comfy

    def note_stranger(self, stranger: str) -> None:
        """Says once what answers at COMFYUI_URL and is no ComfyUI."""
        if stranger and stranger != self.stranger:
            message = f"At COMFYUI_URL={self.settings.comfyui_url} {stranger}."
            log_event("comfyui_stranger", message, logging.WARNING)
        self.stranger = stranger

    def _boot(self, reads: bool = False) -> Comfy:
        """reads: it is the one that reads texts. Raises JobError, OSError."""
        parts = urlsplit(self.settings.comfyui_url)
        if parts.hostname not in LOCAL_HOSTS:
            message = f"No ComfyUI answers at COMFYUI_URL={self.settings.comfyui_url}."
            if self.stranger:
                message = f"{message} There {self.stranger}."
            raise JobError("comfyui_unavailable", message)
        port = free_port() if reads or self.current else parts.port or 80
        home = self.settings.state_dir / "comfyui" / str(port)
        remove_own(home)
        make_own(home)
        for name in ("input", "output", "temp"):
            (home / name).mkdir()
        command = [
            *(self.settings.comfyui_python, "-u", "main.py"),
            *("--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"),
            *("--input-directory", str(home / "input")),
            *("--output-directory", str(home / "output")),
            *self._pack_flags(),
            *("--temp-directory", str(home), "--database-url", "sqlite:///:memory:"),
            *self.settings.comfyui_args,
        ]
        log_file = open_log(self.settings.state_dir / "logs", port)
        folder = self.settings.comfyui_dir
        child = Child(command, self.settings, log_file, cwd=folder, oom_score=500)
        use = "texts" if reads else "clips"
        log_event("comfyui_booting", port=port, pid=child.process.pid, use=use)
        return Comfy(f"http://127.0.0.1:{port}", self.cancellation, child, home)

    def _pack_flags(self) -> list[str]:
        """Has ComfyUI load our nodes; without the folder of their files it does without them."""
        try:
            return [PATHS_FLAG, str(self.conditioning.prepare())]
        except OSError as error:
            log_event("pack_left_out", f"{error.filename}: {error.strerror}", logging.WARNING)
            return []


def open_log(folder: Path, port: int) -> IO[bytes]:
    """A log file for one ComfyUI process; only the newest few are kept."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    log_file = make_own(folder) / f"comfyui-{stamp}-{port}.log"
    note_newest(folder, [log_file.name], KEPT_LOGS)
    return log_file.open("w+b")
