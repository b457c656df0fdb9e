"""The commands `render` and `workflow`."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from ltx.cancellation import Cancellation
from ltx.comfyui.conditioning import ModelFile, conditioning_key
from ltx.comfyui.model_files import NoIdentity, encoder_files, read_version
from ltx.comfyui.workflow import ClipSpec, build_text_workflow, build_workflow
from ltx.errors import JobError, UsageError, full_disk_told
from ltx.files import hand_out
from ltx.film.film import Film, RenderContext
from ltx.film.pictures import check_picture, turn_like
from ltx.job import MAX_FRAMES, Job, Plan, render_size, seed_for
from ltx.operator.checks import GATE
from ltx.operator.console import Bar, signals, start_logging
from ltx.operator.doctor import check_box
from ltx.progress import Progress, StageDurations
from ltx.settings import RENDER_NEEDS, Settings, read_environ
from ltx.state import state_errors, state_folder
from ltx.text import log_event


def render_command(options: argparse.Namespace) -> int:
    """Frames and prompts to a film, without queue and upload."""
    check_render(options)
    needed = (*RENDER_NEEDS, *(["WATERMARK_PATH"] if options.watermark else []))
    settings = Settings.load(read_environ(), needed)
    handler = start_logging(settings)
    progress = Progress(StageDurations(settings))
    cancellation = Cancellation(Bar(progress, handler).draw)
    check_box(settings, cancellation, GATE)
    with (
        state_folder(settings),
        signals(cancellation),
        contextlib.closing(Job(settings.state_dir / "render")) as job,
    ):
        with state_errors(settings.state_dir):
            job.create(None)
        progress.begin("render")
        context = RenderContext(settings, cancellation, progress, options.seed)
        plan = Plan(tuple(options.frames), tuple(options.prompt), options.watermark)
        try:
            with full_disk_told():
                Film(context, job, plan).make(copy_frame)
                hand_out(job.output, options.output)
        except JobError as error:
            handler.draw("")
            message = f"{error}\n{error.tail}".strip()
            if cancellation.stopping:
                message = "Stopped before the film was done; nothing was left running."
            log_event("render_failed", message, logging.ERROR)
            return 1
        finally:
            context.processes.stop()
            handler.draw("")
            if options.keep:
                keep_clips(job, clips_folder(options.output))
    print(options.output)
    return 0


def check_render(options: argparse.Namespace) -> None:
    """What can be wrong with the command, before any work. Raises UsageError."""
    if len(options.prompt) == 1:
        options.prompt *= len(options.frames) - 1
    if not 2 <= len(options.frames) <= MAX_FRAMES or len(options.prompt) != len(options.frames) - 1:
        raise UsageError("give 2 to 6 frames, and one prompt for all or one for each pair")
    if not options.output.absolute().parent.is_dir() or options.output.is_dir():
        raise UsageError(f"{options.output}: give a file in a folder that exists")
    clips = clips_folder(options.output)
    for there in (options.output, *([clips] if options.keep else [])):
        if there.exists() and not options.force:
            raise UsageError(f"{there} exists; --force overwrites it")
    for frame in options.frames:
        if not Path(frame).is_file():
            raise UsageError(f"{frame}: there is no such picture")


def clips_folder(output: Path) -> Path:
    """Where --keep puts the clips: film.clips beside film.mp4."""
    return output.with_suffix(".clips")


def keep_clips(job: Job, folder: Path) -> None:
    """Copies the clips that were made; those of an earlier film give way."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    for clip in range(MAX_FRAMES - 1):
        target = folder / job.clip(clip).name
        target.unlink(missing_ok=True)
        if job.clip(clip).exists():
            hand_out(job.clip(clip), target)


def copy_frame(source: str, target: Path, field: str) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise JobError("frame_unavailable", f"{field}: {error}.") from error


def workflow_command(options: argparse.Namespace) -> int:
    """Prints a clip's workflow, with `--text job` the two that stand in its place.

    Raises UsageError for a FIRST that is no picture.
    """
    settings = Settings.load(read_environ(), needed=())
    seed = seed_for("workflow", options.clip, 1) if options.seed is None else options.seed
    names = (options.first, options.last, options.prompt, seed, "ltx-worker/clip")
    size = settings.size
    # The names are those of uploads, so there need not be a picture here.
    if Path(options.first).is_file():
        try:
            size = turn_like(check_picture(Path(options.first), options.first), size)
        except JobError as error:
            raise UsageError(error.detail) from error
    spec = ClipSpec(options.clip, *names, render_size(size), options.negative)
    shown: dict[str, Any] = build_workflow(spec, settings)
    if options.text == "job":
        texts = (spec.prompt, spec.negative)
        keys = {text: conditioning_key(text, *example_basis(settings)) for text in texts}
        shown = {
            "texts": build_text_workflow(keys, settings),
            "clip": build_workflow(spec, settings, keys),
        }
    print(json.dumps(shown, indent=2))
    return 0


def example_basis(settings: Settings) -> tuple[tuple[ModelFile, ...], str]:
    """What a key here depends on; where ComfyUI is not at hand, the names alone."""
    try:
        return encoder_files(settings), read_version(settings.comfyui_dir)
    except NoIdentity:
        names = (settings.text_encoder, settings.text_projection)
        return tuple(ModelFile(name, 0, 0) for name in names), ""
