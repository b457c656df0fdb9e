"""What the doctor asks of ComfyUI, and what to type for what it lacks."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from ltx.comfyui.answers import Gap, Misfit, MissingModel, MissingNode
from ltx.comfyui.workflow import build_probe
from ltx.errors import JobError, PortHeld
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
    settings, port = context.settings, context.comfy.port
    if context.comfy.answers():
        how = f"answers at {context.comfy.url} and is not ended by us"
    elif context.comfy.stranger or context.comfy.is_port_held():
        what = context.comfy.stranger or "a program has the port and does not answer"
        yield "FAIL", f"at COMFYUI_URL={settings.comfyui_url} {what}", who_listens(port)
        return
    else:
        try:
            context.boot()
        except JobError as error:
            why = " ".join([error.detail, *error.tail.splitlines()[-1:]])
            held = isinstance(error, PortHeld)
            yield "FAIL", why, who_listens(port) if held else boot_by_hand(settings)
            return
        how = f"boots from {settings.comfyui_dir}"
    yield "OK", f"{context.comfy.describe()} {how}", ""


def who_listens(port: int) -> str:
    return f"ss -ltnp 'sport = :{port}'"


def boot_by_hand(settings: Settings) -> str:
    folder, python = shlex.quote(str(settings.comfyui_dir)), shlex.quote(settings.comfyui_python)
    return f"cd {folder} && {python} main.py"


def check_workflow(context: DoctorContext) -> Iterator[Answer]:
    workflow = build_probe(context.settings)
    for gap in context.comfy.gaps(workflow):
        yield "FAIL", *tell_gap(gap, context.settings)
    yield "OK", f"{len(workflow)} nodes with their inputs and model files are there", ""


def tell_gap(gap: Gap, settings: Settings) -> tuple[str, str]:
    """What is missing or does not fit, and what to type for it."""
    folder = settings.comfyui_dir
    match gap:
        case Misfit():
            return name_the_older(gap, settings)
        case MissingNode(pack=pack) if pack in PACK_SOURCES:
            there = folder / "custom_nodes" / pack
            clone = shlex.join(["git", "clone", f"https://github.com/{PACK_SOURCES[pack]}"])
            pull = shlex.join(["git", "-C", str(there), "pull"])
            return gap.detail, pull if (
                there / ".git"
            ).exists() else f"{clone} {shlex.quote(str(there))}"
        case MissingModel(name=name, folder=models) if name in MODEL_SOURCES:
            target = shlex.quote(str(folder / models / name))
            url = f"https://huggingface.co/{MODEL_SOURCES[name]}/{name}"
            return gap.detail, f"curl -fL -o {target} {url}"
        case MissingModel(folder=models):
            return gap.detail, f"ls {shlex.quote(str(folder / models))}"
    return gap.detail, shlex.join(["git", "-C", str(folder), "pull"])


def name_the_older(gap: Misfit, settings: Settings) -> tuple[str, str]:
    """Which of a pack and this worker is older, by their last commits, and how to update it."""
    folder = settings.comfyui_dir
    folders = {gap.pack: folder / "custom_nodes" / gap.pack, "ltx-worker": ENV_FILE.parent}
    if gap.pack == "ComfyUI":
        folders[gap.pack] = folder
    git = {name: ("git", "-C", str(path)) for name, path in folders.items()}
    # A pack that is no clone lies within ComfyUI's, whose date would be taken for its own.
    clones = [name for name, path in folders.items() if (path / ".git").exists()]
    asked = {name: ask(settings, *git[name], "log", "-1", "--format=%cs") for name in clones}
    dates = {name: asked.get(name, "") for name in folders}
    # What has no date, so comes last, cannot be pulled.
    older = min(dates, key=lambda name: dates[name] or "unknown")
    told = ", ".join(f"{name} is of {date or 'an unknown date'}" for name, date in dates.items())
    return f"{gap.detail} {told}.", f"{shlex.join(git[older])} pull"
