"""What the real server takes without a word although it goes wrong then."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from slots import (
    COERCIONS,
    DYNAMIC_COMBO,
    Json,
    Prompt,
    Slot,
    choice_faults,
    chosen_option,
    declared,
    is_link,
    known_inputs,
    range_faults,
)

SIGMA = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


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
    for slot in declared(schema["input"]):
        if slot.kind != DYNAMIC_COMBO:
            continue
        keys = [option["key"] for option in slot.options["options"]]
        value = inputs.get(slot.name)
        if value not in keys:
            yield f"{slot.name} must be one of the strings {keys}, not {value!r}"
        for child in declared(chosen_option(slot, value), f"{slot.name}."):
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
        faults = choice_faults(slot, value) + range_faults(slot, value)
        yield from (f"{fault['message']} ({name}: {value!r})" for fault in faults)
