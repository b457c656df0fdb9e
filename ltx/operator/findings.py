"""What the doctor's checks look at, and what they say."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from ltx.cancellation import Cancellation
from ltx.comfyui.client import Comfy
from ltx.comfyui.standby import ComfyProcesses
from ltx.film.ffmpeg import Media
from ltx.process import free_port
from ltx.settings import ENV_FILE, Settings

EDIT = f"nano {shlex.quote(str(ENV_FILE))}"


class Finding(NamedTuple):
    """One line of the doctor: what was checked, OK / WARN / FAIL, what was seen, what to type."""

    check: str
    status: str
    detail: str
    next: str = ""


class DoctorContext:
    """What the checks look at. A ComfyUI that they booted ends with the context."""

    def __init__(self, settings: Settings, cancellation: Cancellation) -> None:
        self.settings, self.cancellation = settings, cancellation
        self.media = Media(settings, cancellation)
        self.comfy = Comfy(settings.comfyui_url, cancellation)
        self.undo = contextlib.ExitStack()

    def boot(self) -> None:
        """Boots a ComfyUI on a port and in a folder of its own, out of a running worker's way."""
        url = urlsplit(self.settings.comfyui_url)
        url = url._replace(netloc=f"{url.hostname}:{free_port()}")
        folder = self.undo.enter_context(tempfile.TemporaryDirectory(prefix="ltx-doctor-"))
        own = dataclasses.replace(self.settings, comfyui_url=url.geturl(), state_dir=Path(folder))
        processes = ComfyProcesses(own, self.cancellation)
        self.undo.callback(processes.stop)
        self.comfy = processes.fresh()


Answer = tuple[str, str, str]
Examination = Callable[[DoctorContext], Iterator[Answer]]


class Check(NamedTuple):
    """One entry of the doctor's table.

    run: yields status, detail and next command; what it raises is a FAIL with `fix`.
    needs: the checks that this one makes no sense without.
    """

    name: str
    run: Examination
    needs: tuple[str, ...] = ()
    fix: str = ""
