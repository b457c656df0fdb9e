"""Node packs from outside: found by `--extra-model-paths-config` and imported as ComfyUI does."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import re
import sys
import time
import traceback
import uuid
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from slots import Json
from standins import folder_paths

log = logging.getLogger(__name__)

# What YAML takes for no text.
UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
LINE = re.compile(r" *(?P<name>[\w.-]+):(?: +(?P<value>.*))?")
Node = type[Any]


def import_packs(
    options: argparse.Namespace, home: Path, *, broken: bool = False
) -> dict[str, Node]:
    """Their node classes by name. A pack that does not come is said in the log, no more."""
    folder_paths.add_model_folder_path("custom_nodes", str(home / "custom_nodes"))
    for file in chain(*options.extra_model_paths_config or []):
        add_paths(Path(file))
    classes: dict[str, Node] = {}
    for path in _modules(options):
        began = time.monotonic()
        found = _import_pack(path, broken)
        classes |= found or {}
        failed = "" if found is not None else " (IMPORT FAILED)"
        log.info("%6.1f seconds%s: %s", time.monotonic() - began, failed, path)
    return classes


def add_paths(file: Path) -> None:
    """Raises OSError for a file that is not there and ValueError for one that is no YAML."""
    for section in read_config(file.read_text(encoding="utf-8")).values():
        entries = dict(section or {})
        base = os.path.expandvars(os.path.expanduser(entries.pop("base_path", "")))
        default = bool(entries.pop("is_default", False))
        for kind, names in entries.items():
            for name in filter(None, names.split("\n")):
                path = os.path.normpath(file.absolute().parent / base / name)
                log.info("Adding extra search path %s %s", kind, path)
                folder_paths.add_model_folder_path(kind, path, default)


def read_config(text: str) -> dict[str, Json | None]:
    """As much of YAML as these files need: sections of names and values, or the same as JSON."""
    if found := UNPRINTABLE.search(text):
        raise ValueError(f"unacceptable character #x{ord(found[0]):04x}")
    if text.lstrip().startswith("{"):
        config: dict[str, Json | None] = json.loads(text)
        return config
    return _read_sections(text)


def _read_sections(text: str) -> dict[str, Json | None]:
    sections: dict[str, Json | None] = {}
    entries: Json = {}
    several, depth = "", 0  # the name whose value stands on the lines below it, deeper than it
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        read, indent = LINE.fullmatch(line.rstrip()), len(line) - len(line.lstrip())
        if several and indent > depth:
            entries[several] += f"{line.strip()}\n"
        elif read and not indent:
            sections[read["name"]] = entries = {}
            several = ""
        elif read and sections:
            several, depth = (read["name"] if read["value"] == "|" else ""), indent
            entries[read["name"]] = "" if several else _scalar(read["value"] or "")
        else:
            raise ValueError(f"not understood: {line!r}")
    return sections


def _scalar(text: str) -> str | bool:
    if text in ("true", "false"):
        return text == "true"
    return text[1:-1] if text[:1] in ("'", '"') and text[-1:] == text[:1] else text


def _modules(options: argparse.Namespace) -> Iterator[Path]:
    """Whatever lies in a folder of packs and could be one."""
    for folder in folder_paths.get_folder_paths("custom_nodes"):
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            path = Path(folder, name)
            off = options.disable_all_custom_nodes and name not in options.whitelist_custom_nodes
            if off or name == "__pycache__" or name.endswith(".disabled"):
                continue
            if path.is_dir() or path.suffix == ".py":
                yield path


def _import_pack(path: Path, broken: bool) -> dict[str, Node] | None:
    """None where it could not be imported, or is no pack."""
    try:
        if broken:
            raise ImportError("cannot import name 'kept' from 'torch'")
        classes: dict[str, Node] | None = getattr(_import(path), "NODE_CLASS_MAPPINGS", None)
    except Exception as error:
        log.warning("%s", traceback.format_exc())
        log.warning("Cannot import %s module for custom nodes: %s", path, error)
        return None
    if classes is None:
        log.warning("Skip %s module for custom nodes due to the lack of NODE_CLASS_MAPPINGS.", path)
        return None
    for node in classes.values():
        node.RELATIVE_PYTHON_MODULE = f"custom_nodes.{path.stem}"
    return classes


def _import(path: Path) -> ModuleType:
    """A folder is named by its whole path, with its dots spelt out, a file by its path."""
    name, file = str(path).replace(".", "_x_"), path / "__init__.py"
    if path.is_file():
        name, file = str(path.with_suffix("")), path
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def describe(name: str, node: Node) -> Json:
    """A class as `GET /object_info` tells of it."""
    inputs: Json = node.INPUT_TYPES()
    outputs = list(node.RETURN_TYPES)
    return {
        "input": inputs,
        "input_order": {group: list(entries) for group, entries in inputs.items()},
        "is_input_list": getattr(node, "INPUT_IS_LIST", False),
        "output": outputs,
        "output_is_list": list(getattr(node, "OUTPUT_IS_LIST", [False] * len(outputs))),
        "output_name": list(getattr(node, "RETURN_NAMES", outputs)),
        "name": name,
        "display_name": name,
        "description": getattr(node, "DESCRIPTION", ""),
        "python_module": node.RELATIVE_PYTHON_MODULE,
        "category": getattr(node, "CATEGORY", "sd"),
        "output_node": getattr(node, "OUTPUT_NODE", False) is True,
    }


def is_changed(node: Node, constants: Json) -> str | None:
    """What the cache compares of a node besides its inputs; an answer that equals nothing is new
    each time.
    """
    if not hasattr(node, "IS_CHANGED"):
        return None
    try:
        answer = node.IS_CHANGED(**constants)
    except Exception as error:
        log.warning("WARNING: %s", error)
        answer = float("nan")
    return repr(answer) if answer == answer else uuid.uuid4().hex
