"""Everything hostile that may reach a worker, case by case, against the running worker.

    make hostile                                   # all cases, some minutes
    python -m bench.hostile --only "no pictures"   # one group; names as the table has them

Ends with 1 when a case comes out otherwise than expected, a worker ends by itself, a file is
written outside of the state folder, or a secret is seen anywhere it does not belong.
"""

from __future__ import annotations

import argparse
import base64
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
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import requests
from PIL import Image, ImageOps

from bench.hostile_cases import GOOD, Case, Place, cases
from sandbox.client import ROOT, Hosted, NothingHappened
from sandbox.evil import Act, Evil, EvilComfy, Talk, answer
from tests.pictures import likeness, picture

SIZE = (128, 64)
ALIKE = 4.0  # levels; another picture or another orientation is 20 and more away
CASE_S = 90.0
WATCH_S = 0.1
SECRET = "pa+ss/wo&rd=?%41~!x\"'(z)"
TOKEN = "vercel_blob_rw_Sandbox0Store1234_0123456789abcdefSecret"
PROXY_PASSWORD = "proxy-pass-5f0e7a"
MODELS = (
    "ltx-2.3-22b-distilled-fp8.safetensors",
    "gemma-3-12b-it-qat-Q4_K_M.gguf",
    "ltx-2.3_text_projection_bf16.safetensors",
)
WRITES = "open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat"


def forms(secret: str) -> set[bytes]:
    """The ways in which a secret may be seen."""
    texts = {secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]}
    texts |= {base64.b64encode(secret.encode()).decode().rstrip("=")}
    return {text.encode() for text in texts}


SECRETS = {name: forms(name) for name in (SECRET, TOKEN, PROXY_PASSWORD)}


def batched(table: list[Case], size: int) -> list[list[Case]]:
    return [table[start : start + size] for start in range(0, len(table), size)]


def secrets_in(content: bytes, known: Sequence[str] = ()) -> int:
    """How many secrets are in a text, but for those that belong there."""
    found = [name for name in SECRETS if any(form in content for form in SECRETS[name])]
    return len([name for name in found if name not in known])


class Proxy(Evil):
    """Stands before the API and Blob, and spoils the calls it is told to spoil."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target
        self.rules: list[tuple[str, Act, threading.Event]] = []
        self.passed: Counter[str] = Counter()
        self.news = threading.Condition()

    def spoil(self, call: str, act: Act) -> threading.Event:
        """The next call like `PATCH /claim` is answered so; the event tells that it was."""
        done = threading.Event()
        self.rules.append((call, act, done))
        return done

    def await_next(self, call: str, timeout: float) -> bool:
        """Waits until another such call has passed."""
        before = self.passed[call]
        with self.news:
            return self.news.wait_for(lambda: self.passed[call] > before, timeout)

    def act(self, talk: Talk) -> None:
        call = name_of(talk)
        for rule in self.rules:
            if rule[0] == call:
                self.rules.remove(rule)
                rule[2].set()
                return rule[1](talk)
        self.forward(talk)
        with self.news:
            self.passed[call] += 1
            self.news.notify_all()

    def forward(self, talk: Talk) -> None:
        with requests.Session() as session:
            session.trust_env = False
            url = f"{self.target}{talk.path}"
            headers = {**talk.headers}
            got = session.request(talk.method, url, headers=headers, data=talk.body, timeout=30)
        answer(got.content, f"{got.status_code} x", "Content-Type: application/json")(talk)


def name_of(talk: Talk) -> str:
    path = urlsplit(talk.path).path
    return f"{talk.method} {'/blob' if '/blob' in path else '/' + path.rpartition('/')[2]}"


class Watch:
    """Looks all the time at a worker's children and its state folder for what must not be there."""

    def __init__(self, process: Path, state: Path) -> None:
        self.process, self.state = process, state
        self.children: set[str] = set()
        self.seen: Counter[str] = Counter()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        turn = 0
        while not self.ended.wait(WATCH_S):
            self._look_at_children(self.process)
            turn += 1
            if turn % 10 == 0:
                self.look_at_files()

    def _look_at_children(self, parent: Path) -> None:
        with contextlib.suppress(OSError):
            for pid in (parent / "task" / parent.name / "children").read_text().split():
                child = Path("/proc") / pid
                command = (child / "cmdline").read_bytes()
                if command == (parent / "cmdline").read_bytes():
                    continue  # not a program of its own yet
                self.seen["command lines"] += secrets_in(command)
                self.seen["environments"] += secrets_in((child / "environ").read_bytes())
                self.children.add((child / "comm").read_text().strip())
                self._look_at_children(child)

    def look_at_files(self) -> None:
        # Not rglob(), which minds a folder that goes away.
        found = [Path(top) / name for top, _, names in os.walk(self.state) for name in names]
        for path in found:
            with contextlib.suppress(OSError):
                if path.is_file() and path.stat().st_size < 2**22:
                    self.seen["state folder"] += secrets_in(path.read_bytes())
                self.seen["files that others may read"] += bool(path.stat().st_mode & 0o077)

    def stop(self) -> None:
        self.ended.set()
        self.thread.join()
        self.look_at_files()


