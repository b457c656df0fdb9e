"""The `status` command: what the running worker is doing."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltx.errors import FAULTS
from ltx.files import read_json
from ltx.job import Job
from ltx.settings import Settings, read_environ
from ltx.text import as_dict, as_list, parse_utc


def status_command(options: argparse.Namespace) -> int:
    """Tells what the running worker is doing, from its state folder."""
    settings = Settings.load(read_environ(), needed=())
    status = read_json(settings.state_dir / "status.json")
    holders = lock_holders(settings.state_dir)
    if status.get("pid") not in holders:
        # The file is an earlier worker's: a full disk keeps the one that runs from writing it.
        status = {"lastOutcomes": as_list(status.get("lastOutcomes"))}
        status |= {"pid": holders[0]} if holders else {}
    status["running"] = bool(holders)
    stage = str(as_dict(status.get("progress")).get("stage"))
    status["degraded"] = stage.removeprefix("degraded: ") if "degraded: " in stage else None
    jobs = map(Job, sorted(settings.state_dir.glob("jobs/*")))
    status["waiting"] = {job.id: describe_waiting(job) for job in jobs}
    print(json.dumps(status, indent=1) if options.json else describe_status(status))
    return 0


def lock_holders(state_dir: Path) -> list[int]:
    """The process that holds this folder's lock, if any, without touching the lock itself."""
    with contextlib.suppress(OSError):
        inode = str((state_dir / "lock").stat().st_ino)
        # 1: FLOCK ADVISORY WRITE pid major:minor:inode 0 EOF
        locks = map(str.split, Path("/proc/locks").read_text().splitlines())
        return [int(lock[4]) for lock in locks if lock[5:] and lock[5].split(":")[-1] == inode]
    return []


def describe_waiting(job: Job) -> str:
    """How far a job in the spool has come."""
    if job.outcome.exists():
        return f"to report {read_json(job.outcome).get('verb')}"
    return "to upload its film" if job.output.exists() else "to be made"


def describe_status(status: Mapping[str, Any]) -> str:
    now = as_dict(status.get("progress"))
    lines = ["No worker runs."]
    if status["running"] and now.get("jobId"):
        where = f"clip {now.get('clip')}/{now.get('clips')}"
        where = f"{where}, step {now.get('step')}/{now.get('steps')}"
        eta = f", about {now['etaSec']} s left" if now.get("etaSec") is not None else ""
        doing = f"{now.get('stage')}, {where}, {now.get('percent')} %{eta}"
        lines = [f"job {now['jobId']}: {doing}"]
    elif status["running"]:
        unknown = f"A worker runs (pid {status['pid']}), but cannot write what it does."
        lines = [f"{now['stage']}" if now else unknown]
    if fault := FAULTS.get(str(status["degraded"])):
        lines.append(f"It takes no job until this is mended: {fault.sentence}")
    if status["running"] and status.get("silence") not in ("", None, now.get("stage")):
        lines.append(str(status["silence"]))
    if status["running"] and now:
        beat = parse_utc(status.get("lastHeartbeatAt"))
        ago = f" ({time.time() - beat:.0f} s ago)" if beat is not None else ""
        lines.append(f"last heartbeat {status.get('lastHeartbeatAt')}{ago}")
    for done in map(as_dict, status["lastOutcomes"]):
        lines.append(f"{done.get('at')} job {done.get('jobId')}: {done.get('outcome')}")
    waiting = [f"{job} ({what})" for job, what in status["waiting"].items()]
    return "\n".join([*lines, f"in the spool: {', '.join(waiting) or 'nothing'}"])
