"""What `POST /prompt` says to a graph: ComfyUI's own verdict, and a stricter one for tests.

Pure functions over the prompt (API format) and the schemas (the `/object_info` answer).
"""

from __future__ import annotations

import copy
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

Json = dict[str, Any]
Prompt = dict[str, Json]

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
COERCIONS: dict[str, Callable[[Any], Any]] = {
    "INT": int,
    "FLOAT": float,
    "STRING": str,
    "BOOLEAN": bool,
}
# What a link to nowhere, a slot that is not there or a node without inputs raises in the walk.
BROKEN_GRAPH = (LookupError, TypeError, AttributeError, ValueError)
LONG_LIST = 20  # longer ones are named by their length only, as the real server does
SIGMA = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass
class ValidationResult:
    """`error` is the 400's "error" object, or None when at least one output may run."""

    prompt: Prompt  # a copy, constants coerced to their declared types
    outputs: list[str] = field(default_factory=list)  # node ids of the outputs that may run
    error: Json | None = None
    node_errors: Json = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)  # only with strict=True

    @property
    def ok(self) -> bool:
        return self.error is None and not self.node_errors and not self.mistakes


@dataclass(frozen=True)
class Slot:
    """One input a node knows in its present state; `label` is its name without the dots."""

    name: str
    label: str
    kind: Any
    options: Json
    required: bool

    @property
    def config(self) -> list[Any]:
        return [self.kind, self.options]

    @property
    def choices(self) -> list[Any] | None:
        if isinstance(self.kind, list):
            return self.kind
        return list(self.options["options"]) if self.kind == "COMBO" else None


def validate(
    prompt: Prompt,
    schemas: dict[str, Json],
    *,
    strict: bool = False,
    image_exists: Callable[[str], bool] = lambda name: True,
) -> ValidationResult:
    """Judge a graph as ComfyUI would; `strict` adds what it lets pass although it is a mistake."""
    result = ValidationResult(copy.deepcopy(prompt))
    result.error = _find_unknown_class(prompt, schemas)
    if result.error is None:
        _Inspection(result, schemas, image_exists).judge()
    if strict and result.error is None:
        result.mistakes = list(find_mistakes(prompt, schemas))
    return result


def is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def known_inputs(schema: Json, inputs: Json) -> dict[str, Slot]:
    """The inputs the node has, given its values: a dynamic combo adds those of its option."""
    slots = {}
    for slot in _declared(schema["input"]):
        slots[slot.name] = slot
        if slot.kind == DYNAMIC_COMBO:
            for child in _declared(_chosen_option(slot, inputs.get(slot.name)), f"{slot.name}."):
                slots[child.name] = child
    return slots


def _declared(groups: Json, prefix: str = "") -> Iterator[Slot]:
    for group in ("required", "optional"):
        for name, (kind, *options) in groups.get(group, {}).items():
            # A dynamic combo without a value is not missed: the real server falls silent there.
            required = group == "required" and kind != DYNAMIC_COMBO
            yield Slot(prefix + name, name, kind, options[0] if options else {}, required)


def _chosen_option(slot: Slot, value: Any) -> Json:
    for option in slot.options["options"]:
        if option["key"] == value:
            inputs: Json = option["inputs"]
            return inputs
    return {}


def _find_unknown_class(prompt: Prompt, schemas: dict[str, Json]) -> Json | None:
    for node_id, node in prompt.items():
        class_type = node.get("class_type")
        if class_type in schemas:
            continue
        title = node.get("_meta", {}).get("title", class_type or node_id)
        complaint = (
            "not found. The custom node may not be installed."
            if class_type
            else "has no class_type. The workflow may be corrupted or a custom node is missing."
        )
        return failure(
            "missing_node_type",
            f"Node '{title}' {complaint}",
            f"Node ID '#{node_id}'",
            {"node_id": node_id, "class_type": class_type, "node_title": title},
        )
    if not any(schemas[node["class_type"]]["output_node"] for node in prompt.values()):
        return failure("prompt_no_outputs", "Prompt has no outputs")
    return None