def memory(process: Path, field: str) -> float:
    """VmHWM, the peak, or VmRSS of a process in MB."""
    found = re.search(rf"{field}:\s+(\d+) kB", (process / "status").read_text())
    assert found
    return int(found[1]) / 1024


class Stage:
    """The peers, a worker among them, and what was seen."""

    def __init__(self, base: Path, stack: contextlib.ExitStack, trace: bool) -> None:
        self.base, self.stack = base, stack
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
        self.comfy = stack.enter_context(EvilComfy(film, MODELS))
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

    def judge(self, case: Case, came: str, why: str = "") -> None:
        with self.lock:
            self._judge(case, came, why)

    def _judge(self, case: Case, came: str, why: str) -> None:
        if came == case.expected:
            kind = "rendered" if came in ("renders", "delivered") else "refused"
            self.right["gone on" if came == "goes on" else kind] += 1
        else:
            told = f"{case.group}: {case.name}: {came}, expected {case.expected}"
            self.wrong.append(f"{told} {why}".strip())

    def outcome(self, job: str) -> tuple[str, str]:
        """The code a job was failed with, or `renders`, and the message."""
        try:
            event = self.hosted.wait(
                "*", job=job, timeout=CASE_S, where=lambda e: e["kind"] in ("complete", "fail")
            )
        except NothingHappened:
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
        self.stage, self.name = stage, name
        self.log, self.calls = stage.base / f"{name}.log", stage.base / f"{name}.strace"
        self.state = stage.base / f"state-{name}"
        command = [sys.executable, "-u", str(ROOT / "ltx_worker.py")]
        if stage.trace:
            tracer = ["strace", "-f", "--seccomp-bpf", "-y", "-z", "-qq", "-o", str(self.calls)]
            command = [*tracer, "-e", f"trace={WRITES}", *command]
        before = stage.hosted.now()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self.environ(changes), stdout=log, stderr=log,
                cwd=stage.base / "cwd", preexec_fn=allow_core_files,
            )  # fmt: skip
        self.changes = changes
        stage.hosted.wait("register", after=before)
        self.proc = Path("/proc") / str(self.pid())
        self.watch = Watch(self.proc, self.state)
        stage.hosted.wait("pending", after=before)
        self.idle = memory(self.proc, "VmHWM")
        self.peak = self.last = self.idle

    def environ(self, changes: dict[str, str]) -> dict[str, str]:
        stage, base = self.stage, self.stage.base
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(base / "home"),
            "TMPDIR": str(base / "tmp"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "API_URL": stage.proxy.url,
            "VIDEOGEN_WORKER_SECRET": SECRET,
            "BLOB_READ_WRITE_TOKEN": TOKEN,
            "VERCEL_BLOB_API_URL": f"{stage.proxy.url}/api/blob",
            "HTTPS_PROXY": f"http://operator:{PROXY_PASSWORD}@127.0.0.1:9",
            "COPY_OF_A_SECRET": f"Bearer {TOKEN}",
            "COMFYUI_DIR": str(ROOT / "sandbox" / "comfyui"),
            "COMFYUI_PYTHON": sys.executable,
            "COMFYUI_URL": stage.comfy.url,
            "WATERMARK_PATH": str(base / "own" / "mark.png"),
            "FRAME_HOSTS": f"127.0.0.1:{stage.host.port}",
            "VIDEO_SIZE": f"{SIZE[0]}x{SIZE[1]}",
            "STATE_DIR": str(self.state),
            "WORKER_ID": f"hostile-{self.name}",
            "POLL_INTERVAL_S": "0.05",
            "HEARTBEAT_INTERVAL_S": "0.5",
            "LOOKALIKE_TIME_SCALE": "0.1",
            **changes,
        }

    def pid(self) -> int:
        own = self.process.pid
        children = Path(f"/proc/{own}/task/{own}/children")
        return int(children.read_text().split()[0]) if self.stage.trace else own

    def stop(self) -> None:
        """Ends it in order, and takes stock."""
        self.peak, self.last = memory(self.proc, "VmHWM"), memory(self.proc, "VmRSS")
        self.watch.stop()
        os.kill(self.pid(), signal.SIGTERM)
        self.process.wait(30)

    def kill(self) -> None:
        self.watch.ended.set()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def restarts(self) -> int:
        """Ends that nobody asked for."""
        return self.log.read_text().count(" crashed") + (self.process.returncode != 0)

    def writes_outside(self) -> list[str]:
        """Files that it or a child of it made, changed or moved outside of its state folder."""
        if not self.stage.trace:
            return []
        found = set[str]()
        for line in self.calls.read_text(errors="replace").splitlines():
            if "open" in line and not re.search(r"O_(WRONLY|RDWR|CREAT|TMPFILE)", line):
                continue
            named = re.findall(r'(?:AT_FDCWD<([^>]*)>, )?"((?:[^"\\]|\\.)*)"', line)
            found |= {os.path.normpath(os.path.join(folder, path)) for folder, path in named}
        allowed = (str(self.state), "/dev/null", "/dev/tty", "/proc/self/oom_score_adj")
        return sorted(path for path in found if not path.startswith(allowed))


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


