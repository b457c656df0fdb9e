"""What is measured: the ways to render, whose times, and what comes out of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sandbox.client import ROOT, Event, Hosted
from sandbox.launch import pace

RESTARTS = {
    "plain": {"COMFYUI_STANDBY": "0"},
    "standby": {"COMFYUI_STANDBY": "1"},
    "job": {"COMFYUI_STANDBY": "1", "COMFYUI_RESTART": "job"},
}
# What reads the texts: a process of their own that is kept between jobs, one that ends with them,
# every clip's process.
TEXTS = {
    "job": {"LTX_TEXT": "job", "LTX_TEXT_KEEP_GB": "0"},
    "job-ended": {"LTX_TEXT": "job", "LTX_TEXT_KEEP_GB": "100000"},
    "clip": {"LTX_TEXT": "clip"},
}
PEER = "warm peer"
MODES = {
    f"{text}/{restart}": how | texts
    for text, texts in TEXTS.items()
    for restart, how in RESTARTS.items()
}
SHOWN = [mode for mode in MODES if "ended" not in mode]
JOBS = 2
# Seconds on a real GPU: how much longer a boot takes beside a rendering clip.
BESIDE_S = 20.6 - 15.2
# What ends with a process (TERM). What a process's first clip loads (checkpoint, NAG, two pictures,
# the first step less a usual one) and a later one, and what it takes longer where a text encoder
# has to leave the card for the model (SHUFFLE). An encoder's way back to RAM is taken to be as long
# as its way to the card; it was not measured.
PROFILES = {
    # The owner's text encoder, through the GGUF node.
    "gguf": {
        "BOOT": 16.3, "TERM": 0.4, "STEP": 1.66, "DECODE": 1.9, "ENCODE": 5.2,
        "TEXT_LOAD": 27.5, "TEXT_MOVE": 2.3, "TEXT": 1.3, "REST": 2.3,
        "LOAD": 1.2 + 3.7 + 0.4 + 5.3 - 1.66, "SHUFFLE": 17.5 - 5.3,
        "WARM_LOAD": 0.2 + 3.0 - 1.66, "WARM_SHUFFLE": 11.2 - 3.0,
    },
    # Gemma in fp8, through the core's loader.
    "fp8": {
        "BOOT": 16.3, "TERM": 0.4, "STEP": 1.66, "DECODE": 1.5, "ENCODE": 5.0,
        "TEXT_LOAD": 0.7, "TEXT_MOVE": 1.4, "TEXT": 1.1, "REST": 1.4,
        "LOAD": 1.5 + 2.7 + 0.4 + 4.8 - 1.66, "SHUFFLE": 0.0,
        "WARM_LOAD": 0.2 + 2.4 - 1.66, "WARM_SHUFFLE": 3.1 - 2.4,
    },
}  # fmt: skip
ENCODERS = {
    "gguf": "gemma-3-12b-it-qat-Q4_K_M.gguf",
    "fp8": "gemma_3_12B_it_fp8_scaled.safetensors",
}
STILLS = sorted((ROOT / "sandbox" / "frames").glob("[0-9]*.jpg"))


class Case(NamedTuple):
    mode: str
    clips: int

    def __str__(self) -> str:
        return f"{self.mode} of {self.clips}"


class Usage(NamedTuple):
    """Of the worker alone, without its children: seconds of CPU, the most memory in MB."""

    cpu: float
    peak: float


@dataclass(frozen=True)
class Made:
    """One job of a worker; `parts` has one row for its start, each gap, and its end."""

    case: Case
    number: int
    wall: float
    ideal: float
    parts: Mapping[str, Sequence[Sequence[float]]]
    used: Usage | None  # of a worker

    def spent(self, what: str) -> float:
        return sum(map(sum, self.parts.get(what, ())))


def own_pace(options: argparse.Namespace) -> dict[str, str]:
    times = PROFILES[options.profile].items()
    return pace(**{name: seconds / options.scale for name, seconds in times})


def own_settings(options: argparse.Namespace) -> dict[str, str]:
    return {"VIDEO_SIZE": options.size, "LTX_TEXT_ENCODER": ENCODERS[options.profile]}


def prompt_of(clip: int, job: int) -> str:
    """Of one clip alone, so that no cache knows it."""
    return f"walk on, part {clip} of film {job}"


def executions(hosted: Hosted, begin: float, end: float) -> float:
    """Seconds of all prompts that ran between these moments."""
    starts, ends = (
        {event["data"]["promptId"]: float(event["t"]) for event in hosted.events(kind)}
        for kind in ("comfyui.start", "comfyui.done")
    )
    spans = ((starts[one], done) for one, done in ends.items())
    return sum(done - start for start, done in spans if begin <= start and done <= end)


def is_of(prompts: Collection[str]) -> Callable[[Event], bool]:
    return lambda event: event["data"]["promptId"] in prompts
