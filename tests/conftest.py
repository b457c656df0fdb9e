"""The stage every test plays on: the hosted side, a box with a worker, pictures; all real."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import shutil
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sandbox.client import ROOT, Hosted, free_port
from sandbox.launch import WORKER, Running, box_settings, environ, pace, started_on, worker_command
from tests.forks import ForkedHosted, ForkedWorker
from tests.pictures import picture
from tests.programs import STATIC, SYSTEM_PATH

SIZE = (128, 72)


def pytest_configure() -> None:
    """Has every process use the ffmpeg that starts at once; tests/film names those of users."""
    os.environ["PATH"] = f"{STATIC}:{SYSTEM_PATH}"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Has each process compile a part of the tests, and find there what the others compiled."""
    if worker := getattr(session.config, "workerinput", None):
        folder, number = Path(__file__).parent, int(worker["workerid"].removeprefix("gw"))
        for file in sorted(folder.rglob("test_*.py"))[number :: worker["workercount"]]:
            importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Has tests that share a module's fixture run in one process, so that it is made only once.

    When all are collected it would be too late: pytest-xdist looks at the groups before us.
    """
    shared = shared_by_module(item)
    if shared and not item.get_closest_marker("xdist_group"):
        item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{shared}"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Has what takes long begin first, so that nothing is left to run alone at the end.

    The rest is mixed, as neighbours in a file often wait for much the same, and nobody computes
    then; the sandbox's own tests, which are short, come last.
    """
    items.sort(key=order)


def order(item: pytest.Item) -> tuple[bool, bool, bool, int]:
    marks = {mark.name for mark in item.iter_markers()}
    # A group keeps the order of its file.
    place = 0 if "xdist_group" in marks else zlib.crc32(item.nodeid.encode())
    is_short = item.path.parent.name == "sandbox"
    return "long" not in marks, "xdist_group" not in marks, is_short, place


def shared_by_module(item: pytest.Item) -> str:
    found = getattr(item, "_fixtureinfo").name2fixturedefs  # noqa: B009
    return "-".join(sorted(name for name, made in found.items() if made[-1].scope == "module"))


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder` as `make` filled it for the first process of this test session that asked."""
    done = folder.with_suffix(".done")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def install(folder: Path) -> Path:
    """The worker as somebody put it into a folder of their own; its script."""
    shutil.copytree(ROOT / "ltx", folder / "ltx")
    return Path(shutil.copy(WORKER, folder))


class Box:
    """The operator's machine: a state folder, settings and the worker."""

    def __init__(self, folder: Path, hosted: Hosted) -> None:
        self.folder, self.hosted = folder, hosted
        self.state = folder / "state"
        self.port = free_port()
        self.watermark = folder / "watermark.png"
        self.watermark.write_bytes(picture((120, 40), "mark", mode="RGBA"))
        self.running: list[Running] = []
        self.forked = True
        self.settings = box_settings(hosted, self.state) | {
            "COMFYUI_URL": f"http://localhost:{self.port}",
            "COMFYUI_STANDBY": "0",
            # Reading texts is one more ComfyUI for every job; who tests it switches it on.
            "LTX_TEXT": "clip",
            # No process waits for a next job; who tests that it does switches it on.
            "LTX_TEXT_KEEP_GB": "100000",
            # A look costs as much as a render here; who tests films or the gate switches it on.
            "CLIP_GATE": "off",
            "WATERMARK_PATH": str(self.watermark),
            "VIDEO_SIZE": f"{SIZE[0]}x{SIZE[1]}",
            "WORKER_ID": "test-worker",
            "POLL_INTERVAL_S": "0.2",
            "HEARTBEAT_INTERVAL_S": "1",
            **pace(BOOT=0.1, LOAD=0.05, STEP=0.02, DECODE=0.02),
        }

    def environ(self, **changes: str) -> dict[str, str]:
        return environ({**self.settings, **changes})

    def start(self, *arguments: str, **changes: str) -> Running:
        log, env = self.folder / f"worker-{len(self.running)}.log", self.environ(**changes)
        start = ForkedWorker if self.forked else Running
        self.running.append(start(worker_command(*arguments), env, log))
        return self.running[-1]

    def run_once(self, timeout: float = 60, **changes: str) -> Running:
        worker = self.start("run", "--once", **changes)
        worker.wait(timeout)
        return worker

    def add_job(
        self, clips: int = 1, watermark: bool = False, text: str = "walk on", **options: Any
    ) -> str:
        """A queued job of pictures that can be told apart."""
        frames = [
            self.hosted.put_frame(f"frame-{n}.png", picture((320, 180), n))
            for n in range(clips + 1)
        ]
        prompts = [f"{text}, part {n}" for n in range(clips)]
        return self.hosted.add_job(frames, prompts, watermark, **options)

    def failure(self, job: str) -> dict[str, Any]:
        """The error a job was failed with."""
        row = self.hosted.job(job)
        assert row["state"] == "failed", (row, self.running[-1].log[-3000:])
        error: dict[str, Any] = row["outcome"]["error"]
        return error

    def await_outcome(self, job: str, timeout: float = 40) -> dict[str, Any]:
        return self.hosted.wait_outcome(job, timeout)

    def children(self) -> list[int]:
        """The processes that carry the mark of a worker on this box's state folder."""
        return started_on(self.state)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of this test session; `made_once` fills it."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextmanager
def a_stage(folder: Path, **options: Any) -> Iterator[Box]:
    """A hosted side and a box, for a fixture whose run is read by several tests."""
    with ForkedHosted(folder / "hosted", **options) as hosted:
        box = Box(folder, hosted)
        try:
            yield box
        finally:
            for worker in box.running:
                worker.end()


@pytest.fixture(scope="session")
def session_hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    with ForkedHosted(tmp_path_factory.mktemp("hosted")) as hosted:
        yield hosted


@pytest.fixture
def hosted(tmp_path: Path) -> Iterator[Hosted]:
    with ForkedHosted(tmp_path / "hosted") as hosted:
        yield hosted


@pytest.fixture
def box(tmp_path: Path, hosted: Hosted) -> Iterator[Box]:
    box = Box(tmp_path, hosted)
    yield box
    for worker in box.running:
        worker.end()


@contextlib.contextmanager
def serving(folder: Path, **changes: str) -> Iterator[Box]:
    """A box whose worker serves the queue until the end; for tests that share one worker."""
    with ForkedHosted(folder / "hosted") as hosted:
        box = Box(folder, hosted)
        box.settings.update(changes)
        worker = box.start("run")
        try:
            yield box
        finally:
            worker.signal(signal.SIGTERM)
            worker.wait()


@contextlib.contextmanager
def foreign_comfyui(box: Box) -> Iterator[Running]:
    """A ComfyUI that somebody else runs on the box, at COMFYUI_URL."""
    folder = box.folder / "foreign"
    command = [sys.executable, str(ROOT / "sandbox" / "comfyui" / "main.py")]
    command += ["--listen", "127.0.0.1", "--port", str(box.port), "--disable-auto-launch"]
    for name in ("input", "output", "temp"):
        command += [f"--{name}-directory", str(folder / name)]
    before = box.hosted.now()
    comfyui = Running(command, box.environ(), box.folder / "foreign.log")
    try:
        pid = comfyui.process.pid
        box.hosted.wait("comfyui.ready", after=before, where=lambda one: one["data"]["pid"] == pid)
        yield comfyui
    finally:
        comfyui.end()


WaitFor = Callable[..., dict[str, Any]]