def failure(kind: str, message: str, details: str = "", extra_info: Json | None = None) -> Json:
    """One error object as it stands in ComfyUI's bodies."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info or {}}


class _Inspection:
    """One walk from every output up its links; each node is judged once."""

    def __init__(
        self,
        result: ValidationResult,
        schemas: dict[str, Json],
        image_exists: Callable[[str], bool],
    ) -> None:
        self.result = result
        self.prompt = result.prompt
        self.schemas = schemas
        self.image_exists = image_exists
        self.errors: dict[str, list[Json]] = {}  # by node id; an empty list: nothing of its own
        self.valid: dict[str, bool] = {}
        self.path: list[str] = []

    def judge(self) -> None:
        details: list[str] = []
        for node_id, node in self.prompt.items():
            if not self.schemas[node["class_type"]]["output_node"]:
                continue
            if self._output_is_valid(node_id):
                self.result.outputs.append(node_id)
            else:
                own = self.errors.get(node_id, [])
                details += [f"{error['message']}: {error['details']}" for error in own]
                self._blame(node_id)
        if not self.result.outputs:
            self.result.error = failure(
                "prompt_outputs_failed_validation",
                "Prompt outputs failed validation",
                "\n".join(details),
            )

    def _output_is_valid(self, node_id: str) -> bool:
        try:
            return self._is_valid(node_id)
        except BROKEN_GRAPH as error:
            self.errors[node_id] = [_exception_report(error)]
            self.valid[node_id] = False
            return False

    def _blame(self, output_id: str) -> None:
        for node_id, errors in self.errors.items():
            if not errors or self.valid[node_id]:
                continue
            report = self.result.node_errors.setdefault(
                node_id,
                {
                    "errors": errors,
                    "dependent_outputs": [],
                    "class_type": self.prompt[node_id]["class_type"],
                },
            )
            report["dependent_outputs"].append(output_id)

    def _is_valid(self, node_id: str) -> bool:
        if node_id in self.valid:
            return self.valid[node_id]
        if node_id in self.path:
            self._report_cycle(node_id)
            return False
        self.path.append(node_id)
        try:
            return self._inspect(node_id)
        finally:
            self.path.pop()

    def _inspect(self, node_id: str) -> bool:
        node = self.prompt[node_id]
        inputs = node["inputs"]
        errors: list[Json] = []
        sources_valid = True
        for slot in known_inputs(self.schemas[node["class_type"]], inputs).values():
            if slot.name not in inputs:
                errors += _missing(slot)
            elif isinstance(inputs[slot.name], list):
                fault = self._link_fault(slot, inputs[slot.name])
                errors += fault
                sources_valid &= bool(fault) or self._source_is_valid(slot, inputs[slot.name])
            else:
                errors += _coerce(slot, inputs)
                errors += self._constant_faults(node["class_type"], slot, inputs[slot.name])
        self.errors[node_id] = self.errors.get(node_id, []) + errors
        self.valid[node_id] = sources_valid and not self.errors[node_id]
        return self.valid[node_id]

    def _link_fault(self, slot: Slot, link: list[Any]) -> list[Json]:
        extra: Json = {"input_name": slot.name, "input_config": slot.config}
        if len(link) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            extra["received_value"] = link
            return [failure("bad_linked_input", message, slot.name, extra)]
        source_id, index = link
        received = self.schemas[self.prompt[source_id]["class_type"]]["output"][index]
        if slot.kind in ("*", received) or received == "*":
            return []
        details = f"{slot.name}, received_type({received}) mismatch input_type({slot.kind})"
        extra |= {"received_type": received, "linked_node": link}
        message = "Return type mismatch between linked nodes"
        return [failure("return_type_mismatch", message, details, extra)]

    def _source_is_valid(self, slot: Slot, link: list[Any]) -> bool:
        try:
            return self._is_valid(link[0])
        except BROKEN_GRAPH as error:
            self.errors[link[0]] = [_inner_exception_report(error, slot, link)]
            self.valid[link[0]] = False
            return False

    def _constant_faults(self, class_type: str, slot: Slot, value: Any) -> list[Json]:
        if class_type == "LoadImage" and slot.name == "image":
            if self.image_exists(value):
                return []
            details = f"{slot.name} - Invalid image file: {value}"
            message = "Custom validation failed for node"
            return [
                failure("custom_validation_failed", message, details, {"input_name": slot.name})
            ]
        return _range_faults(slot, value) + _choice_faults(slot, value)

    def _report_cycle(self, node_id: str) -> None:
        cycle = [*self.path[self.path.index(node_id) :], node_id]
        details = " -> ".join(cycle)
        extra = {"node_id": node_id, "cycle_nodes": cycle}
        self.errors[node_id] = [
            failure("dependency_cycle", "Dependency cycle detected", details, extra)
        ]


def _missing(slot: Slot) -> list[Json]:
    if not slot.required:
        return []
    extra = {"input_name": slot.name}
    return [failure("required_input_missing", "Required input is missing", slot.label, extra)]


def _coerce(slot: Slot, inputs: Json) -> list[Json]:
    """Turn "24" into 24 where an INT is declared, in place; say so when that is impossible."""
    convert = COERCIONS.get(slot.kind) if isinstance(slot.kind, str) else None
    if convert is None:
        return []
    value = inputs[slot.name]
    try:
        inputs[slot.name] = convert(value)
    except (TypeError, ValueError, OverflowError) as error:
        message = f"Failed to convert an input value to a {slot.kind} value"
        extra = {
            "input_name": slot.name,
            "input_config": slot.config,
            "received_value": value,
            "exception_message": str(error),
        }
        details = f"{slot.name}, {value}, {error}"
        return [failure("invalid_input_type", message, details, extra)]
    return []


def _range_faults(slot: Slot, value: Any) -> list[Json]:
    if slot.kind not in ("INT", "FLOAT") or not isinstance(value, (int, float)):
        return []
    extra = {"input_name": slot.name, "input_config": slot.config, "received_value": value}
    low, high = slot.options.get("min"), slot.options.get("max")
    faults = []
    if low is not None and value < low:
        message = f"Value {value} smaller than min of {low}"
        faults.append(failure("value_smaller_than_min", message, slot.name, extra))
    if high is not None and value > high:
        message = f"Value {value} bigger than max of {high}"
        faults.append(failure("value_bigger_than_max", message, slot.name, extra))
    return faults


def _choice_faults(slot: Slot, value: Any) -> list[Json]:
    choices = slot.choices
    if choices is None or value in choices:
        return []
    long = len(choices) > LONG_LIST
    shown = f"(list of length {len(choices)})" if long else str(choices)
    extra = {
        "input_name": slot.name,
        "input_config": None if long else slot.config,
        "received_value": value,
    }
    details = f"{slot.name}: '{value}' not in {shown}"
    return [failure("value_not_in_list", "Value not in list", details, extra)]


def _exception_report(error: Exception) -> Json:
    extra = {
        "exception_type": type(error).__name__,
        "traceback": traceback.format_tb(error.__traceback__),
    }
    kind, message = "exception_during_validation", "Exception when validating node"
    return failure(kind, message, str(error), extra)


def _inner_exception_report(error: Exception, slot: Slot, link: list[Any]) -> Json:
    extra = {
        "input_name": slot.name,
        "input_config": slot.config,
        "exception_message": str(error),
        "exception_type": type(error).__name__,
        "traceback": traceback.format_tb(error.__traceback__),
        "linked_node": link,
    }
    kind, message = "exception_during_inner_validation", "Exception when validating inner node"
    return failure(kind, message, str(error), extra)


def find_mistakes(prompt: Prompt, schemas: dict[str, Json]) -> Iterator[str]:
    """What the real server takes without a word, and what would go wrong then."""
    checks = {
        "EmptyLTXVLatentVideo": _size_mistakes,
        "ManualSigmas": _sigma_mistakes,
        "VHS_VideoCombine": _format_mistakes,
    }
    for node_id, node in prompt.items():
        class_type, inputs = node["class_type"], node["inputs"]
        schema = schemas[class_type]
        found = [*_input_mistakes(schema, inputs), *_dynamic_combo_mistakes(schema, inputs)]
        if class_type in checks:
            found += checks[class_type](schema, inputs)
        yield from (f"node {node_id} ({class_type}): {mistake}" for mistake in found)


def _input_mistakes(schema: Json, inputs: Json) -> Iterator[str]:
    slots = known_inputs(schema, inputs)
    extra = {widget[0] for widget in _format_widgets(schema, inputs)}
    for name, value in inputs.items():
        if name in slots:
            yield from _type_mistakes(slots[name], value)
        elif name not in extra:
            yield f"there is no input {name}"


def _type_mistakes(slot: Slot, value: Any) -> Iterator[str]:
    if isinstance(value, list):
        if is_link(value) and not isinstance(value[0], str):
            yield f"the link of {slot.name} needs a string node id, not {value[0]!r}"
        return
    if isinstance(slot.kind, str) and slot.kind not in (*COERCIONS, "COMBO", DYNAMIC_COMBO):
        yield f"{slot.name} is a {slot.kind} and needs a link, not {value!r}"
    wanted = {"INT": (int,), "FLOAT": (int, float), "STRING": (str,), "BOOLEAN": (bool,)}
    types = wanted.get(slot.kind, ()) if isinstance(slot.kind, str) else ()
    if types and (not isinstance(value, types) or (isinstance(value, bool) != (bool in types))):
        yield f"{slot.name} is a {slot.kind} and would be converted from {value!r}"


def _dynamic_combo_mistakes(schema: Json, inputs: Json) -> Iterator[str]:
    for slot in _declared(schema["input"]):
        if slot.kind != DYNAMIC_COMBO:
            continue
        keys = [option["key"] for option in slot.options["options"]]
        value = inputs.get(slot.name)
        if value not in keys:
            yield f"{slot.name} must be one of the strings {keys}, not {value!r}"
        for child in _declared(_chosen_option(slot, value), f"{slot.name}."):
            if child.name not in inputs:
                yield f"{child.name} is left out, so its image would silently not be applied"


def _size_mistakes(schema: Json, inputs: Json) -> Iterator[str]:
    for name in ("width", "height"):
        size = inputs.get(name)
        if isinstance(size, int) and size % 32:
            yield f"{name} {size} is no multiple of 32 and would be cut to {size // 32 * 32}"
    length = inputs.get("length")
    if isinstance(length, int) and length % 8 != 1:
        yield f"length {length} is not 8n + 1 and would be cut to {(length - 1) // 8 * 8 + 1}"


def _sigma_mistakes(schema: Json, inputs: Json) -> Iterator[str]:
    text = inputs.get("sigmas")
    if not isinstance(text, str):
        return
    parts = [part.strip() for part in text.split(",")]
    if not all(SIGMA.fullmatch(part) for part in parts):
        yield f"sigmas {text!r} are no comma-separated numbers; what is none is dropped unsaid"
        return
    sigmas = [float(part) for part in parts]
    falling = all(before > after for before, after in pairwise(sigmas))
    if len(sigmas) < 2 or not falling or sigmas[-1] < 0:
        yield f"sigmas {text!r} do not fall step by step towards zero"


def _format_widgets(schema: Json, inputs: Json) -> list[list[Any]]:
    """The extra inputs of the chosen VHS format: [name, choices] or [name, type, options]."""
    options = schema["input"].get("required", {}).get("format", [None, {}])[1:]
    formats = options[0].get("formats", {}) if options else {}
    widgets: list[list[Any]] = formats.get(inputs.get("format"), [])
    return widgets


def _format_mistakes(schema: Json, inputs: Json) -> Iterator[str]:
    for name, kind, *rest in _format_widgets(schema, inputs):
        options = rest[0] if rest else {}
        slot = Slot(name, name, kind, options, required=False)
        if name not in inputs:
            yield f"{name} is left out, so VHS would choose it"
            continue
        value = inputs[name]
        yield from _type_mistakes(slot, value)
        faults = _choice_faults(slot, value) + _range_faults(slot, value)
        yield from (f"{fault['message']} ({name}: {value!r})" for fault in faults)
