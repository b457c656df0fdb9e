"""Slips in the settings and on the disk: one sentence, the right exit code, no traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ltx.cancellation import Cancellation
from ltx.errors import ConfigError, JobError
from ltx.hosted.frames import FrameHost, is_public
from ltx.job import parse_stage_data
from ltx.settings import Settings
from sandbox.client import ROOT
from tests.conftest import Box, install
from tests.ground.test_settings import NEEDED, problems
from tests.operator.test_doctor import look, only
from tests.pictures import picture
from tests.programs import preceded

ENV_TEXT = "".join(f"{name}={value}\n" for name, value in NEEDED.items())


def run(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A worker in a folder of its own, with no settings but those of its .env."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), **environ}
    command = [sys.executable, str(folder / "ltx_worker.py"), *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)


def told(ended: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Asserts one sentence with these words and no traceback."""
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    [sentence] = ended.stderr.splitlines()
    assert not [word for word in words if word not in sentence], sentence


# .env


@pytest.mark.parametrize("command", [["run"], ["doctor"], ["status"]], ids=lambda one: one[0])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (ENV_TEXT.encode("utf-16"), "not UTF-8 text"),
        (f"{ENV_TEXT}#küche".encode("latin-1"), "not UTF-8 text"),
        (ENV_TEXT.encode("utf-16-le"), "NUL"),
        (f"{ENV_TEXT}WORKER_ID=a\0b".encode(), "NUL"),
    ],
    ids=["utf-16", "latin-1", "utf-16 without a mark", "nul"],
)
def test_an_env_file_that_is_no_text_is_told_in_one_sentence(
    tmp_path: Path, content: bytes, words: str, command: list[str]
) -> None:
    install(tmp_path).with_name(".env").write_bytes(content)
    told(run(tmp_path, *command), 78, ".env", words, "UTF-8")


