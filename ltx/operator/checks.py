"""What the doctor looks at, one function a check."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from ltx.cancellation import Cancellation
from ltx.comfyui.client import Comfy
from ltx.comfyui.standby import ComfyProcesses
from ltx.comfyui.workflow import ClipSpec, build_workflow
from ltx.errors import ConfigError, JobError, Refusal, Unavailable
from ltx.film import pictures
from ltx.film.clips import H264
from ltx.film.ffmpeg import Media, ffmpeg_command, read_picture
from ltx.hosted.blob import Blob
from ltx.hosted.queue_api import QueueApi
from ltx.job import MAX_FRAME_PIXELS, job_bytes, render_size
from ltx.process import ask, ask_gpu, free_port, read_gpu
from ltx.settings import ENV_FILE, Settings
from ltx.state import claim_folder, with_worker_id
from ltx.text import one_line


def check_tools() -> None:
    """Raises ConfigError for programs that are missing on this machine."""
    missing = [tool for tool in ("ffmpeg", "ffprobe") if not shutil.which(tool)]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} missing: sudo apt install ffmpeg")


class Finding(NamedTuple):
    """One line of the doctor: what was checked, OK / WARN / FAIL, what was seen, what to type."""

    check: str
    status: str
    detail: str
    next: str = ""


class DoctorContext:
    """What the checks look at. A ComfyUI that they booted ends with the context."""

    def __init__(self, settings: Settings, cancellation: Cancellation) -> None:
        self.settings, self.cancellation = settings, cancellation
        self.media = Media(settings, cancellation)
        self.comfy = Comfy(settings.comfyui_url, cancellation)
        self.undo = contextlib.ExitStack()

    def boot(self) -> None:
        """Boots a ComfyUI on a port and in a folder of its own, out of a running worker's way."""
        url = urlsplit(self.settings.comfyui_url)
        url = url._replace(netloc=f"{url.hostname}:{free_port()}")
        folder = self.undo.enter_context(tempfile.TemporaryDirectory(prefix="ltx-doctor-"))
        own = dataclasses.replace(self.settings, comfyui_url=url.geturl(), state_dir=Path(folder))
        processes = ComfyProcesses(own, self.cancellation)
        self.undo.callback(processes.stop)
        self.comfy = processes.fresh()


Answer = tuple[str, str, str]
Examination = Callable[[DoctorContext], Iterator[Answer]]


class Check(NamedTuple):
    """One entry of the doctor's table.

    run: yields status, detail and next command; what it raises is a FAIL with `fix`.
    needs: the checks that this one makes no sense without.
    """

    name: str
    run: Examination
    needs: tuple[str, ...] = ()
    fix: str = ""


def check_programs(_context: DoctorContext) -> Iterator[Answer]:
    check_tools()
    yield "OK", "ffmpeg, ffprobe", ""


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
    claim_folder(context.settings.state_dir)
    yield "OK", f"{context.settings.state_dir} is ours", ""


def check_api(context: DoctorContext) -> Iterator[Answer]:
    settings = with_worker_id(context.settings)
    api = QueueApi(settings, context.cancellation)
    try:
        api.register(read_gpu(settings))
        yield "OK", f"{settings.api_url} takes our secret", ""
    except Refusal:
        yield "WARN", "it has no register call, so the secret is untested", ""
    except Unavailable as error:
        yield "FAIL", one_line(error), f"curl -i {settings.api_url}"
    if abs(api.skew) > MAX_SKEW_S:
        message = (
            f"our clock is {abs(api.skew):.0f} s {'behind' if api.skew > 0 else 'ahead of'} it"
        )
        yield "WARN", message, "sudo timedatectl set-ntp true"


def check_blob(context: DoctorContext) -> Iterator[Answer]:
    try:
        Blob(context.settings, context.cancellation).probe()
        yield "OK", "a small object was put, looked at and deleted", ""
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
    message = f"{message} {needed >> 20}"
    fits = shutil.disk_usage(there).free >= needed
    yield (
        ("OK", message, "")
        if fits
        else ("FAIL", message, f"du -xh {shlex.quote(str(there))} | sort -h")
    )


def check_memory(_context: DoctorContext) -> Iterator[Answer]:
    yield weigh_memory(Path("/proc/meminfo").read_text())


def weigh_memory(meminfo: str) -> Answer:
    """Judges the text of /proc/meminfo."""
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", meminfo, re.MULTILINE))
    ram, swap = (int(sizes.get(name, 0)) / 2**20 for name in ("MemTotal", "SwapTotal"))
    message = f"{ram:.0f} GB RAM, {swap:.0f} GB swap"
    if ram + swap >= CLIP_RAM_GB:
        return "OK", message, ""
    why = f"one ComfyUI with a GGUF encoder held {CLIP_RAM_GB} GB after its first clip"
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


def check_comfyui(context: DoctorContext) -> Iterator[Answer]:
    settings = context.settings
    if context.comfy.answers():
        how = f"answers at {context.comfy.url} and is not ended by us"
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
        yield "FAIL", gap.detail, install_command(gap.detail, settings)
    packs = settings.comfyui_dir / "custom_nodes"
    parts = comfy.parts(("DualCLIPLoaderGGUF", "LTXVSaveConditioning"))
    # The pack of the GGUF loader lists the text models that it can read in its loader.py.
    pack = str(parts["DualCLIPLoaderGGUF"].get("python_module", "")).removeprefix("custom_nodes.")
    with contextlib.suppress(OSError):
        loader = (packs / pack / "loader.py").read_text()
        gguf = settings.text_encoder.lower().endswith(".gguf")
        if gguf and not re.search(r"[\"']gemma3[\"']", loader):
            fix = f"git -C {shlex.quote(str(packs / pack))} pull"
            yield "FAIL", f"{pack} is too old to load Gemma 3 (it is from before 2026)", fix
    if [*packs.glob("*LTXVideo*")] and not parts["LTXVSaveConditioning"]:
        message = "the LTXVideo pack is installed but did not load; kornia 0.8.3 and newer break it"
        fix = f"{shlex.quote(settings.comfyui_python)} -m pip install kornia==0.8.2"
        yield "WARN", f"{message} (this workflow does not need it)", fix
    yield "OK", f"{len(workflow)} nodes with their inputs and model files are there", ""


