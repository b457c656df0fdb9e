"""The service: the unit, what systemd is told, what children may know, signals, exit codes."""

from __future__ import annotations

import configparser
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ltx.hosted.http import CALL_S
from ltx.state import claim_folder
from sandbox.client import ROOT, free_port
from sandbox.launch import WORKER
from tests.conftest import Box
from tests.programs import preceded

UNIT = ROOT / "systemd" / "ltx-worker.service"
HUNG = {"on": "prompt", "kind": "hang", "at": 3}
WATCHDOG_USEC = "300000"


class Notified:
    """A datagram socket where systemd's would be, and what came in."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.lines: list[str] = []
        self.news = threading.Condition()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        # The kernel queues a dozen datagrams only; like systemd, take them as they come.
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while told := self.socket.recv(4096):
            with self.news:
                self.lines += told.decode().splitlines()
                self.news.notify_all()

    def wait(self, line: str, after: int = 0, timeout: float = 20) -> bool:
        """Whether a line that starts so has come, or comes in time."""
        with self.news:
            return self.news.wait_for(
                lambda: any(told.startswith(line) for told in self.lines[after:]), timeout
            )

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", self.address.replace("@", "\0", 1))


@pytest.fixture
def box(box: Box) -> Box:
    """One whose worker is started as systemd starts it."""
    box.forked = False
    return box


@pytest.fixture
def notified(request: pytest.FixtureRequest) -> Iterator[Notified]:
    # A socket's path must be short, which pytest's folders are not.
    with tempfile.TemporaryDirectory() as folder:
        # A name that begins with @ is in no file system.
        address = f"{getattr(request, 'param', '')}{folder}/notify"
        notified = Notified(address)
        yield notified
        notified.close()


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has reaped yet has."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def comfyui_pid(box: Box) -> int:
    return int(box.hosted.wait("comfyui.step")["data"]["pid"])


def start_hung(box: Box, **changes: str) -> tuple[Any, str]:
    """A worker whose job hangs in ComfyUI."""
    box.hosted.script_comfyui(HUNG)
    job = box.add_job(maxAttempts=2)
    worker = box.start(**changes)
    box.hosted.wait("comfyui.step", where=lambda event: event["data"]["step"] == 3)
    return worker, job


# The unit


@pytest.fixture(scope="module")
def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser["Service"]


def test_systemd_finds_no_fault_with_the_unit(tmp_path: Path) -> None:
    installed = tmp_path / UNIT.name
    text = UNIT.read_text()
    text = text.replace("%h/ltx-worker/.venv/bin/python", sys.executable)
    installed.write_text(text.replace("%h/ltx-worker/ltx_worker.py", str(WORKER)))
    verdict = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(installed)],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    # An unknown setting is a warning only, with exit code 0.
    assert (verdict.returncode, verdict.stdout + verdict.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("Restart", "on-failure"),
        ("RestartSec", "15"),
        ("SyslogIdentifier", "ltx-worker"),
        ("RestartPreventExitStatus", "78"),
        ("KillMode", "mixed"),
        ("OOMPolicy", "continue"),
        ("WatchdogSec", "60"),
        ("UMask", "0077"),
        ("NoNewPrivileges", "yes"),
        ("RestrictNamespaces", "yes"),
    ],
)
def test_the_unit_asks_systemd_for(unit: configparser.SectionProxy, name: str, value: str) -> None:
    assert unit[name] == value


def test_no_number_of_starts_ends_the_service_for_good() -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(UNIT)
    assert parser["Unit"]["StartLimitIntervalSec"] == "0"


def test_the_unit_leaves_the_gpu_and_compiling_alone(unit: configparser.SectionProxy) -> None:
    assert not {"PrivateDevices", "MemoryDenyWriteExecute"} & set(unit)


def test_the_units_command_line_starts_the_worker(
    unit: configparser.SectionProxy, tmp_path: Path
) -> None:
    arguments = unit["ExecStart"].replace("%h/ltx-worker", str(ROOT)).split()
    environ = {"PATH": os.environ["PATH"], "STATE_DIRECTORY": str(tmp_path)}
    home = unit["WorkingDirectory"].replace("%h/ltx-worker", str(ROOT))
    ended = subprocess.run(arguments, env=environ, cwd=home, capture_output=True, text=True)
    assert ended.returncode == int(unit["RestartPreventExitStatus"])
    assert "API_URL is not set" in ended.stderr


# What systemd is told


def test_systemd_hears_ready_status_watchdog_and_stopping(box: Box, notified: Notified) -> None:
    job = box.add_job(clips=2)
    box.run_once(NOTIFY_SOCKET=notified.address, WATCHDOG_USEC=WATCHDOG_USEC)
    assert notified.wait("STOPPING=1")
    lines = notified.lines
    assert lines.count("READY=1") == 1
    assert "WATCHDOG=1" in lines
    told = [line for line in lines if line.startswith(f"STATUS=job {job}: rendering")]
    assert any("clip 1/2 step 3/8" in line for line in told), lines
    assert any("clip 2/2 step 3/8" in line for line in told), lines
    assert lines.index("STOPPING=1") > lines.index(told[-1])


@pytest.mark.parametrize("notified", ["", "@"], indirect=True)
def test_an_api_that_is_down_neither_holds_up_ready_nor_starves_the_watchdog(
    box: Box, notified: Notified
) -> None:
    down = f"http://127.0.0.1:{free_port()}"
    worker = box.start(API_URL=down, NOTIFY_SOCKET=notified.address, WATCHDOG_USEC=WATCHDOG_USEC)
    assert notified.wait("READY=1")
    for _ in range(3):
        assert notified.wait("WATCHDOG=1", after=len(notified.lines))
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0


@pytest.mark.parametrize("call", ["register", "heartbeat"])
def test_a_service_whose_secret_is_refused_has_never_started(
    box: Box, notified: Notified, call: str
) -> None:
    if call == "heartbeat":
        box.hosted.fault("POST */register", times=-1, status=405, body="")
    wrong = {"NOTIFY_SOCKET": notified.address, "VIDEOGEN_WORKER_SECRET": "not-the-right-one"}
    assert box.start(**wrong).wait() == 78
    assert notified.wait("STATUS=failed: ")
    assert "READY=1" not in notified.lines
    refused = box.hosted.wait(f"{call}.rejected")
    assert refused["data"]["answered"] == 401


def test_the_service_has_started_when_the_api_took_its_first_call(
    box: Box, notified: Notified
) -> None:
    box.hosted.fault("POST */register", delay=1.0)
    box.start(NOTIFY_SOCKET=notified.address)
    box.hosted.wait("fault")
    assert "READY=1" not in notified.lines
    box.hosted.wait("register")
    assert notified.wait("READY=1")


def test_the_unit_waits_for_longer_than_a_silent_api_can_hold_up_the_start(
    unit: configparser.SectionProxy,
) -> None:
    assert int(unit["TimeoutStartSec"]) / 2 > CALL_S


def test_the_watchdog_starves_while_the_main_loop_is_stuck(box: Box, notified: Notified) -> None:
    # The disk holds it up: whoever opens this to write waits for a reader.
    claim_folder(box.state)
    stalled = box.state / "pace.part"
    os.mkfifo(stalled)
    box.add_job()
    box.start(
        NOTIFY_SOCKET=notified.address,
        WATCHDOG_USEC=WATCHDOG_USEC,
        HEARTBEAT_INTERVAL_S="0.2",
        LTX_TEXT="job",
    )
    box.hosted.wait("heartbeat", where=lambda b: b["data"]["progress"]["stage"] == "booting")
    heard, beats = len(notified.lines), box.hosted.now()
    assert not notified.wait("WATCHDOG=1", after=heard, timeout=1.0)
    assert len(box.hosted.events("heartbeat", after=beats)) >= 2
    stalled.read_text()
    assert notified.wait("WATCHDOG=1", after=heard)


# What children may know


def test_no_child_learns_a_secret_or_how_to_talk_to_systemd(box: Box, notified: Notified) -> None:
    for tool in ("ffmpeg", "ffprobe"):
        record = f'cat /proc/self/environ /proc/$$/cmdline >> "{box.folder}/{tool}.seen"'
        path = preceded(box.folder, tool, record)
    changes = {
        "PATH": path,
        "NOTIFY_SOCKET": notified.address,
        "WATCHDOG_USEC": WATCHDOG_USEC,
        "WATCHDOG_PID": "1",
    }
    worker, _ = start_hung(box, **changes)
    process = Path(f"/proc/{comfyui_pid(box)}")
    known = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
    worker.end()
    # The job goes on to its end, as ffprobe is for clips only.
    box.hosted.clear_comfyui_script()
    assert box.start("run", "--once", **changes).wait() == 0
    seen = {
        "ComfyUI": known,
        "ffmpeg": (box.folder / "ffmpeg.seen").read_bytes(),
        "ffprobe": (box.folder / "ffprobe.seen").read_bytes(),
    }
    hidden = ["NOTIFY_SOCKET", "WATCHDOG_", "VIDEOGEN_WORKER_SECRET", "BLOB_READ_WRITE_TOKEN"]
    hidden += [box.hosted.secret, box.hosted.blob_token, notified.address]
    for child, known in seen.items():
        assert b"LOOKALIKE_BOOT_S" in known, child
        assert not [name for name in hidden if name.encode() in known], child


# Signals and exit codes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_hands_the_job_back_and_ends_clean(
    box: Box, number: signal.Signals
) -> None:
    worker, job = start_hung(box)
    worker.signal(number)
    assert worker.wait(20) == 0
    error = box.hosted.wait("fail", job)["data"]["error"]
    assert (error["code"], error["retryable"]) == ("shutdown", True)
    assert box.hosted.job(job)["state"] == "queued"
    assert is_gone(comfyui_pid(box))
    offers = [event["seq"] for event in box.hosted.events("pending")]
    assert offers[-1] < box.hosted.wait("fail", job)["seq"]


def test_the_second_signal_ends_at_once_and_leaves_no_comfyui(box: Box) -> None:
    box.hosted.fault("PATCH */fail", blackhole=True)
    worker, job = start_hung(box)
    worker.signal(signal.SIGTERM)
    handing_back = "/fail"
    box.hosted.wait(
        "request.start", job, where=lambda one: one["data"]["path"].endswith(handing_back)
    )
    worker.signal(signal.SIGTERM)
    assert worker.wait() == -signal.SIGTERM
    assert box.hosted.job(job)["state"] == "claimed"
    assert is_gone(comfyui_pid(box))


def test_an_idle_worker_ends_clean_at_a_signal(box: Box) -> None:
    worker = box.start(POLL_INTERVAL_S="600")
    box.hosted.wait("heartbeat")
    worker.signal(signal.SIGTERM)
    assert worker.wait(20) == 0


@pytest.mark.parametrize(
    ("frame", "code"), [("frame-0.png", 0), ("missing.png", 1)], ids=["made", "failed"]
)
def test_run_once_ends_with_0_for_a_film_and_1_without(box: Box, frame: str, code: int) -> None:
    box.add_job()
    box.hosted.cancel(box.hosted.jobs()[0]["id"])
    frames = [f"{box.hosted.url}/frames/{name}" for name in (frame, "frame-1.png")]
    box.hosted.add_job(frames, ["walk"])
    assert box.run_once().process.returncode == code


def test_a_wrong_command_line_ends_with_2(box: Box) -> None:
    assert box.start("dance").wait() == 2


def test_a_second_worker_on_the_same_state_folder_ends_with_a_code_that_is_restarted(
    box: Box,
) -> None:
    first = box.start()
    box.hosted.wait("heartbeat")
    second = box.start()
    assert second.wait() == 75
    assert "another worker uses it" in second.log
    assert first.process.poll() is None
