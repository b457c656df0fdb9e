"""One prompt's run: what is cached is skipped, the rest goes node by node, and is told about."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
import traceback
from dataclasses import dataclass, fields
from io import BytesIO
from typing import TYPE_CHECKING, Any

from mishaps import MISHAPS
from nodes import NODES, NodeError, Outputs
from PIL import Image
from rendering import Film
from script import Fault, Times
from validation import Json, Prompt, is_link, known_inputs

if TYPE_CHECKING:
    from engine import Engine

log = logging.getLogger(__name__)

NO_FAULT = Fault("none")
PREVIEW_WIDTH = 256  # pixels
OOM_ADVICE = (
    "This error means you ran out of memory on your GPU.\n\n"
    "TIPS: If the workflow worked before you might have accidentally set the batch_size to a"
    " large number."
)


class PromptInterruptedError(Exception):
    """POST /interrupt has been heard."""


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


@dataclass(frozen=True)
class Cached:
    outputs: Outputs
    ui: Json | None
    meta: Json


class Run:
    """A prompt being executed; every node gets it as its first argument."""

    def __init__(self, engine: Engine, item: Item) -> None:
        self.engine = engine
        self.hub = engine.hub
        self.folders = engine.folders
        self.prompt, self.prompt_id = item.prompt, item.prompt_id
        self.extra_data = item.extra_data
        self.client_id: str | None = item.extra_data.get("client_id")
        self.item = item
        self.fault = item.fault
        self.times = _slowed(engine.script.times, item.fault)
        self.signatures: dict[str, str] = {}
        self.executed: list[str] = []
        self.states: dict[str, Json] = {}  # what progress_state shows, by node id
        self.ui: Json | None = None
        self.node_id = ""
        self.text_encoder_loaded = False
        self.messages: list[list[Any]] = []
        self.history_outputs: Json = {}
        self.history_meta: Json = {}

    # The story of the run.

    def play(self) -> str:
        """Run to the end and say which: "success", "error" or "interrupted"."""
        self._note("execution_start", {})
        try:
            self._sign()
            cached = [node_id for node_id in self.prompt if self._cached(node_id)]
            self._note("execution_cached", {"nodes": cached})
            for node_id in self._order():
                self._execute(node_id)
            self._note("execution_success", {})
            return "success"
        except PromptInterruptedError:
            log.info("Processing interrupted")
            self._note("execution_interrupted", self._where())
            return "interrupted"
        except Exception as error:
            self._note("execution_error", self._explain(error))
            return "error"

    def _sign(self) -> None:
        for output in self.item.outputs:
            self._signature(output)
        self.engine.forget_all_but(set(self.signatures.values()))

    def _signature(self, node_id: str) -> str:
        """Same signature, same result: class, inputs and the signatures of what they link to."""
        if node_id not in self.signatures:
            node = self.prompt[node_id]
            inputs = {
                name: [self._signature(value[0]), value[1]] if is_link(value) else value
                for name, value in node["inputs"].items()
            }
            parts = [node["class_type"], inputs, self._mark(node_id, node)]
            text = json.dumps(parts, sort_keys=True)
            self.signatures[node_id] = hashlib.sha256(text.encode()).hexdigest()
        return self.signatures[node_id]

    def _mark(self, node_id: str, node: Json) -> str | None:
        """What else makes a node differ: an image's bytes, and VHS asks for its own id."""
        if node["class_type"] == "VHS_VideoCombine":
            return node_id
        if node["class_type"] == "LoadImage":
            path = self.folders.input_file(node["inputs"]["image"])
            return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "gone"
        return None

    def _cached(self, node_id: str) -> Cached | None:
        return self.engine.cache.get(self.signatures.get(node_id, ""))

    def _order(self) -> list[str]:
        """Sources before those that use them; behind a cached node nothing is needed."""
        order: list[str] = []

        def visit(node_id: str) -> None:
            if node_id in order:
                return
            if not self._cached(node_id):
                for value in self.prompt[node_id]["inputs"].values():
                    if is_link(value):
                        visit(value[0])
            order.append(node_id)

        for output in self.item.outputs:
            visit(output)
        return [one for one in order if not self._cached(one) or one in self.item.outputs]

    def _execute(self, node_id: str) -> None:
        self.node_id = node_id
        result = self._cached(node_id)
        if result is None:
            self.check_interrupt()
            self._announce()
            result = self._compute()
            self.executed.append(node_id)
            progress = self.states[node_id]
            value, maximum = progress["value"] or 1.0, progress["max"]
        else:
            value, maximum = 1, 1
        if result.ui is not None:
            self._publish(result.ui, result.meta)
        self._show_state("finished", value, maximum)

    def _publish(self, ui: Json, meta: Json) -> None:
        self._send("executed", {**self._display(), "output": ui}, self.client_id)
        self.report("executed", node=self.node_id, output=ui)
        self.history_outputs[self.node_id] = ui
        self.history_meta[self.node_id] = meta

    def _announce(self) -> None:
        self.engine.last_node = self.node_id
        self._show_state("running", 0.0, 1.0)
        if self.client_id is not None:
            self._send("executing", self._display(), self.client_id)

    def _compute(self) -> Cached:
        class_type = self.prompt[self.node_id]["class_type"]
        if self.fault.get("node", None) == class_type and self.fault.kind in MISHAPS:
            MISHAPS[self.fault.kind](self)
        self.ui = None
        outputs = NODES[class_type](self, **self._arguments(class_type))
        result = Cached(outputs, self.ui, self._meta())
        self.engine.cache[self.signatures[self.node_id]] = result
        return result

    def _arguments(self, class_type: str) -> Json:
        """Unknown constants never arrive; unknown links do, and are one argument too many."""
        inputs = self.prompt[self.node_id]["inputs"]
        known = known_inputs(self.engine.schemas()[class_type], inputs)
        takes_all = class_type == "VHS_VideoCombine"
        arguments = {}
        for name, value in inputs.items():
            if is_link(value):
                if name not in known and not takes_all:
                    problem = f"got an unexpected keyword argument '{name}'"
                    raise TypeError(f"{class_type}.execute() {problem}")
                arguments[name] = self.engine.cache[self.signatures[value[0]]].outputs[value[1]]
            elif takes_all or (name in known and _is_given(known[name], value)):
                arguments[name] = value
        return arguments

    # What nodes call.

    def wait(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    def check_interrupt(self) -> None:
        if self.engine.interrupted.is_set():
            self.engine.interrupted.clear()
            raise PromptInterruptedError

    def load_text_encoder(self) -> None:
        if not self.text_encoder_loaded:
            self.text_encoder_loaded = True
            self._load("LTXAVTEModel_")

    def load_model(self) -> None:
        self._load("LTXAV")
        self.engine.warm = True

    def _load(self, name: str) -> None:
        log.info("Requested to load %s", name)
        self.wait((self.times.warm_load if self.engine.warm else self.times.load) / 2)
        self.engine.loaded = True

    def show_step(self, step: int, steps: int, film: Film) -> None:
        self.show_progress(step, steps)
        if self.engine.options.preview_method != "none" and film.keyframes:
            self.hub.send_preview(_thumbnail(film), self.client_id)
        bar = f"{'█' * step}{' ' * (steps - step)}"
        print(f"\r{step * 100 // steps:3}%|{bar}| {step}/{steps}", end="", file=sys.stderr)
        if step == steps:
            print(file=sys.stderr)
        self.report("step", node=self.node_id, step=step, steps=steps)

    def show_progress(self, value: int, maximum: int) -> None:
        self.check_interrupt()
        self._show_state("running", value, maximum)
        progress = {
            "value": value, "max": maximum, "prompt_id": self.prompt_id, "node": self.node_id,
        }  # fmt: skip
        self._send("progress", progress, self.client_id)

    def strike(self, step: int) -> None:
        """Play the fault whose step this is; it strikes once the step has been shown."""
        here = "node" not in self.fault.details and step == self.fault.get("at", 3)
        if here and self.fault.kind in MISHAPS:
            MISHAPS[self.fault.kind](self)

    def show(self, ui: Json) -> None:
        """What an output node wants seen: it ends up in `executed` and in the history."""
        self.ui = ui

    def report(self, event: str, **facts: Any) -> None:
        self.engine.script.report(event, promptId=self.prompt_id, **facts)

    # What clients and the history get to know.

    def history_entry(self, outcome: str) -> Json:
        status = {
            "status_str": "success" if outcome == "success" else "error",
            "completed": outcome == "success",
            "messages": self.messages,
        }
        return {
            "prompt": self.item.listed(),
            "outputs": self.history_outputs,
            "status": status,
            "meta": self.history_meta,
        }

    def _note(self, event: str, data: Json) -> None:
        """A message that the history keeps; without a client id nobody is told."""
        data = {**data, "prompt_id": self.prompt_id, "timestamp": int(time.time() * 1000)}
        self.messages.append([event, data])
        if self.client_id is not None:
            self._send(event, data, self.client_id)

    def _send(self, event: str, data: Json, client_id: str | None) -> None:
        self.hub.send(event, data, client_id)

    def _show_state(self, state: str, value: float, maximum: float) -> None:
        self.states[self.node_id] = self._state(state, value, maximum)
        data = {"prompt_id": self.prompt_id, "nodes": self.states}
        self._send("progress_state", data, self.client_id)

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

    def _display(self) -> Json:
        return {"node": self.node_id, "display_node": self.node_id, "prompt_id": self.prompt_id}

    def _meta(self) -> Json:
        return {
            "node_id": self.node_id,
            "display_node": self.node_id,
            "parent_node": None,
            "real_node_id": self.node_id,
        }

    def _where(self) -> Json:
        class_type = self.prompt[self.node_id]["class_type"]
        return {"node_id": self.node_id, "node_type": class_type, "executed": self.executed}

    def _explain(self, error: Exception) -> Json:
        name = _type_name(error)
        log.error("!!! Exception during processing !!! %s", error)
        log.error("".join(traceback.format_exception(error)))
        advice = ""
        if name == "torch.OutOfMemoryError":
            log.error("Got an OOM, unloading all loaded models.")
            self.engine.unload()
            advice = OOM_ADVICE
        return {
            **self._where(),
            "exception_message": f"{error}\n{advice}",
            "exception_type": name,
            "traceback": traceback.format_tb(error.__traceback__),
            "current_inputs": self._described_inputs(),
            "current_outputs": list(self.prompt),
        }

    def _described_inputs(self) -> Json:
        inputs = self.prompt[self.node_id]["inputs"]
        return {
            name: ["tensor([...])"] if is_link(value) else [value] for name, value in inputs.items()
        }


def _is_given(slot: Any, value: Any) -> bool:
    """A dynamic combo whose value is none of its keys does not reach the node."""
    if slot.kind != "COMFY_DYNAMICCOMBO_V3":
        return True
    return value in [option["key"] for option in slot.options["options"]]


def _type_name(error: Exception) -> str:
    if isinstance(error, NodeError):
        return error.type_name
    kind = type(error)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


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
