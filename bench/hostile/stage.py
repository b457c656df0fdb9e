"""The peers, the workers among them, and what was seen of each case."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from bench import usage
from bench.agenda import Agenda
from bench.hostile.case import GOOD, Case, Place
from bench.hostile.proxy import Proxy
from bench.hostile.watch import PROXY_PASSWORD, SECRET, TOKEN, WRITES, Watch, paths_written
from sandbox.client import ROOT, Hosted, NothingHappened
from sandbox.evil import Act, Evil, EvilComfy, answer
from sandbox.launch import Running, box_settings, environ, worker_command
from tests.pictures import picture

SIZE = (128, 64)
CASE_S = 90.0


class Stage:
    """The peers, a worker among them, and what was seen."""

    def __init__(
        self, base: Path, stack: contextlib.ExitStack, agenda: Agenda, trace: bool
    ) -> None:
        self.base, self.stack, self.agenda = base, stack, agenda
        self.trace = trace and bool(shutil.which("strace"))
        self.home = base / "home"
        for name in ("home", "tmp", "cwd", "own"):
            (base / name).mkdir()
        private = base / "own" / "private.mp4"
        make_film(GOOD, GOOD, private)
        (base / "own" / "private.png").write_bytes(GOOD)
        (base / "own" / "mark.png").write_bytes(picture((120, 40), "mark", mode="RGBA"))
        self.hosted = stack.enter_context(
            Hosted(base / "hosted", secret=SECRET, blob_token=TOKEN, lease_s=600)
        )
        self.host, self.bait = stack.enter_context(Evil()), stack.enter_context(Evil())
        film = partial(make_film, path=base / "own" / "rendered.mp4")
        self.comfy = stack.enter_context(EvilComfy(film, node_classes()))
        self.proxy = stack.enter_context(Proxy(self.hosted.url))
        self.place = Place(self.host.url, self.bait.port, base / "own")
        self.host.routes["/good.png"] = answer(GOOD)
        self.workers: list[Worker] = []
        self.wrong: list[str] = []
        self.right: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.number = 0

    def start(self, name: str, **changes: str) -> Worker:
        worker = Worker(self, name, changes)
        self.workers.append(worker)
        self.stack.callback(worker.kill)
        return worker

    def stop_workers(self) -> None:
        for worker in self.workers:
            worker.stop()

    @property
    def worker(self) -> Worker:
        return self.workers[-1]

    def renew(self) -> None:
        """Another worker in place of one that does not get on, so that the next case is played."""
        old = self.worker
        old.stop()
        self.start(f"{old.name}+", **old.changes)

    def judge(self, case: Case, came: str, why: str = "") -> None:
        with self.lock:
            self._judge(case, came, why)

    def _judge(self, case: Case, came: str, why: str) -> None:
        self.agenda.done(case.group)
        if came == case.expected:
            kind = "rendered" if came in ("renders", "delivered") else "refused"
            self.right["gone on" if came == "goes on" else kind] += 1
        else:
            told = f"{case.group}: {case.name}: {came}, expected {case.expected}"
            self.wrong.append(f"{told} {why}".strip())

    def outcome(self, job: str) -> tuple[str, str]:
        """The code a job was failed with, or `renders`, and the message."""
        try:
            event = self.hosted.wait_outcome(job, CASE_S)
        except NothingHappened:
            self.hosted.cancel(job)
            self.renew()
            return "no outcome", ""
        if event["kind"] == "complete":
            return "renders", ""
        error = event["data"]["error"]
        return str(error["code"]), str(error["message"])

    def serve(self, act: Act) -> str:
        """An address at which the frame host does this."""
        self.number += 1
        self.host.routes[f"/{self.number}.png"] = act
        return f"{self.host.url}/{self.number}.png"

    def job_of(self, *frames: str) -> dict[str, Any]:
        return {"frames": frames, "clipPrompts": ["walk"] * (len(frames) - 1), "watermark": False}

    @property
    def good(self) -> str:
        return f"{self.host.url}/good.png"


class Worker:
    """A worker process, under strace where there is one."""

    def __init__(self, stage: Stage, name: str, changes: dict[str, str]) -> None:
        self.stage, self.name, self.changes = stage, name, changes
        self.calls = stage.base / f"{name}.strace"
        self.state = stage.base / f"state-{name}"
        command = worker_command()
        if stage.trace:
            tracer = ["strace", "-f", "--seccomp-bpf", "-y", "-z", "-qq", "-o", str(self.calls)]
            command = [*tracer, "-e", f"trace={WRITES}", *command]
        before = stage.hosted.now()
        self.running = Running(
            command, self.environ(), stage.base / f"{name}.log",
            cwd=stage.base / "cwd", preexec_fn=allow_core_files,
        )  # fmt: skip
        stage.hosted.wait("register", after=before)
        self.pid = self.find_pid()
        self.watch = Watch(Path(f"/proc/{self.pid}"), self.state)
        stage.hosted.wait("pending", after=before)
        self.idle = usage.megabytes(self.pid, "VmHWM")
        self.peak = self.last = self.idle

    def environ(self) -> dict[str, str]:
        stage, base = self.stage, self.stage.base
        own = {
            "HOME": str(base / "home"),
            "TMPDIR": str(base / "tmp"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "API_URL": stage.proxy.url,
            "VERCEL_BLOB_API_URL": f"{stage.proxy.url}/api/blob",
            "HTTPS_PROXY": f"http://operator:{PROXY_PASSWORD}@127.0.0.1:9",
            "COPY_OF_A_SECRET": f"Bearer {TOKEN}",
            "COMFYUI_URL": stage.comfy.url,
            "WATERMARK_PATH": str(base / "own" / "mark.png"),
            "FRAME_HOSTS": f"127.0.0.1:{stage.host.port}",
            "VIDEO_SIZE": f"{SIZE[0]}x{SIZE[1]}",
            "WORKER_ID": f"hostile-{self.name}",
            "POLL_INTERVAL_S": "0.05",
            "HEARTBEAT_INTERVAL_S": "0.5",
            "LOOKALIKE_TIME_SCALE": "0.1",
        }
        return environ(box_settings(stage.hosted, self.state, **{**own, **self.changes}))

    def find_pid(self) -> int:
        own = self.running.process.pid
        children = Path(f"/proc/{own}/task/{own}/children")
        return int(children.read_text().split()[0]) if self.stage.trace else own

    def stop(self) -> None:
        """Ends it in order, and takes stock."""
        if self.running.process.poll() is not None:
            return
        self.peak = usage.megabytes(self.pid, "VmHWM")
        self.last = usage.megabytes(self.pid)
        self.watch.stop()
        os.kill(self.pid, signal.SIGTERM)
        self.running.wait(30)

    def kill(self) -> None:
        self.watch.ended.set()
        self.running.end()

    @property
    def restarts(self) -> int:
        """Ends that nobody asked for."""
        return self.running.log.count(" crashed") + (self.running.process.returncode != 0)

    def writes_outside(self) -> list[str]:
        """Files that it or a child of it made, changed or moved outside of its state folder."""
        if not self.stage.trace:
            return []
        own, score = re.escape(str(self.state)), r"/proc/\d+/oom_score_adj$"
        allowed = re.compile(rf"{own}|/dev/(null|tty)$|{score}")
        written = paths_written(self.calls.read_text(errors="replace"))
        return sorted(path for path in written if not allowed.match(path))


def allow_core_files() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def make_film(first: bytes, last: bytes, path: Path) -> bytes:
    """A clip as a ComfyUI would have rendered it: one picture dissolves into the other."""
    a, b = (Image.open(io.BytesIO(one)).convert("RGB").resize(SIZE) for one in (first, last))
    frames = b"".join(Image.blend(a, b, number / 120).tobytes() for number in range(121))
    command = ["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{SIZE[0]}x{SIZE[1]}", "-r", "24", "-i", "-", "-preset", "ultrafast"]
    subprocess.run([*command, "-pix_fmt", "yuv420p", str(path)], input=frames, check=True)
    return path.read_bytes()


def node_classes() -> dict[str, Any]:
    """What a ComfyUI with all packs and models answers to /object_info: the look-alike's."""
    program = "import json, schemas; print(json.dumps(schemas.load_schemas()))"
    folder = ROOT / "sandbox" / "comfyui"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, check=True
    )
    classes: dict[str, Any] = json.loads(done.stdout)
    return classes
