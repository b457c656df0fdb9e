"""Files that are there whole or not at all, and the state folder they lie in."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ltx.errors import ConfigError
from ltx.settings import Settings
from ltx.text import as_dict


def file_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def keep(part: Path, target: Path) -> None:
    """Makes a finished file the real one: it is there whole or not at all, whatever dies."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def keep_json(target: Path, value: object) -> None:
    part = target.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1))
    keep(part, target)


def write_json(target: Path, value: object) -> None:
    """As keep_json, for what may be lost when the machine dies."""
    part = target.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.replace(target)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from our own folder; empty when there is none or it cannot be read."""
    try:
        return as_dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


@contextlib.contextmanager
def state_folder(settings: Settings) -> Iterator[None]:
    """The state folder, private and for one worker alone."""
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    settings.state_dir.chmod(0o700)
    with (settings.state_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            told = f"STATE_DIR={settings.state_dir}: another worker uses it; stop that one first."
            raise ConfigError(told) from error
        yield


def with_worker_id(settings: Settings) -> Settings:
    """WORKER_ID, or one made at the first start and kept."""
    if settings.worker_id:
        return settings
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = settings.state_dir / "worker-id"
    if not path.exists():
        path.with_suffix(".part").write_text(f"{socket.gethostname()[:40]}-{uuid.uuid4().hex[:8]}")
        keep(path.with_suffix(".part"), path)
    return dataclasses.replace(settings, worker_id=path.read_text())


def hand_out(made: Path, target: Path) -> None:
    """A copy for the operator, whole or not at all."""
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(made, part)
    part.chmod(0o644)
    part.replace(target)
