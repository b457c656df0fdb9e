"""The node classes of an LTX-2.3 graph, as `GET /object_info` of ComfyUI 0.21 and 0.27 gives them.

`nodes.json` holds them once, compactly; `load_schemas` spells them out.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

Schemas = dict[str, dict[str, Any]]

NODES_FILE = Path(__file__).with_name("nodes.json")
VERSIONS = ("0.21", "0.27")


def load_schemas(
    version: str = "0.27",
    *,
    missing_nodes: Collection[str] = (),
    missing_models: Collection[str] = (),
    added_inputs: Iterable[str] = (),
    input_images: Iterable[str] = (),
) -> Schemas:
    """The whole `/object_info` answer, without the named classes and model files.

    added_inputs: as `class.input`, what a newer pack requires.
    """
    fixture = json.loads(NODES_FILE.read_text())
    lists = {
        f"@{folder}": [name for name in names if name not in missing_models]
        for folder, names in fixture["models"].items()
    }
    # The GGUF pack lists its kind of file, the core does not.
    encoders = lists["@text_encoders"]
    lists["@text_encoders but gguf"] = [name for name in encoders if not name.endswith(".gguf")]
    lists["@input_images"] = sorted(input_images)
    nodes = fixture["both"] | fixture[version]
    for kind, _, name in (added.partition(".") for added in added_inputs):
        nodes[kind].setdefault("required", {})[name] = ["STRING", {}]
    return {
        name: _spell_out(name, node, lists)
        for name, node in nodes.items()
        if name not in missing_nodes
    }


def _spell_out(name: str, node: dict[str, Any], lists: dict[str, list[str]]) -> dict[str, Any]:
    groups = {
        group: {key: _spec(spec, lists) for key, spec in node[group].items()}
        for group in ("required", "optional")
        if group in node
    }
    output = node["output"]
    return {
        "input": groups,
        "input_order": {group: list(inputs) for group, inputs in groups.items()},
        "is_input_list": False,
        "output": output,
        "output_is_list": [False] * len(output),
        "output_name": node.get("output_name", output),
        "name": name,
        "display_name": name,
        "description": "",
        "python_module": node["module"],
        "category": "",
        "output_node": node.get("output_node", False),
    }


def _spec(spec: list[Any], lists: dict[str, list[str]]) -> list[Any]:
    kind, *rest = spec
    if kind == "COMFY_DYNAMICCOMBO_V3":
        return [kind, {"options": _numbered_options(rest[0])}]
    if isinstance(kind, str):
        return [lists.get(kind, kind), *rest]
    return spec


def _numbered_options(template: dict[str, Any]) -> list[dict[str, Any]]:
    """Option "2" asks for image_1 and image_2, and so on: one option per count."""
    options = []
    for count in range(1, template["repeat"] + 1):
        inputs = {
            group: {
                pattern.format(n=n): spec
                for n in range(1, count + 1)
                for pattern, spec in template[group].items()
            }
            for group in ("required", "optional")
        }
        options.append({"key": str(count), "inputs": inputs})
    return options
