"""Settings: what is wrong is told at once, .env and its example, the defaults."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dotenv
import pytest

from ltx.errors import ConfigError
from ltx.settings import Settings
from sandbox.client import ROOT
from tests.conftest import Box, install

EXAMPLE = ROOT / ".env.example"
TOKEN = "vercel_blob_rw_Store_Secret"
SECRETS = ("VIDEOGEN_WORKER_SECRET", "BLOB_READ_WRITE_TOKEN")
NEEDED = {
    "API_URL": "https://app.example",
    "VIDEOGEN_WORKER_SECRET": "long-enough",
    "BLOB_READ_WRITE_TOKEN": TOKEN,
    "COMFYUI_DIR": str(ROOT / "sandbox" / "comfyui"),
    "COMFYUI_PYTHON": sys.executable,
    "WATERMARK_PATH": "/var/mark.png",
}
# The promised default of each setting, and another value that it may have.
DEFAULTS = {
    "COMFYUI_URL": ("http://localhost:8188", "http://localhost:9000"),
    "COMFYUI_ARGS": ("", "--lowvram"),
    "COMFYUI_BOOT_TIMEOUT_S": ("180", "90.5"),
    "COMFYUI_STANDBY": ("1", "0"),
    "COMFYUI_RESTART": ("clip", "job"),
    "COMFYUI_IDLE_STOP_S": ("600", "0"),
    "LTX_SAMPLER": ("euler_ancestral_cfg_pp", "euler"),
    "LTX_CHECKPOINT": ("ltx-2.3-22b-distilled-fp8.safetensors", "other.safetensors"),
    "LTX_TEXT_ENCODER": ("gemma-3-12b-it-qat-Q4_K_M.gguf", "other.gguf"),
    "LTX_TEXT_PROJECTION": ("ltx-2.3_text_projection_bf16.safetensors", "other.safetensors"),
    "LTX_TEXT": ("job", "clip"),
    "LTX_TEXT_KEEP_GB": ("37", "0"),
    "CLIP_GATE": ("enforce", "off"),
    "VIDEO_SIZE": ("1920x1080", "1280x720"),
    "POLL_INTERVAL_S": ("5", "0.5"),
    "HEARTBEAT_INTERVAL_S": ("15", "1.5"),
    "CLIP_TIMEOUT_S": ("600", "60"),
    "JOB_TIMEOUT_S": ("720", "72"),
    "VERCEL_BLOB_API_URL": ("https://vercel.com/api/blob", "https://blob.example/api"),
    "BLOB_ACCESS": ("public", "private"),
    "FRAME_HOSTS": ("", "nas.local:8080,192.168.1.5"),
    "WORKER_ID": ("", "box-7"),
}
WRONG = [
    ("API_URL", "app.example", "https://"),
    ("API_URL", "ftp://app.example", "https://"),
    ("API_URL", "https://", "https://"),
    ("VIDEOGEN_WORKER_SECRET", "short", "8 or more"),
    ("VIDEOGEN_WORKER_SECRET", "with spaces inside", "plain characters"),
    ("BLOB_READ_WRITE_TOKEN", "vercel_blob_rw_half", "copy the store's token"),
    ("COMFYUI_DIR", "/nowhere", "main.py"),
    ("COMFYUI_PYTHON", "/nowhere/python", "Python"),
    ("COMFYUI_URL", "localhost:8188", "https://"),
    ("COMFYUI_ARGS", '--name "unclosed', "quotation marks"),
    ("COMFYUI_STANDBY", "yes", "1 or 0"),
    ("COMFYUI_BOOT_TIMEOUT_S", "soon", "number between"),
    ("COMFYUI_IDLE_STOP_S", "-1", "number between"),
    ("POLL_INTERVAL_S", "nan", "number between"),
    ("HEARTBEAT_INTERVAL_S", "inf", "number between"),
    ("CLIP_TIMEOUT_S", "0", "number between"),
    ("JOB_TIMEOUT_S", "5 s", "number between"),
    ("LTX_SAMPLER", "dpm", "euler_ancestral_cfg_pp"),
    ("LTX_TEXT", "film", "job or clip"),
    ("LTX_TEXT_KEEP_GB", "-1", "number between"),
    ("VIDEO_SIZE", "1920", "WIDTHxHEIGHT"),
    ("VIDEO_SIZE", "1921x1080", "even"),
    ("VIDEO_SIZE", "0x0", "64"),
    ("BLOB_ACCESS", "secret", "public or private"),
    ("VERCEL_BLOB_API_URL", "vercel.com", "https://"),
    ("WORKER_ID", "../box", "letters"),
]


def problems(changes: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        Settings.load({**NEEDED, **changes})
    return tuple(caught.value.problems)


def loaded(changes: dict[str, str]) -> dict[str, Any]:
    """The settings but for the environment that is passed on to children."""
    settings = Settings.load({**NEEDED, **changes})
    values = {one.name: getattr(settings, one.name) for one in dataclasses.fields(settings)}
    del values["child_environ"]
    return values


# Problems


@pytest.mark.parametrize(("name", "value", "fix"), WRONG)
def test_a_wrong_setting_is_told_with_its_value_and_the_fix(
    name: str, value: str, fix: str
) -> None:
    (problem,) = problems({name: value})
    assert problem.startswith(f"{name}=")
    assert fix in problem
    assert (value in problem) is (name not in SECRETS)


def test_all_problems_are_told_together_with_78(box: Box) -> None:
    wrong = {name: value for name, value, _ in WRONG}
    worker = box.start(**wrong, WATERMARK_PATH="")
    assert worker.wait() == 78
    told = {re.split("[= ]", line.removeprefix("ltx_worker: "))[0] for line in lines_of(worker.log)}
    assert told == {*wrong, "WATERMARK_PATH"}
    assert len(lines_of(worker.log)) == len(told)
    assert not box.hosted.requests("* /api/videogen/*")


def lines_of(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.strip()]


@pytest.mark.parametrize("missing", [[name] for name in NEEDED] + [list(NEEDED)])
def test_what_is_needed_and_missing_is_named(missing: list[str]) -> None:
    told = problems(dict.fromkeys(missing, ""))
    assert {problem.split()[0] for problem in told} == set(missing)
    assert all("is not set: put it into .env" in problem for problem in told)


def test_a_problem_is_told_once() -> None:
    told = problems(dict.fromkeys(NEEDED, ""))
    assert len(told) == len(set(told)) == len(NEEDED)


# Defaults


class Recorder(dict[str, str]):
    """An environment that remembers what it was asked for."""

    def __init__(self, values: dict[str, str]) -> None:
        super().__init__(values)
        self.asked: list[str] = []

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.append(name)
        return super().get(name, default)


# Not settings of ours: systemd and the desktop set these.
GIVEN_BY_OTHERS = {
    "XDG_STATE_HOME",
    "STATE_DIRECTORY",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "JOURNAL_STREAM",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
}


def asked_names() -> list[str]:
    """Every setting that the worker reads, in its order."""
    recorder = Recorder(NEEDED)
    Settings.load(recorder)
    return [name for name in dict.fromkeys(recorder.asked) if name not in GIVEN_BY_OTHERS]


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_setting_has_its_promised_default(name: str) -> None:
    default, other = DEFAULTS[name]
    assert loaded({name: default}) == loaded({})
    assert loaded({name: other}) != loaded({})


def test_no_setting_is_without_a_promised_default() -> None:
    assert set(asked_names()) == {*NEEDED, *DEFAULTS, "STATE_DIR"}


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ({}, Path.home() / ".local/state/ltx-worker"),
        ({"XDG_STATE_HOME": "/xdg"}, Path("/xdg/ltx-worker")),
        ({"STATE_DIRECTORY": "/var/of-systemd", "XDG_STATE_HOME": "/xdg"}, Path("/var/of-systemd")),
        ({"STATE_DIR": "/own", "STATE_DIRECTORY": "/var/of-systemd"}, Path("/own")),
    ],
)
def test_the_state_folder_is_ours_systemds_or_the_users(
    given: dict[str, str], folder: Path
) -> None:
    assert loaded(given) == loaded({"STATE_DIR": str(folder)})
    assert loaded(given) != loaded({"STATE_DIR": "/elsewhere"})


def test_a_worker_id_is_made_once_and_kept(box: Box) -> None:
    for _ in range(2):
        box.hosted.add_stage(None)
        box.run_once(WORKER_ID="")
    ids = [event["data"]["workerId"] for event in box.hosted.events("register")]
    assert len(ids) == 2
    assert len(set(ids)) == 1
    assert ids[0]


# .env


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The worker in a folder of its own."""
    return install(tmp_path)