# How each group of cases is played


def play_jobs(stage: Stage, group: list[Case], stage_of: Callable[[Case, int], Any]) -> None:
    """All of them queued at once; each has to end with its code."""
    jobs = [stage.hosted.add_stage(stage_of(case, n)) for n, case in enumerate(group)]
    for case, job in zip(group, jobs, strict=True):
        came, message = stage.outcome(job)
        stage.judge(case, came, f"({message:.200})")


def play_frames(make: Callable[[Stage, Any], str]) -> Callable[[Stage, list[Case]], None]:
    def play(stage: Stage, group: list[Case]) -> None:
        def stage_of(case: Case, number: int) -> Any:
            frames = [make(stage, case.given), stage.good]
            # Mostly in front, where nothing has to be done for it first.
            return stage.job_of(*(frames[::-1] if number % 8 == 7 else frames))

        play_jobs(stage, group, stage_of)

    return play


def play_ids(stage: Stage, group: list[Case]) -> None:
    for case in group:
        if case.expected != "left alone":
            came, _ = stage.outcome(stage.hosted.add_stage(None, id=case.given["id"]))
            stage.judge(case, came)
            continue
        after = stage.hosted.now()
        row = stage.hosted.add_stage(None, raw=case.given)
        first = stage.hosted.wait("pending", row, after=after)
        stage.hosted.wait("pending", row, after=first["seq"])
        stage.hosted.cancel(row)
        events = stage.hosted.events("request.start", after=after)
        touched = [e for e in events if e["data"]["method"] == "PATCH"]
        spool = list((stage.workers[-1].state / "jobs").glob("*"))
        stage.judge(case, "touched" if touched or spool else "left alone")


