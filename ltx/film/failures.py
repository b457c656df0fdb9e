"""What a failed attempt means for the job."""

from __future__ import annotations

from ltx.errors import DiskFull, JobError, ToolFailed, tells_full_disk
from ltx.text import one_line


def explain(error: Exception, what: str, tail: str) -> JobError:
    """what: was attempted, such as "Clip 2"; tail: the last lines of its ComfyUI."""
    if isinstance(error, ToolFailed):
        reason = JobError("bad_clip", f"{what}: {one_line(error)}.", again=True)
    elif isinstance(error, JobError):
        reason = error
    else:
        reason = JobError("comfyui_failed", f"ComfyUI: {error}.", again=True)
    # ComfyUI's files are on the same disk as ours.
    if reason.code in ("bad_clip", "comfyui_failed") and tells_full_disk(f"{error}\n{tail}"):
        reason = DiskFull()
    reason.tail = reason.tail or tail
    return reason