def test_an_env_file_of_another_editor_begins_with_its_first_setting(tmp_path: Path) -> None:
    install(tmp_path).with_name(".env").write_bytes("LTX_SAMPLER=euler\n".encode("utf-8-sig"))
    ended = run(tmp_path, "workflow", "a.png", "b.png", "--prompt", "walk")
    assert '"sampler_name": "euler"' in ended.stdout, ended.stderr


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_in_the_env_file_is_used(tmp_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(30)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        text = ENV_TEXT.replace("https://app.example", "http://app.example")
        install(tmp_path).with_name(".env").write_text(f"{text}{name}={address}\n")
        command = [sys.executable, str(tmp_path / "ltx_worker.py")]
        environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as worker:
            try:
                with proxy.accept()[0] as call:
                    assert call.recv(100).startswith(b"POST http://app.example/api/videogen/")
            finally:
                worker.kill()


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_an_authority_of_ones_own_is_trusted_by_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(name, "/etc/ssl/own.pem")
    ended = subprocess.run(
        [sys.executable, "-c", "import os; from ltx.settings import read_environ; "
         "read_environ(); print(os.environ['REQUESTS_CA_BUNDLE'])"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert ended.stdout.strip() == "/etc/ssl/own.pem"
    bundle = tmp_path / "own.pem"
    bundle.touch()
    settings = Settings.load({**NEEDED, name: str(bundle)})
    assert FrameHost(settings, Cancellation()).http.session.verify == str(bundle)


# STATE_DIR


@pytest.mark.parametrize("char", ["\x7f", "\x85", "\udc80", "\t"], ids=ascii)
def test_a_state_folder_that_yaml_cannot_name_is_a_settings_error(char: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Settings.load({**NEEDED, "STATE_DIR": f"/tmp/a{char}b"})
    [problem] = refused.value.problems
    assert problem.startswith(f"STATE_DIR={f'/tmp/a{char}b'!r}: ")
    assert "printable" in problem


def a_file(folder: Path) -> Path:
    (folder / "taken").touch()
    return folder / "taken"


@pytest.mark.parametrize("id_of_worker", ["", "box"])
@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (a_file, 78, "File exists"),
        (lambda folder: a_file(folder) / "below", 78, "Not a directory"),
        (lambda _folder: Path("/proc/ltx-worker"), 74, "tries again"),
        (lambda _folder: Path("/sys/ltx-worker"), 74, "tries again"),
    ],
    ids=["a file", "below a file", "absent in /proc", "read-only"],
)
def test_a_state_folder_that_cannot_be_used_is_told_in_one_sentence(
    tmp_path: Path, make: Callable[[Path], Path], code: int, words: str, id_of_worker: str
) -> None:
    install(tmp_path)
    path = make(tmp_path)
    settings = {**NEEDED, "WATERMARK_PATH": __file__, "WORKER_ID": id_of_worker}
    told(run(tmp_path, "run", **settings, STATE_DIR=str(path)), code, f"STATE_DIR={path}", words)


@pytest.mark.parametrize("name", ["a#b", "a?b", "%d ':[ü]%20"])
def test_a_film_is_made_in_a_state_folder_of_any_name(box: Box, name: str) -> None:
    job = box.add_job(clips=2)
    worker = box.run_once(STATE_DIR=str(box.folder / name))
    assert box.hosted.job(job)["state"] == "completed", worker.log


# Settings


@pytest.mark.parametrize(
    "words",
    [
        "--port 9000", "--port=9000", "--por 9000", "--listen", "--listen=0.0.0.0",
        "--base-directory /b", "--input-directory /i", "--output-directory=/o", "--output /o",
        "--temp-directory /t", "--database-url sqlite:///x", "--tls-keyfile /k", "--tls-cert /c",
    ],
)  # fmt: skip
def test_a_flag_that_undoes_ours_is_refused_by_its_name(words: str) -> None:
    [problem] = problems({"COMFYUI_ARGS": f"--lowvram {words} --fast"})
    assert f"leave out {words.split()[0].split('=')[0]};" in problem


def test_who_wants_to_watch_comfyui_is_told_another_way() -> None:
    [problem] = problems({"COMFYUI_ARGS": "--listen 0.0.0.0"})
    assert "ssh -L" in problem


def test_flags_that_are_nobodys_but_the_operators_are_taken() -> None:
    words = "--lowvram --reserve-vram 2 --preview-method none --user-directory /u --disable-mmap"
    settings = Settings.load({**NEEDED, "COMFYUI_ARGS": words})
    assert " ".join(settings.comfyui_args) == words


@pytest.mark.parametrize("secret", ["pass word long", "gehäuse-tür", "eight\tchars"])
def test_a_secret_that_the_readers_of_env_take_apart_is_refused(secret: str) -> None:
    [problem] = problems({"VIDEOGEN_WORKER_SECRET": secret})
    assert "no spaces, no letters beyond ASCII" in problem
    assert secret not in problem


@pytest.mark.parametrize("hosts", ["10.0.0.0/33", "nas/24", "10.0.0.1, x/y"])
def test_a_network_that_is_none_is_refused(hosts: str) -> None:
    [problem] = problems({"FRAME_HOSTS": hosts})
    assert "networks like" in problem


# Tools


def test_what_a_library_prints_into_a_tools_standard_error_is_not_parsed(box: Box) -> None:
    """As one that a desktop preloads, or libgcrypt, does."""
    warning = "echo 'Warning: using insecure memory!' >&2"
    for tool in ("ffmpeg", "ffprobe"):
        path = preceded(box.folder, tool, warning)
    assert only(look(box, "watermark", PATH=path))[0] != "FAIL"
    job = box.add_job(watermark=True)
    worker = box.run_once(PATH=path, CLIP_GATE="warn")
    assert box.hosted.job(job)["state"] == "completed", worker.log
    assert "cannot be decoded" not in worker.log


# Addresses


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("64:ff9b::5db8:d822", True),
        ("64:ff9b::c0a8:0105", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::5db8:d822", False),
    ],
)
def test_an_address_behind_nat64_is_judged_by_the_one_inside(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("hosts", "allowed"), [("127.0.0.0/8", True), ("10.0.0.0/8,::1", False), ("", False)]
)
def test_frames_may_come_from_a_network_that_is_allowed(
    box: Box, hosts: str, allowed: bool
) -> None:
    url = box.hosted.put_frame("allowed.png", picture((64, 64), 1))
    url = url.replace("localhost", "127.0.0.1")
    host = FrameHost(Settings.load({**NEEDED, "FRAME_HOSTS": hosts}), Cancellation())
    target = box.folder / "frame"
    if allowed:
        host.fetch(url, target, "frames[0]")
        assert target.stat().st_size
    else:
        with pytest.raises(JobError, match="private address"):
            host.fetch(url, target, "frames[0]")


@pytest.mark.parametrize("char", ["\n", "\r", "\t", "\0", "\x1f", "\x7f", "\x85", "\u2028"])
def test_a_control_character_in_an_address_is_the_jobs_fault(char: str) -> None:
    data = {"frames": [f"https://a.example/x{char}.png"] * 2, "clipPrompts": ["w"]}
    with pytest.raises(JobError) as caught:
        parse_stage_data({**data, "watermark": False})
    assert caught.value.code == "bad_job"
    with pytest.raises(ConfigError):
        Settings.load({**NEEDED, "API_URL": f"https://a.exa{char}mple"})


# workflow


@pytest.mark.parametrize(("size", "height"), [((90, 160), 1920), ((160, 90), 1088)])
def test_the_printed_workflow_is_portrait_when_the_first_picture_is(
    tmp_path: Path, size: tuple[int, int], height: int
) -> None:
    install(tmp_path)
    (tmp_path / "first.png").write_bytes(picture(size, 1))
    ended = run(tmp_path, "workflow", str(tmp_path / "first.png"), "b.png", "--prompt", "walk")
    [latent] = [
        node for node in json.loads(ended.stdout).values()
        if node["class_type"] == "EmptyLTXVLatentVideo"
    ]  # fmt: skip
    assert latent["inputs"]["height"] == height


def test_a_first_picture_that_is_none_is_a_wrong_command_line(tmp_path: Path) -> None:
    install(tmp_path)
    (tmp_path / "first.png").write_text("no picture")
    told(run(tmp_path, "workflow", str(tmp_path / "first.png"), "b", "--prompt", "w"), 2, "first")
