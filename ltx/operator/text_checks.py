"""What the doctor asks about texts and model files, and what to type."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from ltx.comfyui.conditioning import LOAD_NODE, PACK_DESCRIPTION, ConditioningFiles
from ltx.comfyui.model_files import (
    CHECKPOINTS,
    PATHS_FLAG,
    TEXT_ENCODERS,
    NoIdentity,
    encoder_files,
    extra_folders,
    find_models,
    read_version,
)
from ltx.comfyui.model_headers import find_damage
from ltx.operator.findings import Answer, DoctorContext
from ltx.settings import Settings
from ltx.text import one_line

SLOWER = "so every clip reads its texts itself, about a minute more of each"


def check_models(context: DoctorContext) -> Iterator[Answer]:
    """Whether the model files are as long as they say; whether they are there ComfyUI tells."""
    settings, seen = context.settings, 0
    for kind, model in (
        (CHECKPOINTS, settings.checkpoint),
        (TEXT_ENCODERS, settings.text_encoder),
        (TEXT_ENCODERS, settings.text_projection),
    ):
        for path in find_models(settings, kind, model):
            seen += 1
            if damage := find_damage(path):
                yield "FAIL", f"{damage}: get it again", f"ls -lL {shlex.quote(str(path))}"
    told = f"{seen} model files are as long as their headers announce"
    yield "OK", told if seen else "none lies where the worker knows it, so none was looked at", ""


def check_texts(context: DoctorContext) -> Iterator[Answer]:
    """Whether a job's texts are read once, and why not."""
    settings = context.settings
    if settings.text_mode == "clip":
        yield "OK", "LTX_TEXT=clip: every clip reads its texts itself", ""
        return
    files = ConditioningFiles(settings.state_dir / "conditioning")
    try:
        paths = files.prepare()
    except OSError as error:
        why = f"{error.filename}: {error.strerror}, {SLOWER}"
        there = shlex.quote(str(files.folder))
        yield "WARN", why, f"ls -ld {there}; sudo rm -r {there}"
        return
    try:
        encoder_files(settings)
        read_version(settings.comfyui_dir)
    except NoIdentity as error:
        folder = settings.comfyui_dir / "models" / "text_encoders"
        yield "WARN", f"{error}, {SLOWER}", f"ls -lL {shlex.quote(str(folder))}"
    if context.comfy.child is None:
        yield "OK", f"the ComfyUI is not the worker's own, {SLOWER}", ""
        return
    told = context.comfy.pack()
    if told != PACK_DESCRIPTION:
        yield "WARN", *explain_pack(told, settings, str(paths))
    yield "OK", f"read once, by the {PACK_DESCRIPTION}", ""


def explain_pack(told: str, settings: Settings, paths: str) -> tuple[str, str]:
    """What it means that a ComfyUI of ours tells this of our nodes, and what to type."""
    folder, python = (
        shlex.quote(str(one)) for one in (settings.comfyui_dir, settings.comfyui_python)
    )
    if told:
        places = (
            settings.comfyui_dir / "custom_nodes",
            *extra_folders(settings, ("custom_nodes",)),
        )
        find = shlex.join(["grep", "-rl", LOAD_NODE, *map(str, places)])
        return f"ComfyUI has other nodes of this name ({one_line(told, 60)}), {SLOWER}", find
    flags = f"{PATHS_FLAG} {shlex.quote(paths)} {shlex.join(settings.comfyui_args)}".strip()
    boot = f"cd {folder} && {python} main.py --cpu --quick-test-for-ci {flags}"
    return f"ComfyUI did not load the worker's nodes, {SLOWER}", boot
