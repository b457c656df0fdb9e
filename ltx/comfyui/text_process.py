"""The ComfyUI that reads texts: it writes their conditionings into files and renders no clip."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping

from ltx.cancellation import Cancellation
from ltx.comfyui.client import Comfy, ComfyLost
from ltx.comfyui.workflow import build_text_workflow
from ltx.errors import JobError, Unavailable
from ltx.process import available_memory
from ltx.settings import Settings

# How long a look may take that nobody waits for.
LOOK_S = 1.0


class TextProcess:
    """One process at most, with the text encoder in RAM once it has read a text.

    basis: what its encoder was loaded from. One that has another is replaced, because ComfyUI
    does not look at a loaded file again.
    """

    def __init__(
        self, settings: Settings, cancellation: Cancellation, boot: Callable[[], Comfy]
    ) -> None:
        self.settings, self.cancellation, self.boot = settings, cancellation, boot
        self.comfy: Comfy | None = None
        self.basis: object = None
        self.is_dismissed = self.has_encoder = False

    @property
    def alive(self) -> bool:
        """Whether it may be given work."""
        child = self.comfy.child if self.comfy else None
        return child is not None and child.alive and not self.is_dismissed

    @property
    def fits(self) -> bool:
        """Whether the machine has room for it beside all else."""
        child = self.comfy.child if self.comfy else None
        room = available_memory() + (child.memory() if child else 0)
        return room >= self.settings.text_keep_gb * 10**9

    def start(self, basis: object) -> None:
        """Boots it unless it runs; does not wait. Raises JobError."""
        if not self.alive or basis != self.basis:
            self.end()
            self.comfy, self.basis = self.boot(), basis

    def preload(self) -> None:
        """Has the encoder loaded once the process answers, without waiting for either."""
        if not self.alive or self.has_encoder:
            return
        assert self.comfy
        try:
            if self.comfy.answers(LOOK_S):
                self.has_encoder = True
                self.comfy.submit(build_text_workflow({}, self.settings), str(uuid.uuid4()))
        except (JobError, ComfyLost, Unavailable):
            # Whatever is wrong with it, the texts will tell; but what ends the work ends this.
            self.cancellation.check()

    def ready(self) -> Comfy:
        """Raises JobError comfyui_unavailable."""
        assert self.comfy
        self.comfy.await_ready(self.settings.boot_timeout)
        return self.comfy

    def encode(self, keys: Mapping[str, str]) -> None:
        """Leaves a file for every text, by its key. Raises JobError, ComfyLost, Unavailable."""
        comfy, workflow = self.ready(), build_text_workflow(keys, self.settings)
        comfy.check_parts(workflow)
        self.has_encoder = True
        for _ in comfy.render(workflow):
            pass

    def tail(self) -> str:
        return self.comfy.tail() if self.comfy else ""

    def dismiss(self) -> None:
        """Asks it to end; does not wait for it."""
        if self.alive and self.comfy and self.comfy.child:
            self.comfy.child.ask_to_end()
            self.is_dismissed = True

    def end(self) -> None:
        if self.comfy:
            self.comfy.end()
        self.comfy, self.is_dismissed, self.has_encoder = None, False, False
