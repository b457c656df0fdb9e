"""What was seen of the workers, and whether it may be so."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import Counter

from bench.hostile.case import Case
from bench.hostile.stage import Stage, allow_core_files
from bench.hostile.watch import SECRET, TOKEN, secrets_in
from sandbox.launch import Running, worker_command


def secrets_seen(stage: Stage) -> dict[str, int]:
    """By place; the API's secret belongs into the API's calls, the token into Blob's."""
    seen: Counter[str] = Counter()
    for worker in stage.workers:
        seen["logs"] += secrets_in(worker.running.log.encode())
        seen.update(worker.watch.seen)
        done = subprocess.run(
            worker_command("status", "--json"), env=worker.environ(), capture_output=True
        )
        seen["status command"] += secrets_in(done.stdout + done.stderr) + done.returncode
    for evil in (stage.host, stage.bait, stage.comfy):
        seen["frame hosts and ComfyUI"] += sum(secrets_in(heard) for heard in evil.heard)
    for heard in stage.proxy.heard:
        known = TOKEN if b"/api/blob" in heard.split(b",")[1] else SECRET
        # repr() has written the quotation marks of the secret in its own way.
        seen["API and Blob"] += secrets_in(heard, [known])
    outcomes = json.dumps(stage.hosted.jobs()).encode()
    seen["outcomes"] += secrets_in(outcomes)
    return dict(seen)


def forged_lines(stage: Stage) -> int:
    """Lines of a log that are neither an event of the worker's nor indented below one."""
    line = re.compile(r"\d{4}-\d\d-\d\d [\d:,]{12} (INFO|WARNING|ERROR) [a-z_]+( |$)|    ")
    return sum(
        not line.match(one) or one.startswith("2099") or not one.isprintable()
        for worker in stage.workers
        for one in worker.running.log.split("\n")
        if one
    )


def left_behind(stage: Stage) -> list[str]:
    """What has appeared in the worker's home, its folder for temporary files, its own folder."""
    places = ("home", "tmp", "cwd")
    return [str(path) for place in places for path in (stage.base / place).rglob("*")]


def core_files(stage: Stage) -> int | None:
    """Core files of a worker that is aborted where others leave one; None where none do."""
    folder = stage.base / "cores"
    folder.mkdir()
    abort = [sys.executable, "-c", "import os; os.abort()"]
    subprocess.run(abort, cwd=folder, preexec_fn=allow_core_files)
    if not list(folder.iterdir()):
        return None
    for path in folder.iterdir():
        path.unlink()
    before, env = stage.hosted.now(), stage.workers[0].environ()
    aborted = Running(
        worker_command(), env, cwd=folder, preexec_fn=allow_core_files, stderr=subprocess.DEVNULL
    )
    stage.hosted.wait("pending", after=before)
    aborted.signal(signal.SIGABRT)
    aborted.wait()
    return len(list(folder.iterdir()))


def tell(stage: Stage, table: list[Case], seconds: float) -> bool:
    seen, left = secrets_seen(stage), left_behind(stage)
    outside = {path for worker in stage.workers for path in worker.writes_outside()}
    restarts = sum(worker.restarts for worker in stage.workers)
    forged, baited, cores = forged_lines(stage), len(stage.bait.heard), core_files(stage)
    rows: list[tuple[str, object]] = [
        ("cases", sum(stage.right.values()) + len(stage.wrong)),
        *((f"  {name}", count) for name, count in Counter(c.group for c in table).items()),
        ("refused properly", stage.right["refused"]),
        ("rendered properly", stage.right["rendered"]),
        ("gone on properly", stage.right["gone on"]),
        ("wrong", len(stage.wrong)),
        ("worker restarts", restarts),
        ("files outside the state folder", f"{len(outside | set(left))} {how(stage)}"),
        ("requests to what is private", baited),
        ("secrets seen", sum(seen.values())),
        *((f"  in {name}", count) for name, count in seen.items()),
        ("core files", "not tried: nobody leaves any here" if cores is None else cores),
        ("forged log lines", forged),
    ]
    for worker in stage.workers:
        told = f"{worker.peak:.0f} MB at most, {worker.idle:.0f} before, {worker.last:.0f} after"
        rows.append((f"memory of the worker ({worker.name})", told))
    rows.append(("took", f"{seconds:.0f} s"))
    for name, value in rows:
        print(f"{name:42} {value}")
    for one in [*stage.wrong, *sorted(outside), *left]:
        print(f"! {one}")
    bad = (stage.wrong, restarts, outside, left, baited, sum(seen.values()), cores, forged)
    return not any(bad)


def how(stage: Stage) -> str:
    return "(by strace, children included)" if stage.trace else "(by what is left in HOME and /tmp)"
