"""Files that are there whole or not at all, and the state folder they lie in."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ltx.text import as_dict


def file_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def replace_durably(part: Path, target: Path) -> None:
    """Makes a finished file the real one: it is there whole or not at all, whatever dies."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json_durably(target: Path, value: object) -> None:
    part = target.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1))
    replace_durably(part, target)


def write_json(target: Path, value: object) -> None:
    """As write_json_durably, for what may be lost when the machine dies."""
    part = target.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.replace(target)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from our own folder; empty when there is none or it cannot be read."""
    try:
        return as_dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def hand_out(made: Path, target: Path) -> None:
    """A copy for the operator, whole or not at all."""
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(made, part)
    part.chmod(0o644)
    part.replace(target)
