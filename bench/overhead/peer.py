"""A program that renders in one warm process, with the text encoder in every graph."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from bench.agenda import Agenda
from bench.overhead.modes import (
    JOBS,
    STILLS,
    Case,
    Made,
    executions,
    is_of,
    own_pace,
    own_settings,
    prompt_of,
)
from ltx.comfyui.workflow import ClipSpec, Workflow, build_workflow
from ltx.job import render_size
from ltx.settings import Settings
from sandbox.client import ROOT, Hosted, free_port
from sandbox.launch import Running, environ


def run_peer(
    case: Case, hosted: Hosted, folder: Path, options: argparse.Namespace, agenda: Agenda
) -> Iterator[Made]:
    """The first job's wall begins with the boot."""
    settings = Settings.load(own_settings(options), needed=())
    env = environ(hosted.lookalike_settings() | own_pace(options))
    with Running(peer_command(port := free_port(), folder), env, folder / "peer.log"):
        begin = time.monotonic()
        hosted.wait("comfyui.ready", timeout=agenda.seconds_left())
        boot = time.monotonic() - begin
        for number in range(JOBS):
            begin = time.monotonic() if number else begin
            graphs = [peer_graph(clip, number, settings) for clip in range(case.clips)]
            for still in STILLS[: case.clips + 1]:
                send(port, "upload/image", files={"image": (still.name, still.read_bytes())})
            ids = {send(port, "prompt", json={"prompt": graph})["prompt_id"] for graph in graphs}
            last = await_done(hosted, ids, agenda)
            wall = last - begin
            ideal = executions(hosted, begin, last) + (0 if number else boot)
            yield Made(case, number + 1, wall, ideal, {}, None)


def peer_command(port: int, folder: Path) -> list[str]:
    folders = [
        word
        for name in ("input", "output", "temp")
        for word in (f"--{name}-directory", str(folder / name))
    ]
    main = str(ROOT / "sandbox" / "comfyui" / "main.py")
    return [sys.executable, main, "--listen", "127.0.0.1", "--port", str(port), *folders]


def peer_graph(clip: int, job: int, settings: Settings) -> Workflow:
    first, last = (still.name for still in STILLS[clip : clip + 2])
    text, size = prompt_of(clip, job), render_size(settings.size)
    return build_workflow(
        ClipSpec(clip, first, last, text, clip, f"peer/{job}-{clip}", size), settings
    )


def send(port: int, path: str, **body: Any) -> Any:
    answer = requests.post(f"http://127.0.0.1:{port}/{path}", timeout=30, **body)
    answer.raise_for_status()
    return answer.json()


def await_done(hosted: Hosted, ids: set[str], agenda: Agenda) -> float:
    """When the last of these prompts was done."""
    ends = [
        hosted.wait("comfyui.done", timeout=agenda.seconds_left(), where=is_of({one}))
        for one in ids
    ]
    if bad := [end["data"] for end in ends if end["data"]["status"] != "success"]:
        raise RuntimeError(f"the peer: {bad}")
    return float(max(end["t"] for end in ends))
