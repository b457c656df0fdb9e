"""What systemd and `status` show of a worker that ends, or that cannot write its state."""

from __future__ import annotations

import fcntl
import json
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ltx.operator.console import Systemd
from ltx.settings import Settings
from ltx.state import claim_folder
from tests.conftest import Box
from tests.ground.test_settings import NEEDED
from tests.operator.test_commands import ask
from tests.test_service import Notified, notified

__all__ = ["notified"]


@pytest.fixture
def held(box: Box) -> Iterator[Path]:
    """A state folder whose lock somebody holds, without a word of what they do."""
    claim_folder(box.state)
    with (box.state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield box.state


def test_a_clean_stop_is_the_last_that_systemd_hears(box: Box, notified: Notified) -> None:
    worker = box.start(NOTIFY_SOCKET=notified.address)
    assert notified.wait("STATUS=idle")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert notified.wait("STATUS=stopped")
    told = [line for line in notified.lines if line.startswith("STATUS=")]
    assert told[-2:] == ["STATUS=stopping", "STATUS=stopped"]


def test_a_secret_that_is_refused_is_the_last_that_systemd_hears(
    box: Box, notified: Notified
) -> None:
    changes = {"NOTIFY_SOCKET": notified.address, "VIDEOGEN_WORKER_SECRET": "not-the-right-one"}
    assert box.start(**changes).wait() == 78
    assert notified.wait("STATUS=failed: ")
    told = [line for line in notified.lines if line.startswith("STATUS=")]
    assert "VIDEOGEN_WORKER_SECRET" in told[-1]
    assert "not-the-right-one" not in told[-1]


@pytest.mark.usefixtures("held")
def test_a_held_lock_is_what_systemd_hears_of_a_start(box: Box, notified: Notified) -> None:
    assert box.start(NOTIFY_SOCKET=notified.address).wait() == 75
    assert notified.wait(f"STATUS=failed: STATE_DIR={box.state}: another worker uses it")


@pytest.mark.parametrize("left", [None, {"pid": 1, "progress": {"stage": "idle"}}])
def test_status_trusts_the_lock_over_the_file(box: Box, held: Path, left: object) -> None:
    if left:
        (held / "status.json").write_text(json.dumps(left))
    assert json.loads(ask(box, "status", "--json")[1])["running"] is True
    told = ask(box, "status")[1]
    assert "A worker runs" in told
    assert "cannot write what it does" in told


@pytest.mark.parametrize("name", ["a@b", "@in/the middle"])
def test_only_a_leading_at_sign_is_the_abstract_namespace(name: str) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
    ):
        # A folder or file of the file system, though there is an @ in its path.
        path = Path(folder) / name
        path.parent.mkdir(exist_ok=True)
        systemd.bind(str(path))
        systemd.settimeout(10)
        Systemd(Settings.load({**NEEDED, "NOTIFY_SOCKET": str(path)})).send("READY=1")
        assert systemd.recv(100) == b"READY=1"
