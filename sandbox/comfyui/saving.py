"""Where output files go, and how a test has them spoilt."""

from __future__ import annotations

import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from options import Folders
from script import Fault

DATE_TOKENS = {
    "%year%": "%Y",
    "%month%": "%m",
    "%day%": "%d",
    "%hour%": "%H",
    "%minute%": "%M",
    "%second%": "%S",
}


@dataclass(frozen=True)
class NumberedFile:
    """`<folder>/<stem>_00001` without its ending, and the folder as the API names it."""

    folder: Path
    subfolder: str
    stem: str
    number: int

    def name(self, ending: str) -> str:
        return f"{self.stem}_{self.number:05}{ending}"

    def path(self, ending: str) -> Path:
        return self.folder / self.name(ending)


def number_file(folders: Folders, kind: str, prefix: str) -> NumberedFile:
    """One more than the highest number that any file of this prefix has."""
    root = folders.by_type(kind)
    assert root is not None
    for token, directive in DATE_TOKENS.items():
        prefix = prefix.replace(token, time.strftime(directive))
    subfolder, stem = os.path.split(os.path.normpath(prefix))
    folder = Path(os.path.abspath(root / subfolder))
    _refuse_outside(root, folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbered = re.compile(re.escape(stem) + r"_(\d+)\D*\..+", re.IGNORECASE)
    matches = (numbered.fullmatch(name) for name in os.listdir(folder))
    highest = max((int(match[1]) for match in matches if match), default=0)
    return NumberedFile(folder, subfolder, stem, highest + 1)


def _refuse_outside(root: Path, folder: Path) -> None:
    common = os.path.commonpath([root, folder])
    if common != str(root):
        raise Exception(
            "**** ERROR: Saving image outside the output folder is not allowed."
            f"\n full_output_folder: {folder}\n         output_dir: {root}"
            f"\n         commonpath: {common}"
        )


def pad(path: Path, megabytes: int) -> None:
    """Makes a film as large as a real one of noise: a box of zeros that every player skips."""
    missing = megabytes * 10**6 - path.stat().st_size
    if missing >= 8:
        with path.open("ab") as file:
            file.write(missing.to_bytes(4, "big") + b"free")
            file.truncate(megabytes * 10**6)


def spoil(path: Path, fault: Fault, previous: Path | None) -> None:
    """Do to a finished film what the fault asks for; most faults ask for nothing here."""
    if fault.kind == "no_output":
        path.unlink(missing_ok=True)
    elif fault.kind == "short_file":
        path.write_bytes(b"\0\0\0\x08ftyp")
    elif fault.kind == "truncated":
        os.truncate(path, int(path.stat().st_size * fault.get("amount", 0.5)))
    elif fault.kind == "stale":
        source = fault.get("path", previous)
        if source is not None:
            shutil.copyfile(source, path)