def sampler(installed: Path, **environ: str) -> str:
    """The sampler of the workflow that an installed worker would send."""
    answer = subprocess.run(
        [sys.executable, str(installed), "workflow", "a.png", "b.png", "--prompt", "walk"],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    nodes = json.loads(answer.stdout).values()
    return next(
        str(node["inputs"]["sampler_name"])
        for node in nodes
        if node["class_type"] == "KSamplerSelect"
    )


def test_env_beside_the_worker_is_read_and_the_environment_wins(installed: Path) -> None:
    assert sampler(installed) == "euler_ancestral_cfg_pp"
    installed.with_name(".env").write_text("LTX_SAMPLER=euler\n")
    assert sampler(installed) == "euler"
    assert sampler(installed, LTX_SAMPLER="euler_ancestral") == "euler_ancestral"


def sourced(text: str, folder: Path) -> dict[str, str]:
    """What `source` makes of it."""
    path = folder / "env"
    path.write_text(text)
    script = f"set -aeu; source {path}; exec env -0"
    bare = {"PATH": os.environ["PATH"]}
    shell = ["bash", "--norc", "--noprofile", "-c"]
    before = subprocess.run([*shell, "exec env -0"], env=bare, capture_output=True, check=True)
    after = subprocess.run([*shell, script], env=bare, capture_output=True, check=True)
    assert not after.stderr
    known = set(before.stdout.split(b"\0"))
    found = [item.decode() for item in after.stdout.split(b"\0") if item and item not in known]
    return dict(item.split("=", 1) for item in found)


def read_by_systemd(text: str) -> Iterator[tuple[str, str]]:
    """What EnvironmentFile= makes of lines as plain as ours; see systemd.exec(5)."""
    for line in text.splitlines():
        if not line.strip() or line[0] in "#;":
            continue
        name, found, value = line.partition("=")
        # Anything cleverer would be read differently by the three of them.
        assert found, line
        assert re.fullmatch(r"[A-Z_]+", name), line
        assert not re.search(r"[\\$`'#]|^\s|\s$", value), line
        assert not value.endswith("\\")
        yield name, value[1:-1] if value.startswith('"') else value


def test_the_example_reads_alike_by_source_dotenv_and_systemd(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    by_dotenv = dict(dotenv.dotenv_values(stream=io.StringIO(text), interpolate=False))
    assert sourced(text, tmp_path) == by_dotenv
    assert dict(read_by_systemd(text)) == by_dotenv


def test_the_example_names_every_setting_once_and_no_other() -> None:
    names = [name for name, _ in read_by_systemd(EXAMPLE.read_text())]
    assert sorted(names) == sorted(asked_names())


def test_the_example_holds_the_defaults_and_asks_for_the_rest() -> None:
    example = dict(read_by_systemd(EXAMPLE.read_text()))
    assert {name: value for name, value in example.items() if name in DEFAULTS} == {
        name: default for name, (default, _) in DEFAULTS.items()
    }
    assert {example[name] for name in NEEDED} == {""}
    assert {problem.split()[0] for problem in problems(example)} == set(NEEDED)


def test_a_worker_runs_on_the_filled_in_example(box: Box, installed: Path) -> None:
    lines = EXAMPLE.read_text().splitlines()
    filled = [f"{line}{box.settings.pop(line.rstrip('='), '')}" for line in lines]
    installed.with_name(".env").write_text("\n".join(filled))
    job = box.hosted.add_stage(None)
    left = {name: box.settings[name] for name in ("COMFYUI_URL",)}
    ended = subprocess.run(
        [sys.executable, str(installed), "run", "--once"],
        env={"PATH": os.environ["PATH"], **left},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1, ended.stderr
    assert box.hosted.job(job)["outcome"]["error"]["code"] == "bad_job"
    assert box.hosted.job(job)["outcome"]["workerId"] == "test-worker"
