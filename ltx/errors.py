"""Why something cannot go on: the closed list of error codes, and what is raised between rooms."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from ltx.text import one_line

DISK_FULL = "The disk of the rendering machine is full."
NO_SPACE = os.strerror(errno.ENOSPC)


class Fault(NamedTuple):
    """What an error code promises: whether trying again may help, and its public sentence."""

    retryable: bool
    sentence: str


FAULTS: dict[str, Fault] = {
    "bad_job": Fault(False, "The job's data is not what this worker understands."),
    "frame_unavailable": Fault(True, "A picture could not be downloaded."),
    "frame_invalid": Fault(False, "A picture is not a usable JPEG, PNG or WebP."),
    "watermark_missing": Fault(True, "The watermark is not ready on the rendering machine."),
    "comfyui_unavailable": Fault(True, "The renderer did not start."),
    "comfyui_missing_node": Fault(True, "The renderer lacks an extension."),
    "comfyui_missing_model": Fault(True, "The renderer lacks a model file."),
    "comfyui_rejected": Fault(True, "The renderer refused the workflow."),
    "comfyui_failed": Fault(True, "The renderer failed while making a clip."),
    "gpu_out_of_memory": Fault(True, "The graphics card ran out of memory."),
    "clip_timeout": Fault(True, "A clip took too long to render."),
    "job_timeout": Fault(True, "The job took too long to render."),
    "bad_clip": Fault(True, "A rendered clip was not good enough to deliver."),
    "media_failed": Fault(True, "The film could not be put together."),
    "upload_failed": Fault(True, "The film could not be uploaded."),
    "cancelled": Fault(False, "The job was cancelled."),
    "shutdown": Fault(True, "The worker was stopped."),
}
MACHINE_FAULTS = (
    "comfyui_unavailable",
    "comfyui_missing_node",
    "comfyui_missing_model",
    "comfyui_rejected",
    "gpu_out_of_memory",
)


class JobError(Exception):
    """Why a job cannot go on: one code of FAULTS, a detail for people, lines for the operator.

    again: a fresh ComfyUI may do better, so the clip is worth one more attempt.
    """

    def __init__(self, code: str, detail: str, *, again: bool = False, tail: str = "") -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail, self.again, self.tail = code, detail, again, tail

    @property
    def machine(self) -> bool:
        """Whether this box is to blame, so that the next job would fail alike."""
        return self.code in MACHINE_FAULTS or (self.code == "comfyui_failed" and self.again)

    def report(self) -> dict[str, object]:
        fault = FAULTS[self.code]
        message = f"{fault.sentence} {self.detail}".strip()
        message = one_line(message, 1000)
        return {"code": self.code, "message": message, "retryable": fault.retryable}


class DiskFull(JobError):
    """The disk that a job, its film and ComfyUI's files are on is full."""

    def __init__(self) -> None:
        super().__init__("media_failed", DISK_FULL)


class PortHeld(JobError):
    """Another program listens on the port that a ComfyUI of ours was to have."""


class LeaseLost(JobError):
    """The hosted side may have given the job to somebody else: stop, and report nothing."""

    def __init__(self) -> None:
        super().__init__("cancelled", "The lease on it has ended.")


class ConfigError(Exception):
    """The operator has to change something before the worker can run."""

    exit_code = 78

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StateUnusable(ConfigError):
    """The state folder cannot be written now, as on a full disk: a later start may."""

    exit_code = 74


class LockHeld(ConfigError):
    """Another worker uses the state folder: a later start may find it free."""

    exit_code = 75


class Unavailable(Exception):
    """The other side gave no refusal; the same call may succeed later.

    lost: the call was sent, so it may have been done although its answer did not come.
    lasting: another try at once would be in vain.
    """

    lasting = False

    def __init__(
        self, detail: str, retry_after: float | None = None, *, lost: bool = False
    ) -> None:
        super().__init__(detail)
        self.retry_after, self.lost = retry_after, lost


class ApiRefused(Unavailable):
    """The hosted side refuses a secret that it took before."""


class StoreClosed(Unavailable):
    """The store refuses our account, so every film alike, until the operator has mended that."""

    lasting = True


class Refusal(Exception):
    """The other side understood and said no."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status} {detail}")
        self.status = status


class NoSuchCall(Refusal):
    """The hosted side answers, but has no such call."""


class ToolFailed(Exception):
    """ffmpeg or ffprobe ended with an error; the text is its last lines."""


class UsageError(Exception):
    """The command line asks for something that does not fit together."""


def tells_full_disk(words: str) -> bool:
    """Whether a program that ended says so; its words are all that it leaves us."""
    return NO_SPACE in words


def is_refused(error: BaseException | None) -> bool:
    """Whether a refused connection is what this error, or one that it was made of, began with."""
    while error and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None


@contextlib.contextmanager
def full_disk_told() -> Iterator[None]:
    """Raises DiskFull for what the system says of a full disk."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFull() from error


def is_disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
