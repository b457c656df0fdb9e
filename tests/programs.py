"""Programs of a test's own, which are found before the real ones."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import imageio_ffmpeg


def stand_in(folder: Path, name: str, script: str) -> str:
    """Makes folder/bin/name this shell script; gives the PATH on which it is found first."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return f"{path.parent}:{os.environ['PATH']}"


def preceded(folder: Path, name: str, before: str) -> str:
    """A stand-in that runs `before`, with the same arguments, and then becomes the real one."""
    return stand_in(folder, name, f'{before}\nexec "{shutil.which(name)}" "$@"')


def with_current_ffmpeg(folder: Path) -> str:
    """A PATH on which ffmpeg is the newest that PyPI has.

    Its defaults differ from those of Debian's, and it starts in a fifth of the CPU.
    """
    (folder / "current").mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (folder / "current" / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    return f"{folder / 'current'}:{os.environ['PATH']}"
