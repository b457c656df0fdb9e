"""Which files ComfyUI means by the names in our graphs, and what a conditioning depends on."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ltx.comfyui.conditioning import ModelFile
from ltx.process import ask
from ltx.settings import Settings
from ltx.text import as_dict, as_list

# Kinds of model as ComfyUI's folders are called, the older name last.
CHECKPOINTS, TEXT_ENCODERS = ("checkpoints",), ("text_encoders", "clip")
PATHS_FLAG = "--extra-model-paths-config"
# ComfyUI's Python has PyYAML, ours need not.
YAML_TO_JSON = """
import json, sys, yaml
print(json.dumps([yaml.safe_load(open(file, encoding="utf-8")) for file in sys.argv[1:]]))
"""


class NoIdentity(Exception):
    """What a conditioning depends on cannot be told; the text says why."""


def find_models(settings: Settings, kind: tuple[str, ...], name: str) -> list[Path]:
    """Every file that ComfyUI may mean by this name; of several it takes one."""
    folders = [settings.comfyui_dir / "models" / folder for folder in kind]
    return [
        path
        for folder in (*folders, *extra_folders(settings, kind))
        if (path := folder / name).is_file()
    ]


def extra_folders(settings: Settings, kind: tuple[str, ...]) -> Iterator[Path]:
    """The folders of extra_model_paths.yaml and of the operator's own such files."""
    own = settings.comfyui_dir / "extra_model_paths.yaml"
    files = [file for file in (own, *given_files(settings)) if file.is_file()]
    if not files:
        return
    words = ask(settings, settings.comfyui_python, "-c", YAML_TO_JSON, *map(str, files))
    try:
        told = as_list(json.loads(words))
    except ValueError:
        return
    for file, sections in zip(files, told, strict=False):
        yield from read_folders(sections, file.parent, kind)


def given_files(settings: Settings) -> Iterator[Path]:
    """What COMFYUI_ARGS gives to --extra-model-paths-config, which takes several."""
    taking = False
    for word in settings.comfyui_args:
        flag, _, value = word.partition("=")
        if word.startswith("-"):
            taking = flag.startswith("--ext") and PATHS_FLAG.startswith(flag)
        else:
            value = word
        if taking and value:
            yield settings.comfyui_dir / value


def read_folders(sections: object, beside: Path, kind: tuple[str, ...]) -> Iterator[Path]:
    """The folders of one kind of model in a file as ComfyUI reads it; `beside` is the file's."""
    for section in map(as_dict, as_dict(sections).values()):
        base = os.path.expandvars(os.path.expanduser(str(section.get("base_path") or "")))
        for names in (section.get(folder) for folder in kind):
            for name in str(names or "").split("\n"):
                if name:
                    yield Path(os.path.normpath(beside / base / name))


def read_version(comfyui_dir: Path) -> str:
    """Of the ComfyUI in this folder. Raises NoIdentity."""
    try:
        text = (comfyui_dir / "comfyui_version.py").read_text(errors="replace")
    except OSError as error:
        raise NoIdentity(f"{error.filename}: {error.strerror}") from error
    if not (found := re.search(r"""^__version__\s*=\s*["'](.+?)["']""", text, re.MULTILINE)):
        raise NoIdentity(f"{comfyui_dir}/comfyui_version.py names no version")
    return found[1]


def encoder_files(settings: Settings) -> tuple[ModelFile, ...]:
    """The files that read texts. Raises NoIdentity where one is not found."""
    models = list[ModelFile]()
    for name in (settings.text_encoder, settings.text_projection):
        found = find_models(settings, TEXT_ENCODERS, name)
        if not found:
            raise NoIdentity(f"{name} is in no folder of text encoders that the worker knows")
        try:
            models += map(ModelFile.at, found)
        except OSError as error:
            raise NoIdentity(f"{error.filename}: {error.strerror}") from error
    return tuple(models)
