"""The inputs that a node has, by its schema and in its present state, and what values they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
LONG_LIST = 20  # longer ones are named by their length only, as the real server does


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


def is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def known_inputs(schema: Json, inputs: Json) -> dict[str, Slot]:
    """The inputs the node has, given its values: a dynamic combo adds those of its option."""
    slots = {}
    for slot in declared(schema["input"]):
        slots[slot.name] = slot
        if slot.kind == DYNAMIC_COMBO:
            for child in declared(chosen_option(slot, inputs.get(slot.name)), f"{slot.name}."):
                slots[child.name] = child
    return slots


def declared(groups: Json, prefix: str = "") -> Iterator[Slot]:
    for group in ("required", "optional"):
        for name, (kind, *options) in groups.get(group, {}).items():
            # A dynamic combo without a value is not missed: the real server falls silent there.
            required = group == "required" and kind != DYNAMIC_COMBO
            yield Slot(prefix + name, name, kind, options[0] if options else {}, required)


def chosen_option(slot: Slot, value: Any) -> Json:
    for option in slot.options["options"]:
        if option["key"] == value:
            inputs: Json = option["inputs"]
            return inputs
    return {}


def failure(kind: str, message: str, details: str = "", extra_info: Json | None = None) -> Json:
    """One error object as it stands in ComfyUI's bodies."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info or {}}


def range_faults(slot: Slot, value: Any) -> list[Json]:
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


def choice_faults(slot: Slot, value: Any) -> list[Json]:
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