def play_films(stage: Stage, group: list[Case]) -> None:
    """Pictures, five to a job behind a plain one, and texts, one to a clip.

    What reaches ComfyUI has to look like what a picture shows, and to be the very text.
    """
    pictures = batched([case for case in group if case.group == "pictures"], 5)
    texts = batched([case for case in group if case.group == "prompts"], 5)
    none: list[Case] = []
    for some, told in zip_longest(pictures, texts, fillvalue=none):
        stage.comfy.overrule()
        urls = [stage.serve(answer(case.given[0])) for case in some] or [stage.good] * len(told)
        job = stage.job_of(stage.good, *urls)
        job["clipPrompts"] = [*(case.given for case in told), *job["clipPrompts"]][: len(urls)]
        came, why = stage.outcome(stage.hosted.add_stage(job))
        for number, case in enumerate(some, start=1):
            sent = stage.comfy.pictures.get(number, b"")
            far = distance(sent, case.given[1]) if sent else 256.0
            stage.judge(case, came if far < ALIKE else f"{came}, {far:.0f} levels away", why)
        for case in told[: len(urls)]:
            stage.judge(case, came if case.given in stage.comfy.texts else "another text", why)


def distance(sent: bytes, image: Image.Image) -> float:
    wanted = ImageOps.fit(image.convert("RGB"), SIZE, Image.Resampling.LANCZOS)
    got = Image.open(io.BytesIO(sent))
    return likeness(np.asarray(got.convert("RGB")), np.asarray(wanted)) if got.size == SIZE else 256


def play_comfyui(stage: Stage, group: list[Case]) -> None:
    for case in group:
        path, given, times = case.given
        stage.comfy.prompted.clear()
        act = given if callable(given) else tell_record(stage.comfy, given)
        stage.comfy.overrule(path, act, times)
        came, why = stage.outcome(stage.hosted.add_stage(stage.job_of(stage.good, stage.good)))
        stage.judge(case, came, why)
    stage.comfy.overrule()


def tell_record(comfy: EvilComfy, record: Any) -> Act:
    return lambda talk: answer({comfy.prompt_id: record})(talk)


def play_api(stage: Stage, group: list[Case]) -> None:
    for case in group:
        path, act = case.given
        call = f"{'GET' if path == '/pending' else 'PATCH'} {path}"
        done = stage.proxy.spoil(call, act)
        if path == "/pending":
            went_on = done.wait(CASE_S) and stage.proxy.await_next(call, CASE_S)
        else:
            went_on = stage.outcome(stage.hosted.add_stage(None))[0] == "bad_job" and done.is_set()
        stage.judge(case, "goes on" if went_on else "stopped")


def play_heartbeats(stage: Stage, group: list[Case]) -> None:
    call = "POST /heartbeat"
    for case in group:
        done = stage.proxy.spoil(call, case.given)
        went_on = done.wait(CASE_S) and stage.proxy.await_next(call, CASE_S)
        stage.judge(case, "goes on" if went_on else "stopped")


def play_blob(stage: Stage, group: list[Case]) -> None:
    for case in group:
        done = stage.proxy.spoil("PUT /blob", case.given)
        came, why = stage.outcome(stage.hosted.add_stage(stage.job_of(stage.good, stage.good)))
        came = "delivered" if came == "renders" and done.is_set() else came
        stage.judge(case, came, why)


def play_slow(stage: Stage, group: list[Case]) -> None:
    for case in group:
        if isinstance(case.given, tuple):
            play_comfyui(stage, [case])
        else:
            url = stage.serve(case.given)
            came, why = stage.outcome(stage.hosted.add_stage(stage.job_of(url, stage.good)))
            stage.judge(case, came, why)


def play_real(stage: Stage, group: list[Case]) -> None:
    """The same pictures and texts with a ComfyUI look-alike as a child of the worker."""
    pictures = [case for case in group if case.group == "pictures"][-5:]
    texts = [case.given for case in group if case.group == "prompts"][:5]
    urls = [stage.good, *(stage.serve(answer(case.given[0])) for case in pictures)]
    job = {"frames": urls, "clipPrompts": texts, "watermark": True}
    came, why = stage.outcome(stage.hosted.add_stage(job))
    stage.judge(Case("a ComfyUI of ours", "five pictures and texts", "renders", None), came, why)


PLAYERS: dict[str, Callable[[Stage, list[Case]], None]] = {
    "job data": lambda stage, group: play_jobs(stage, group, lambda case, _: case.given),
    "job ids": play_ids,
    "frame addresses": play_frames(lambda stage, url: str(url)),
    "frame redirects": play_frames(Stage.serve),
    "frame hosts": play_frames(Stage.serve),
    "no pictures": play_frames(lambda stage, content: stage.serve(answer(content))),
    "pictures and prompts": play_films,
    "ComfyUI": play_comfyui,
    "API": play_api,
    "Blob": play_blob,
}