def install_command(lack: str, settings: Settings) -> str:
    """What to type for something missing that ComfyUI told of."""
    folder = shlex.quote(str(settings.comfyui_dir))
    for pack, source in PACK_SOURCES.items():
        if f"install {pack}" in lack:
            return f"git clone https://github.com/{source} {folder}/custom_nodes/{pack}"
        if f"update {pack}" in lack:
            return f"git -C {folder}/custom_nodes/{pack} pull"
    for name, source in MODEL_SOURCES.items():
        if lack.startswith(f"Put {name} "):
            target = f"{folder}/{lack.rsplit(' ', 1)[-1].rstrip('.')}/{name}"
            return f"curl -fL -o {target} https://huggingface.co/{source}/{name}"
    found = re.search(r"models/\w+", lack)
    return f"ls {folder}/{found[0]}" if found else f"git -C {folder} pull"


def check_env_file(_context: DoctorContext) -> Iterator[Answer]:
    if not ENV_FILE.exists():
        yield "OK", "there is none; the settings are the environment's", ""
    elif ENV_FILE.stat().st_mode & 0o077:
        fix = f"chmod 600 {shlex.quote(str(ENV_FILE))}"
        yield "FAIL", f"others on this machine can read the secrets in {ENV_FILE}", fix
    else:
        yield "OK", f"{ENV_FILE} is readable by its owner alone", ""


def check_service(context: DoctorContext) -> Iterator[Answer]:
    settings, unit = context.settings, "ltx-worker.service"
    show = ("systemctl", "--user", "show", "--value", "-p")
    loaded = ask(settings, *show, "LoadState", unit)
    if not loaded:
        yield "WARN", "no systemd user manager answers, so nothing restarts the worker", ""
    elif loaded != "loaded":
        source = shlex.quote(str(ENV_FILE.parent / "systemd" / unit))
        fix = f"install -Dm644 {source} ~/.config/systemd/user/{unit}"
        yield "WARN", f"{unit} is not installed ({one_line(loaded)})", fix
    elif ask(settings, *show, "UnitFileState", unit) != "enabled":
        yield "WARN", f"{unit} is not enabled", "systemctl --user enable --now ltx-worker"
    elif ask(settings, "loginctl", "show-user", str(os.getuid()), "-p", "Linger") != "Linger=yes":
        why = "without lingering it stops when you log out"
        yield "WARN", why, 'sudo loginctl enable-linger "$USER"'
    else:
        yield "OK", f"{unit} is enabled and lingers", ""


# What the worker and its clip gate ask of ffmpeg.
FILTERS = (
    *("alphaextract", "blend", "boxblur", "concat", "crop", "extractplanes", "format"),
    *("framestep", "freezedetect", "hflip", "lut", "lut3d", "lutrgb", "metadata", "normalize"),
    *("overlay", "pad", "scale", "setparams", "setpts", "setsar", "settb", "signalstats"),
    *("split", "ssim", "tile", "transpose", "trim", "vflip"),
)
DECODERS = ("png", "mjpeg", "webp", "h264")
MAX_SKEW_S = 5.0
# Measured with ComfyUI's older memory manager, which GGUF models use.
CLIP_RAM_GB = 29
TRIED_VRAM_MB = 31_000
BLACKWELL_RISKS: tuple[tuple[Callable[[Settings], bool], str, str], ...] = (
    (
        lambda settings: "fp8" in settings.text_encoder.lower(),
        "an fp8 Gemma is reported to crash (ComfyUI #11920)",
        "LTX_TEXT_ENCODER=gemma-3-12b-it-qat-Q4_K_M.gguf",
    ),
    (
        lambda settings: settings.comfyui_restart == "job",
        "with GGUF a second clip in one process ran out of 32 GB",
        "COMFYUI_RESTART=clip",
    ),
)
PACK_SOURCES = {
    "ComfyUI-GGUF": "city96/ComfyUI-GGUF",
    "ComfyUI-KJNodes": "kijai/ComfyUI-KJNodes",
    "ComfyUI-VideoHelperSuite": "Kosinkadink/ComfyUI-VideoHelperSuite",
}
MODEL_SOURCES = {
    "ltx-2.3-22b-distilled-fp8.safetensors": "Lightricks/LTX-2.3-fp8/resolve/main",
    "ltx-2.3_text_projection_bf16.safetensors": "Kijai/LTX2.3_comfy/resolve/main/text_encoders",
}
EDIT = f"nano {shlex.quote(str(ENV_FILE))}"
# What is quick and would make every job fail, so that `run` and `render` do not start.
GATE = (
    Check("programs", check_programs, fix="sudo apt install ffmpeg"),
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
    Check("comfyui", check_comfyui, ("interpreter",), EDIT),
    Check("workflow", check_workflow, ("comfyui",), "ltx_worker.py doctor"),
    Check("service", check_service),
)
