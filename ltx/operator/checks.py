"""What the doctor looks at on this box and on the hosted side, and the table of all checks."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ltx.errors import ConfigError, JobError, StoreClosed, Unavailable
from ltx.film import pictures
from ltx.film.clips import H264
from ltx.film.ffmpeg import ffmpeg_command, read_picture
from ltx.hosted.blob import Blob
from ltx.job import MAX_FRAME_PIXELS, describe_films, job_bytes
from ltx.operator.api_checks import check_api
from ltx.operator.comfyui_checks import check_comfyui, check_workflow
from ltx.operator.findings import EDIT, Answer, Check, DoctorContext
from ltx.operator.service_checks import check_service
from ltx.operator.text_checks import check_models, check_texts
from ltx.process import ask, ask_gpu
from ltx.settings import ENV_FILE, Settings
from ltx.state import claim_folder, state_errors
from ltx.text import one_line

# What is run, and the package that has it.
PROGRAMS = {
    "ffmpeg": "ffmpeg",
    "ffprobe": "ffmpeg",
    "setpriv": "util-linux",
    "choom": "util-linux",
    "nice": "coreutils",
}


def check_tools() -> None:
    """Raises ConfigError for programs that are missing on this machine."""
    missing = [tool for tool in PROGRAMS if not shutil.which(tool)]
    if missing:
        packages = " ".join(sorted({PROGRAMS[tool] for tool in missing}))
        raise ConfigError(f"{' and '.join(missing)} missing: sudo apt install {packages}")


def check_programs(_context: DoctorContext) -> Iterator[Answer]:
    check_tools()
    yield "OK", ", ".join(PROGRAMS), ""


def check_ffmpeg(context: DoctorContext) -> Iterator[Answer]:
    fix = "sudo apt install ffmpeg"
    filters = ask(context.settings, "ffmpeg", "-hide_banner", "-filters")
    codecs = ask(context.settings, "ffmpeg", "-hide_banner", "-codecs")
    found = set(re.findall(r"^ ?[.A-Z|]{2,3} (\w+) ", filters, re.MULTILINE))
    for name in sorted(set(FILTERS) - found):
        yield "FAIL", f"ffmpeg has no filter {name}", fix
    for name in DECODERS:
        if not re.search(rf"^ D.{{5}} {name} ", codecs, re.MULTILINE):
            yield "FAIL", f"ffmpeg has no decoder {name}", fix
    if not re.search(rf"\b{H264['c:v']}\b", codecs):
        yield "FAIL", f"ffmpeg has no encoder {H264['c:v']}", fix
    yield "OK", f"{len(FILTERS)} filters, {len(DECODERS)} decoders, {H264['c:v']}", ""


def check_interpreter(context: DoctorContext) -> Iterator[Answer]:
    python, folder = context.settings.comfyui_python, context.settings.comfyui_dir
    version = ask(context.settings, python, "-S", "-c", "import sys; print(sys.version.split()[0])")
    if version:
        yield "OK", f"{folder}, Python {version}", ""
    else:
        yield "FAIL", f"COMFYUI_PYTHON={python} does not run", f"{shlex.quote(python)} --version"


def check_state(context: DoctorContext) -> Iterator[Answer]:
    with state_errors(context.settings.state_dir):
        claim_folder(context.settings.state_dir)
    yield "OK", f"{context.settings.state_dir} is ours", ""


def check_blob(context: DoctorContext) -> Iterator[Answer]:
    try:
        Blob(context.settings, context.cancellation).probe()
        yield "OK", "a small object was put, looked at and deleted", ""
    except StoreClosed as error:
        yield "FAIL", one_line(error), EDIT
    except Unavailable as error:
        yield "FAIL", one_line(error), f"curl -i {context.settings.blob_api_url}"


def check_watermark(context: DoctorContext) -> Iterator[Answer]:
    path, media = context.settings.watermark, context.media
    fix = f"file {shlex.quote(str(path))}"
    try:
        size = pictures.check_watermark(media, path)
    except JobError as error:
        yield "FAIL", error.detail, fix
        return
    alpha = read_picture(path, "png_pipe").filter("format", "rgba").filter("alphaextract")
    with media.start(ffmpeg_command(alpha.output("pipe:", f="rawvideo", pix_fmt="gray"))) as child:
        media.finish(child)
        if min(os.pread(child.output.fileno(), MAX_FRAME_PIXELS, 0), default=255) == 255:
            yield "WARN", "it is opaque, so it will hide what is behind it", fix
            return
    yield "OK", f"{size.width}x{size.height}, with transparency", ""


def check_disk(context: DoctorContext) -> Iterator[Answer]:
    state, needed = context.settings.state_dir, job_bytes(context.settings.size)
    there = next(folder for folder in (state, *state.parents) if folder.is_dir())
    message = f"{shutil.disk_usage(there).free >> 20} MB free in {there}, a job may need"
    message = f"{message} {needed >> 20}{describe_films(state)}"
    fits = shutil.disk_usage(there).free >= needed
    yield (
        ("OK", message, "")
        if fits
        else ("FAIL", message, f"du -xh {shlex.quote(str(there))} | sort -h")
    )


def check_memory(context: DoctorContext) -> Iterator[Answer]:
    yield weigh_memory(Path("/proc/meminfo").read_text(), context.settings.text_mode)


def weigh_memory(meminfo: str, text_mode: str) -> Answer:
    """Judges the text of /proc/meminfo; text_mode is LTX_TEXT."""
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", meminfo, re.MULTILINE))
    ram, swap = (int(sizes.get(name, 0)) / 2**20 for name in ("MemTotal", "SwapTotal"))
    message = f"{ram:.0f} GB RAM, {swap:.0f} GB swap"
    needed, why = RAM_GB[text_mode]
    if ram + swap >= needed:
        return "OK", message, ""
    why = why.format(needed)
    make = "sudo fallocate -l 32G /swapfile && sudo chmod 600 /swapfile"
    return "WARN", f"{message}; {why}", f"{make} && sudo mkswap /swapfile && sudo swapon /swapfile"


def check_gpu(context: DoctorContext) -> Iterator[Answer]:
    match ask_gpu(context.settings, "name", "memory.total", "driver_version"):
        case [name, megabytes, driver] if megabytes.isdecimal():
            yield "OK", f"{name}, {megabytes} MB, driver {driver}", ""
        case _:
            yield "WARN", "nvidia-smi tells of no GPU", "nvidia-smi"
            return
    if int(megabytes) < TRIED_VRAM_MB:
        why = "the recipe was tried with 32 GB; workflows/ has a graph for small cards"
        yield "WARN", f"{megabytes} MB of memory: {why}", ""
    compute = ask_gpu(context.settings, "compute_cap")
    if "".join(compute).startswith("12.") or re.search(r"RTX 50\d\d", name):
        for is_risky, message, fix in BLACKWELL_RISKS:
            if is_risky(context.settings):
                yield "WARN", f"Blackwell: {message}", f"{EDIT}  (set {fix})"


def check_env_file(_context: DoctorContext) -> Iterator[Answer]:
    if not ENV_FILE.exists():
        yield "OK", "there is none; the settings are the environment's", ""
    elif ENV_FILE.stat().st_mode & 0o077:
        fix = f"chmod 600 {shlex.quote(str(ENV_FILE))}"
        yield "FAIL", f"others on this machine can read the secrets in {ENV_FILE}", fix
    else:
        yield "OK", f"{ENV_FILE} is readable by its owner alone", ""


# What the worker and its clip gate ask of ffmpeg.
FILTERS = (
    *("alphaextract", "blend", "boxblur", "concat", "crop", "extractplanes", "format"),
    *("framestep", "freezedetect", "hflip", "lut", "lut3d", "lutrgb", "metadata", "normalize"),
    *("overlay", "pad", "scale", "setparams", "setpts", "setsar", "settb", "signalstats"),
    *("split", "ssim", "tile", "transpose", "trim", "vflip"),
)
DECODERS = ("png", "mjpeg", "webp", "h264")
# Measured with a GGUF encoder; what is mapped from model files is not in it.
RAM_GB = {
    "clip": (29, "one ComfyUI with a GGUF encoder held {} GB after its first clip"),
    "job": (20, "the ComfyUI that reads texts, a clip's and its standby hold {} GB"),
}
TRIED_VRAM_MB = 31_000
BLACKWELL_RISKS: tuple[tuple[Callable[[Settings], bool], str, str], ...] = (
    (
        lambda settings: "fp8" in settings.text_encoder.lower(),
        "an fp8 Gemma is reported to crash (ComfyUI #11920)",
        "LTX_TEXT_ENCODER=gemma-3-12b-it-qat-Q4_K_M.gguf",
    ),
    (
        lambda settings: (settings.comfyui_restart, settings.text_mode) == ("job", "clip"),
        "with GGUF a second clip in one process ran out of 32 GB",
        "COMFYUI_RESTART=clip",
    ),
)
# What is quick and would make every job fail, so that `run` and `render` do not start.
GATE = (
    Check("programs", check_programs, fix="sudo apt install ffmpeg util-linux coreutils"),
    Check("interpreter", check_interpreter, fix=EDIT),
)
CHECKS = (
    Check("env file", check_env_file),
    *GATE,
    Check("ffmpeg", check_ffmpeg, ("programs",)),
    Check("state", check_state, fix=EDIT),
    Check("api", check_api, ("state",), EDIT),
    Check("blob", check_blob, fix=EDIT),
    Check("watermark", check_watermark, ("programs",), EDIT),
    Check("disk", check_disk),
    Check("memory", check_memory),
    Check("gpu", check_gpu),
    Check("models", check_models, ("interpreter",), EDIT),
    Check("comfyui", check_comfyui, ("interpreter",), EDIT),
    Check("workflow", check_workflow, ("comfyui",), "ltx_worker.py doctor"),
    Check("texts", check_texts, ("comfyui", "state"), "ltx_worker.py doctor"),
    Check("service", check_service),
)
