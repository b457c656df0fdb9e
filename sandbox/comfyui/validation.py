"""What `POST /prompt` says to a graph: ComfyUI's own verdict, and a stricter one for tests.

Pure functions over the prompt (API format) and the schemas (the `/object_info` answer).
"""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mistakes import find_mistakes
from slots import (
    COERCIONS,
    Json,
    Prompt,
    Slot,
    choice_faults,
    failure,
    known_inputs,
    range_faults,
)

# What a link to nowhere, a slot that is not there or a node without inputs raises in the walk.
BROKEN_GRAPH = (LookupError, TypeError, AttributeError, ValueError)

Judge = Callable[..., bool | str]


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


def validate(
    prompt: Prompt,
    schemas: dict[str, Json],
    *,
    strict: bool = False,
    image_exists: Callable[[str], bool] = lambda name: True,
    packs: Mapping[str, Any] = MappingProxyType({}),
) -> ValidationResult:
    """Judge a graph as ComfyUI would; `strict` adds what it lets pass although it is a mistake.

    packs: classes that may have a VALIDATE_INPUTS of their own.
    """
    result = ValidationResult(copy.deepcopy(prompt))
    result.error = _find_unknown_class(prompt, schemas)
    if result.error is None:
        own: dict[str, Judge] = {
            name: node.VALIDATE_INPUTS
            for name, node in packs.items()
            if hasattr(node, "VALIDATE_INPUTS")
        }
        own["LoadImage"] = lambda image: image_exists(image) or f"Invalid image file: {image}"
        _Inspection(result, schemas, own).judge()
    if strict and result.error is None:
        result.mistakes = list(find_mistakes(prompt, schemas))
    return result


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


class _Inspection:
    """One walk from every output up its links; each node is judged once."""

    def __init__(
        self,
        result: ValidationResult,
        schemas: dict[str, Json],
        judges: Mapping[str, Judge],
    ) -> None:
        self.result = result
        self.prompt = result.prompt
        self.schemas = schemas
        self.judges = judges
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
        judged = _judged(self.judges.get(node["class_type"]))
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
                if slot.name not in judged:
                    errors += range_faults(slot, inputs[slot.name])
                    errors += choice_faults(slot, inputs[slot.name])
        errors += self._own_verdict(node["class_type"], inputs)
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

    def _own_verdict(self, class_type: str, inputs: Json) -> Iterator[Json]:
        """What the class itself says of its constants: each that it looks at is blamed."""
        judge = self.judges.get(class_type)
        if judge is None:
            return
        names = _judged(judge)
        given = {
            name: inputs[name]
            for name in names
            if name in inputs and not isinstance(inputs[name], list)
        }
        verdict = judge(**given)
        if verdict is True:
            return
        message = "Custom validation failed for node"
        for name in given:
            details = name if verdict is False else f"{name} - {verdict}"
            yield failure("custom_validation_failed", message, details, {"input_name": name})

    def _report_cycle(self, node_id: str) -> None:
        cycle = [*self.path[self.path.index(node_id) :], node_id]
        details = " -> ".join(cycle)
        extra = {"node_id": node_id, "cycle_nodes": cycle}
        self.errors[node_id] = [
            failure("dependency_cycle", "Dependency cycle detected", details, extra)
        ]


def _judged(judge: Judge | None) -> list[str]:
    """The inputs that a class looks at itself."""
    return list(inspect.signature(judge).parameters) if judge else []


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