def play_all(stage: Stage, table: list[Case], quick: bool) -> None:
    groups: dict[str, list[Case]] = {}
    for case in table:
        film = case.group in ("pictures", "prompts")
        groups.setdefault("pictures and prompts" if film else case.group, []).append(case)
    worker = stage.start("evil-peers", CLIP_TIMEOUT_S="20")
    # Heartbeats have a thread of their own, and so have their troubles: 15 s each.
    beats = threading.Thread(target=play_heartbeats, args=(stage, groups.get("heartbeats", [])))
    beats.start()
    for name, group in groups.items():
        if name in PLAYERS:
            began = time.monotonic()
            PLAYERS[name](stage, group)
            peak = memory(worker.proc, "VmHWM")
            told = f"  {name:28} {len(group):4} cases {time.monotonic() - began:6.1f} s"
            print(f"{told}, worker's peak {peak:.0f} MB", flush=True)
    beats.join()
    worker.stop()
    if "slow peers" in groups:
        comfyui = [case for case in groups["slow peers"] if isinstance(case.given, tuple)]
        frames = [case for case in groups["slow peers"] if case not in comfyui]
        for name, group, limit in (
            ("hurried-jobs", frames, {"JOB_TIMEOUT_S": "4"}),
            ("hurried-clips", comfyui, {"CLIP_TIMEOUT_S": "3"}),
        ):
            worker = stage.start(name, **limit)
            play_slow(stage, group)
            worker.stop()
    if not quick:
        worker = stage.start("own-comfyui", COMFYUI_URL=f"http://127.0.0.1:{free_port()}")
        play_real(stage, table)
        worker.stop()


def free_port() -> int:
    with contextlib.closing(Evil()) as server:
        server.server_close()
        return server.port


# What was seen


def secrets_seen(stage: Stage) -> dict[str, int]:
    """By place; the API's secret belongs into the API's calls, the token into Blob's."""
    seen: Counter[str] = Counter()
    for worker in stage.workers:
        seen["logs"] += secrets_in(worker.log.read_bytes())
        seen.update(worker.watch.seen)
        done = subprocess.run(
            [sys.executable, str(ROOT / "ltx_worker.py"), "status", "--json"],
            env=worker.environ(worker.changes), capture_output=True,
        )  # fmt: skip
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
        for one in worker.log.read_text().split("\n")
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
    before, worker = stage.hosted.now(), stage.workers[0]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "ltx_worker.py")], env=worker.environ(worker.changes),
        cwd=folder, preexec_fn=allow_core_files, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    stage.hosted.wait("pending", after=before)
    process.send_signal(signal.SIGABRT)
    process.wait()
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


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", help="a group of cases; may be given again")
    parser.add_argument("--quick", action="store_true", help="a slice of every kind, no waiting")
    return parser.parse_args()


def chosen(table: Iterator[Case], only: list[str] | None, quick: bool) -> list[Case]:
    found = [case for case in table if not only or case.group in only]
    return found if not quick else quick_slice(found)


def quick_slice(table: list[Case]) -> list[Case]:
    """What needs no waiting, and of what takes long a few."""
    kept: Counter[str] = Counter()
    limits = {"ComfyUI": 3, "Blob": 1, "API": 3, "heartbeats": 3, "pictures": 5, "prompts": 5}
    limits |= {"slow peers": 0, "frame hosts": 2, "no pictures": 15, "job ids": 25}
    limits |= {"frame addresses": 50, "frame redirects": 12}

    def keep(case: Case) -> bool:
        if "10 MB" in case.name:
            return False
        kept[case.group] += 1
        return kept[case.group] <= limits.get(case.group, 1000)

    return [case for case in table if keep(case)]


def main() -> int:
    options = parse_arguments()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory("-hostile"))).resolve()
        stage = Stage(base, stack, trace=not options.quick)
        table = chosen(cases(stage.place), options.only, options.quick)
        play_all(stage, table, options.quick or bool(options.only))
        return 0 if tell(stage, table, time.monotonic() - began) else 1


if __name__ == "__main__":
    sys.exit(main())
