"""The state folder: ours by a mark, and nothing in it is removed that does not bear one."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from ltx.errors import ConfigError, LockHeld, StateUnusable
from ltx.files import replace_durably
from ltx.settings import Settings

MARK = ".ltx-worker"
# What is left of a mark that a full disk or a kill kept from being written.
MARK_PART = f"{MARK}.part"
# What is wrong with a path itself, so that no later start will find it better.
WRONG_PATH = (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
MARK_LINE = "Made by ltx-worker, which removes this folder when it is done with it. Noted files:"
# What workers made before there was a mark; a folder with anything else in it is not adopted.
OLD_FILES = {"lock", "worker-id", "status.json", "status.part", "pace.json", "pace.part"}
OLD_JOB = {"job.json", "job.part", "frames", "clips", "output.mp4", "output.part"}
OLD_JOB |= {"outcome.json", "outcome.part"}
OLD_COMFYUI = {"input", "output", "temp"}


def has_mark(folder: Path) -> bool:
    return (folder / MARK).is_file() and not folder.is_symlink()


def make_own(folder: Path) -> Path:
    """A folder that bears our mark. Raises FileExistsError for one that somebody else filled."""
    folder.mkdir(parents=True, exist_ok=True)
    if not has_mark(folder):
        if names_in(folder) - {MARK_PART}:
            raise FileExistsError(errno.EEXIST, "it was not made by ltx-worker", str(folder))
        put_mark(folder)
    return folder


def put_mark(folder: Path, noted: Sequence[str] = ()) -> None:
    part = folder / MARK_PART
    part.write_text("\n".join((MARK_LINE, *noted)) + "\n")
    part.replace(folder / MARK)


def remove_own(folder: Path) -> None:
    """Removes a folder that bears our mark; any other one stays as it is.

    The mark goes last, so that a removal that was cut short is taken up again.
    """
    if not has_mark(folder):
        return
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != MARK:
                entry.unlink(missing_ok=True)
        (folder / MARK).unlink()
        folder.rmdir()


def set_aside(folder: Path, state_dir: Path) -> Path:
    """Moves what nobody here can go on with out of the way, for the operator to look at."""
    aside = state_dir / "set-aside"
    aside.mkdir(exist_ok=True)
    return folder.rename(aside / f"{folder.name}-{time.time_ns() // 10**6}")


def note_newest(folder: Path, names: Sequence[str], limit: int) -> None:
    """Notes files of ours in the folder's mark, and removes those noted longest ago.

    names: files that go together, such as a clip and its contact sheet. limit: how many such
    groups stay. What somebody else put there is noted nowhere, so it stays.
    """
    groups = (folder / MARK).read_text().splitlines()[1:]
    groups.append("/".join(names))
    for group in groups[:-limit]:
        for name in group.split("/"):
            (folder / name).unlink(missing_ok=True)
    put_mark(folder, groups[-limit:])


def claim_folder(folder: Path) -> None:
    """Makes a state folder, or makes sure that it is one. Raises ConfigError for any other."""
    folder.mkdir(parents=True, exist_ok=True)
    if not has_mark(folder):
        if strangers := find_strangers(folder):
            names = ", ".join(sorted(entry.name for entry in strangers)[:3])
            raise ConfigError(
                f"STATE_DIR={folder}: ltx-worker did not make this folder (it holds {names}) and "
                f"will not remove other people's files; give STATE_DIR={folder}/ltx-worker."
            )
        adopt(folder)
        put_mark(folder)
    folder.chmod(0o700)


def find_strangers(folder: Path) -> list[Path]:
    """What an earlier version of the worker cannot have made."""
    entries = [entry for entry in folder.iterdir() if entry.name != MARK_PART]
    if not (folder / "lock").is_file():
        return entries
    return [entry for entry in entries if entry.name not in OLD_FILES and not is_old(entry)]


def is_old(folder: Path) -> bool:
    """Whether an earlier version made this folder, and everything in it."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    inside = {
        "jobs": lambda one: names_in(one) <= OLD_JOB,
        "comfyui": lambda one: one.name.isdecimal() and names_in(one) <= OLD_COMFYUI,
        "logs": lambda one: one.name.startswith("comfyui-") and one.suffix == ".log",
        "bad-clips": lambda one: "-attempt" in one.stem and one.suffix in (".mp4", ".jpg"),
    }
    return folder.name in inside and all(map(inside[folder.name], folder.iterdir()))


def names_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else {"no folder"}


def adopt(folder: Path) -> None:
    """Marks what an earlier version left to be removed one day."""
    for old in [*folder.glob("jobs/*"), *folder.glob("comfyui/*")]:
        put_mark(old)
    for kept in ("logs", "bad-clips"):
        if (folder / kept).is_dir():
            put_mark(folder / kept)


@contextlib.contextmanager
def state_folder(settings: Settings) -> Iterator[None]:
    """The state folder, private and for one worker alone, without what a killed one left.

    Raises ConfigError when it is not ours, StateUnusable, LockHeld.
    """
    with contextlib.ExitStack() as held:
        with state_errors(settings.state_dir):
            claim_folder(settings.state_dir)
            lock = held.enter_context((settings.state_dir / "lock").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                message = f"STATE_DIR={settings.state_dir}: another worker uses it; stop it first."
                raise LockHeld(message) from error
            tidy(settings.state_dir)
        yield


@contextlib.contextmanager
def state_errors(folder: Path) -> Iterator[None]:
    """Says what a state folder that cannot be used means. Raises ConfigError, StateUnusable."""
    try:
        yield
    except OSError as error:
        if error.errno in WRONG_PATH:
            message = f"STATE_DIR={folder}: {error.strerror}; give a folder of the worker's own."
            raise ConfigError(message) from error
        fix = "free space there, or make the folder writable; the service tries again by itself."
        raise StateUnusable(f"STATE_DIR={folder}: {error.strerror}; {fix}") from error


def tidy(folder: Path) -> None:
    """Removes what a killed worker left half made: no job is claimed before its order is."""
    for own in [*folder.glob("jobs/*"), *folder.glob("comfyui/*"), folder / "render"]:
        if own.parent == folder or not (own / "job.json").exists():
            remove_own(own)


def with_worker_id(settings: Settings) -> Settings:
    """WORKER_ID, or one made at the first start and kept."""
    if settings.worker_id:
        return settings
    path = settings.state_dir / "worker-id"
    with state_errors(settings.state_dir):
        claim_folder(settings.state_dir)
        if not path.exists():
            made = f"{socket.gethostname()[:40]}-{uuid.uuid4().hex[:8]}"
            path.with_suffix(".part").write_text(made)
            replace_durably(path.with_suffix(".part"), path)
        return dataclasses.replace(settings, worker_id=path.read_text())
