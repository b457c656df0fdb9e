"""One prompt's execution: cached nodes are skipped, the rest go one by one, and are told about."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import traceback
from typing import Any

from hub import Hub
from mishaps import damage, strike_node
from nodes import NODES
from packs import is_changed
from run import Item, NodeError, PromptInterruptedError, Run
from slots import Json, is_link, known_inputs
from state import Cached, Outputs, State

log = logging.getLogger(__name__)

OOM_ADVICE = (
    "This error means you ran out of memory on your GPU.\n\n"
    "TIPS: If the workflow worked before you might have accidentally set the batch_size to a"
    " large number."
)


class Execution:
    def __init__(self, state: State, hub: Hub, item: Item) -> None:
        self.state = state
        self.item = item
        self.prompt = item.prompt
        self.run = Run(state, hub, item)
        self.signatures: dict[str, str] = {}
        self.executed: list[str] = []
        self.messages: list[list[Any]] = []
        self.history_outputs: Json = {}
        self.history_meta: Json = {}

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
        self.state.forget_all_but(set(self.signatures.values()))

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
            path = self.state.folders.input_file(node["inputs"]["image"])
            return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "gone"
        if pack := self.state.packs.get(node["class_type"]):
            inputs = node["inputs"].items()
            return is_changed(pack, {name: one for name, one in inputs if not is_link(one)})
        return None

    def _cached(self, node_id: str) -> Cached | None:
        return self.state.cache.get(self.signatures.get(node_id, ""))

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
        self.run.node_id = node_id
        result = self._cached(node_id)
        if result is None:
            self.run.check_interrupt()
            self._announce()
            result = self._compute()
            self.executed.append(node_id)
            progress = self.run.progress[node_id]
            value, maximum = progress["value"] or 1.0, progress["max"]
        else:
            value, maximum = 1, 1
        if result.ui is not None:
            self._publish(result.ui, result.meta)
        self.run.show_state("finished", value, maximum)

    def _publish(self, ui: Json, meta: Json) -> None:
        self.run.send("executed", {**self._display(), "output": ui})
        self.run.report("executed", node=self.run.node_id, output=ui)
        self.history_outputs[self.run.node_id] = ui
        self.history_meta[self.run.node_id] = meta

    def _announce(self) -> None:
        self.state.last_node = self.run.node_id
        self.run.show_state("running", 0.0, 1.0)
        if self.run.client_id is not None:
            self.run.send("executing", self._display())

    def _compute(self) -> Cached:
        class_type = self.prompt[self.run.node_id]["class_type"]
        strike_node(self.run, class_type)
        self.run.ui = None
        damage(self.run, class_type, self._inputs(), done=False)
        outputs = self._play(class_type, self._arguments(class_type))
        damage(self.run, class_type, self._inputs(), done=True)
        result = Cached(outputs, self.run.ui, self._meta())
        self.state.cache[self.signatures[self.run.node_id]] = result
        return result

    def _play(self, class_type: str, arguments: Json) -> Outputs:
        pack = self.state.packs.get(class_type)
        if pack is None:
            return NODES[class_type](self.run, **arguments)
        found = getattr(pack(), pack.FUNCTION)(**arguments)
        if not isinstance(found, dict):
            return tuple(found)
        self.run.show(found.get("ui", {}))
        return tuple(found.get("result", ()))

    def _inputs(self) -> Json:
        inputs: Json = self.prompt[self.run.node_id]["inputs"]
        return inputs

    def _arguments(self, class_type: str) -> Json:
        """Unknown constants never arrive; unknown links do, and are one argument too many."""
        inputs = self._inputs()
        known = known_inputs(self.state.schemas()[class_type], inputs)
        takes_all = class_type == "VHS_VideoCombine"
        arguments = {}
        for name, value in inputs.items():
            if is_link(value):
                if name not in known and not takes_all:
                    problem = f"got an unexpected keyword argument '{name}'"
                    raise TypeError(f"{class_type}.execute() {problem}")
                arguments[name] = self.state.cache[self.signatures[value[0]]].outputs[value[1]]
            elif takes_all or (name in known and _is_given(known[name], value)):
                arguments[name] = value
        return arguments

    # What the history keeps.

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
        data = {**data, "prompt_id": self.run.prompt_id, "timestamp": int(time.time() * 1000)}
        self.messages.append([event, data])
        if self.run.client_id is not None:
            self.run.send(event, data)

    def _display(self) -> Json:
        return {
            "node": self.run.node_id,
            "display_node": self.run.node_id,
            "prompt_id": self.run.prompt_id,
        }

    def _meta(self) -> Json:
        return {
            "node_id": self.run.node_id,
            "display_node": self.run.node_id,
            "parent_node": None,
            "real_node_id": self.run.node_id,
        }

    def _where(self) -> Json:
        class_type = self.prompt[self.run.node_id]["class_type"]
        return {"node_id": self.run.node_id, "node_type": class_type, "executed": self.executed}

    def _explain(self, error: Exception) -> Json:
        name = _type_name(error)
        log.error("!!! Exception during processing !!! %s", error)
        log.error("".join(traceback.format_exception(error)))
        advice = ""
        if name == "torch.OutOfMemoryError":
            log.error("Got an OOM, unloading all loaded models.")
            self.state.unload()
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
        return {
            name: ["tensor([...])"] if is_link(value) else [value]
            for name, value in self._inputs().items()
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
