"""What the doctor asks of ComfyUI, and what to type for what it lacks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from urllib.parse import urlsplit

from ltx.comfyui.answers import Misfit
from ltx.comfyui.workflow import ClipSpec, build_workflow
from ltx.errors import JobError
from ltx.job import render_size
from ltx.operator.findings import Answer, DoctorContext
from ltx.process import ask
from ltx.settings import ENV_FILE, Settings

PACK_SOURCES = {
    "ComfyUI-GGUF": "city96/ComfyUI-GGUF",
    "ComfyUI-KJNodes": "kijai/ComfyUI-KJNodes",
    "ComfyUI-VideoHelperSuite": "Kosinkadink/ComfyUI-VideoHelperSuite",
}
MODEL_SOURCES = {
    "ltx-2.3-22b-distilled-fp8.safetensors": "Lightricks/LTX-2.3-fp8/resolve/main",
    "ltx-2.3_text_projection_bf16.safetensors": "Kijai/LTX2.3_comfy/resolve/main/text_encoders",
}


def check_comfyui(context: DoctorContext) -> Iterator[Answer]:
    settings = context.settings
    if context.comfy.answers():
        how = f"answers at {context.comfy.url} and is not ended by us"
    elif context.comfy.stranger:
        port = urlsplit(settings.comfyui_url).port or 80
        why = f"at COMFYUI_URL={settings.comfyui_url} {context.comfy.stranger}"
        yield "FAIL", why, f"ss -ltnp 'sport = :{port}'"
        return
    else:
        try:
            context.boot()
        except JobError as error:
            folder, python = settings.comfyui_dir, settings.comfyui_python
            why = " ".join([error.detail, *error.tail.splitlines()[-1:]])
            yield "FAIL", why, f"cd {shlex.quote(str(folder))} && {shlex.quote(python)} main.py"
            return
        how = f"boots from {settings.comfyui_dir}"
    yield "OK", f"{context.comfy.describe()} {how}", ""


def check_workflow(context: DoctorContext) -> Iterator[Answer]:
    settings, comfy = context.settings, context.comfy
    spec = ClipSpec(0, "first.png", "last.png", "", 0, "probe", render_size(settings.size))
    workflow = build_workflow(spec, settings)
    for gap in comfy.gaps(workflow):
        if isinstance(gap, Misfit):
            yield "FAIL", *name_the_older(gap, settings)
        else:
            yield "FAIL", gap.detail, install_command(gap.detail, settings)
    yield "OK", f"{len(workflow)} nodes with their inputs and model files are there", ""


def name_the_older(gap: Misfit, settings: Settings) -> tuple[str, str]:
    """Which of a pack and this worker is older, by their last commits, and how to update it."""
    folder = settings.comfyui_dir
    folders = {gap.pack: folder / "custom_nodes" / gap.pack, "ltx-worker": ENV_FILE.parent}
    if gap.pack == "ComfyUI":
        folders[gap.pack] = folder
    git = {name: ("git", "-C", str(path)) for name, path in folders.items()}
    dates = {name: ask(settings, *git[name], "log", "-1", "--format=%cs") for name in git}
    older = min(dates, key=lambda name: dates[name] or "no date, so perhaps the older")
    told = ", ".join(f"{name} is of {date or 'an unknown date'}" for name, date in dates.items())
    return f"{gap.detail} {told}.", f"{shlex.join(git[older])} pull"


def install_command(lack: str, settings: Settings) -> str:
    """What to type for something missing that ComfyUI told of."""
    folder = shlex.quote(str(settings.comfyui_dir))
    for pack, source in PACK_SOURCES.items():
        if f"install {pack}" in lack:
            return f"git clone https://github.com/{source} {folder}/custom_nodes/{pack}"
    for name, source in MODEL_SOURCES.items():
        if lack.startswith(f"Put {name} "):
            target = f"{folder}/{lack.rsplit(' ', 1)[-1].rstrip('.')}/{name}"
            return f"curl -fL -o {target} https://huggingface.co/{source}/{name}"
    found = re.search(r"models/\w+", lack)
    return f"ls {folder}/{found[0]}" if found else f"git -C {folder} pull"
