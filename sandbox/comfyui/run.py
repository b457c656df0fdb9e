"""A prompt, and what its run offers to the nodes: time, progress, models, a way to be heard."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass, fields
from io import BytesIO
from typing import Any

from hub import Hub
from PIL import Image
from rendering import Film
from script import Fault, Times
from slots import Json, Prompt
from standins import model_management
from state import State

log = logging.getLogger(__name__)

NO_FAULT = Fault("none")
PREVIEW_WIDTH = 256  # pixels
# Prompts that render nothing are told and scripted under events of their own.
TEXT_EVENTS = {"LTXWorkerSaveConditioning": "text", "LTXWorkerHoldTextEncoder": "hold"}


class PromptInterruptedError(Exception):
    """POST /interrupt has been heard."""


class NodeError(Exception):
    """An exception of a library that is not here; `type_name` is what ComfyUI would call it."""

    def __init__(self, message: str, type_name: str = "Exception") -> None:
        super().__init__(message)
        self.type_name = type_name


@dataclass
class Item:
    """A prompt in the queue, and what GET /queue and /history say about it."""

    number: float
    prompt_id: str
    prompt: Prompt
    extra_data: Json
    outputs: list[str]
    fault: Fault = NO_FAULT

    def listed(self) -> list[Any]:
        return [self.number, self.prompt_id, self.prompt, self.extra_data, self.outputs]


def event_of(prompt: Prompt) -> str:
    """What a prompt is in the script: "prompt", or "text" or "hold" where it renders nothing."""
    classes = [node["class_type"] for node in prompt.values()]
    return next((TEXT_EVENTS[name] for name in classes if name in TEXT_EVENTS), "prompt")


class Run:
    """A prompt being executed; every node gets it as its first argument."""

    def __init__(self, state: State, hub: Hub, item: Item) -> None:
        self.state = state
        self.hub = hub
        self.folders = state.folders
        self.item = item
        self.prompt, self.prompt_id = item.prompt, item.prompt_id
        self.extra_data = item.extra_data
        self.client_id: str | None = item.extra_data.get("client_id")
        self.fault = item.fault
        self.times = _slowed(state.script.times, item.fault)
        self.progress: dict[str, Json] = {}  # what progress_state shows, by node id
        self.ui: Json | None = None
        self.node_id = ""
        self.event = event_of(item.prompt)
        self.texts = 0  # read so far

    def wait(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    def check_interrupt(self) -> None:
        if self.state.interrupted.is_set():
            self.state.interrupted.clear()
            raise PromptInterruptedError

    def load_model(self) -> None:
        log.info("Requested to load LTXAV")
        times, card, warm = self.times, model_management.card, self.state.warm
        shuffle = (times.warm_shuffle if warm else times.shuffle) if card.encoder else 0.0
        self.wait((times.warm_load if warm else times.load) + shuffle)
        card.take_model()
        self.state.warm = self.state.used = True

    def show_step(self, step: int, steps: int, film: Film) -> None:
        self.show_progress(step, steps)
        if self.state.options.preview_method != "none" and film.keyframes:
            self.hub.send_preview(_thumbnail(film), self.client_id)
        bar = f"{'█' * step}{' ' * (steps - step)}"
        print(f"\r{step * 100 // steps:3}%|{bar}| {step}/{steps}", end="", file=sys.stderr)
        if step == steps:
            print(file=sys.stderr)
        self.report("step", node=self.node_id, step=step, steps=steps)

    def show_progress(self, value: int, maximum: int) -> None:
        self.check_interrupt()
        self.show_state("running", value, maximum)
        progress = {
            "value": value, "max": maximum, "prompt_id": self.prompt_id, "node": self.node_id,
        }  # fmt: skip
        self.send("progress", progress)

    def show(self, ui: Json) -> None:
        """What an output node wants seen: it ends up in `executed` and in the history."""
        self.ui = ui

    def report(self, event: str, **facts: Any) -> None:
        self.state.script.report(event, promptId=self.prompt_id, **facts)

    # What clients get to know.

    def send(self, event: str, data: Json) -> None:
        self.hub.send(event, data, self.client_id)

    def show_state(self, state: str, value: float, maximum: float) -> None:
        self.progress[self.node_id] = self._state(state, value, maximum)
        data = {"prompt_id": self.prompt_id, "nodes": self.progress}
        self.send("progress_state", data)

    def _state(self, state: str, value: float, maximum: float) -> Json:
        return {
            "value": value,
            "max": maximum,
            "state": state,
            "node_id": self.node_id,
            "prompt_id": self.prompt_id,
            "display_node_id": self.node_id,
            "parent_node_id": None,
            "real_node_id": self.node_id,
        }


def _slowed(times: Times, fault: Fault) -> Times:
    if fault.kind != "slow":
        return times
    factor = float(fault.get("factor", 10))
    return Times(**{entry.name: getattr(times, entry.name) * factor for entry in fields(times)})


def _thumbnail(film: Film) -> bytes:
    picture = film.keyframes[0][1].copy()
    picture.thumbnail((PREVIEW_WIDTH, PREVIEW_WIDTH), Image.Resampling.BILINEAR)
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
