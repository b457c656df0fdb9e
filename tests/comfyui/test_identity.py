"""Who answers at COMFYUI_URL: our own child by the port that it listens on, or somebody else."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ltx.cancellation import Cancellation
from ltx.comfyui.answers import read_rejection
from ltx.comfyui.client import Comfy
from ltx.process import Child
from ltx.settings import Settings
from sandbox.client import free_port
from tests.conftest import Box
from tests.ground.test_settings import NEEDED
from tests.operator.test_doctor import look, only

# Hides its command line, and answers as ComfyUI does, from the process or from a child of it.
SERVER = """
import http.server, os, sys
class Stats(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"system": {"comfyui_version": "0.27.0", "argv": ["(hidden)"]}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
if sys.argv[2] == "forks" and os.fork():
    os.wait()
http.server.HTTPServer((sys.argv[3], int(sys.argv[1])), Stats).serve_forever()
"""


@contextlib.contextmanager
def child(folder: Path, *arguments: str) -> Iterator[Child]:
    settings = Settings.load({**NEEDED, "STATE_DIR": str(folder)})
    with (
        (folder / "log").open("w+b") as log,
        Child([sys.executable, "-c", SERVER, *arguments], settings, log) as process,
    ):
        yield process


def await_answer(comfy: Comfy) -> bool:
    """Whether it is ours, once something answers there."""
    for _ in range(200):
        if comfy.answers() or comfy.stranger:
            break
        comfy.cancellation.wait(0.05)
    return not comfy.stranger and comfy.answers()


@pytest.mark.parametrize("how", ["plain", "forks"])
def test_our_child_is_known_by_its_port_though_it_hides_its_arguments(
    tmp_path: Path, how: str
) -> None:
    port = free_port()
    with child(tmp_path, str(port), how, "127.0.0.1") as ours:
        comfy = Comfy(f"http://127.0.0.1:{port}", Cancellation(), ours, tmp_path)
        assert await_answer(comfy), comfy.stranger


def test_a_comfyui_that_holds_the_port_of_our_child_is_not_taken_for_it(tmp_path: Path) -> None:
    port = free_port()
    with (
        child(tmp_path, str(port), "plain", "127.0.0.1"),
        child(tmp_path, str(free_port()), "plain", "127.0.0.1") as ours,
    ):
        comfy = Comfy(f"http://127.0.0.1:{port}", Cancellation(), ours, tmp_path)
        assert not await_answer(comfy)
        assert "that we did not start" in comfy.stranger


@contextlib.contextmanager
def stranger(port: int, status: int, host: str = "127.0.0.1") -> Iterator[None]:
    """Something at the port that answers everything with this status."""

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Location", "/login")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((host, port), Stranger)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "it answers 401: a login pack"),
        (302, "it answers 302: a login pack"),
        (502, "it answers 502: a proxy stands there"),
        (200, "it answers 200, but not as ComfyUI: another program"),
    ],
)
def test_what_answers_and_is_no_comfyui_is_told_in_log_doctor_and_failure(
    box: Box, status: int, words: str
) -> None:
    with stranger(box.port, status):
        job = box.add_job()
        worker = box.run_once(COMFYUI_BOOT_TIMEOUT_S="5")
        failure = box.failure(job)
        assert failure["code"] == "comfyui_unavailable"
        assert words in failure["message"]
        assert "comfyui_stranger" in worker.log
        state, detail, _ = only(look(box, "comfyui", COMFYUI_BOOT_TIMEOUT_S="5"))
    assert (state, words in detail) == ("FAIL", True), detail


def told_everywhere(box: Box, words: str, **changes: str) -> tuple[str, str]:
    """The failure's message with these words, which log and doctor have too, and what to type."""
    job = box.add_job()
    worker = box.run_once(60, COMFYUI_BOOT_TIMEOUT_S="4", **changes)
    failure = box.failure(job)
    assert failure["code"] == "comfyui_unavailable"
    state, detail, then = only(look(box, "comfyui", COMFYUI_BOOT_TIMEOUT_S="4", **changes))
    for told in (failure["message"], worker.log, detail):
        assert words in told
    assert state == "FAIL"
    return failure["message"], then


def test_a_proxy_before_a_comfyui_elsewhere_is_told_in_log_doctor_and_failure(box: Box) -> None:
    with stranger(box.port, 502, "127.0.0.2"):
        url = f"http://127.0.0.2:{box.port}"
        message, _ = told_everywhere(box, "it answers 502: a proxy stands there", COMFYUI_URL=url)
    assert f"No ComfyUI answers at COMFYUI_URL={url}" in message


# A ComfyUI of ours in which a pack answers everything itself.
LOCKED = """
import http.server, sys
class Login(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Login).serve_forever()
"""


def test_a_login_pack_in_our_own_comfyui_is_not_taken_for_another_program(box: Box) -> None:
    (box.folder / "ComfyUI").mkdir()
    (box.folder / "ComfyUI" / "main.py").write_text(LOCKED)
    folder = str(box.folder / "ComfyUI")
    words = "it answers 401: a login pack or a proxy wants a password"
    message, then = told_everywhere(box, words, COMFYUI_DIR=folder)
    assert "another program" not in message
    assert then.startswith(f"cd {folder} && ")


@pytest.mark.long
def test_a_program_that_holds_the_port_in_silence_is_told(box: Box) -> None:
    with socket.create_server(("127.0.0.1", box.port)):
        job = box.add_job()
        box.run_once(COMFYUI_BOOT_TIMEOUT_S="4")
        assert "is held by another program" in box.failure(job)["message"]
        state, detail, then = only(look(box, "comfyui"))
    assert (state, "has the port and does not answer" in detail) == ("FAIL", True)
    assert then == f"ss -ltnp 'sport = :{box.port}'"


def test_a_prompt_that_something_else_answers_is_told_by_what_that_means() -> None:
    error = read_rejection("<html>sign in</html>", 302)
    assert error.code == "comfyui_rejected"
    assert "it answers 302: a login pack or a proxy wants a password" in error.detail
    assert "<html>sign in</html>" in error.detail
