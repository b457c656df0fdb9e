"""One job from queue to film, by the real worker against the sandbox; the result is in demo/.

With COMFYUI_DIR and COMFYUI_PYTHON set, that ComfyUI renders instead of the look-alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from sandbox.client import ROOT, Hosted
from sandbox.launch import Running, box_settings, environ, pace, worker_command

RESULTS = ROOT / "demo"
FILM, SHEET, LOG = (RESULTS / n for n in ("walkthrough.mp4", "contact-sheet.png", "worker.log"))
FRAMES = ROOT / "sandbox" / "frames"
STILLS = ("01-hall.jpg", "02-doorway.jpg", "03-living-room.jpg")
PROMPTS = (
    "The camera glides along the hall towards the open doorway, steady, at eye level.",
    "The camera passes through the doorway into the sunlit living room and comes to rest.",
)
FPS, CLIP_FRAMES = 24, 120
SHOWN = {"first frame": 0, "middle": CLIP_FRAMES // 2, "last frame": CLIP_FRAMES - 1}
CELL_WIDTH, GAP, CAPTION = 480, 12, 26
PACE = pace(BOOT=1.5, LOAD=1.0, STEP=0.25, DECODE=0.5)
ERASE_LINE = "\r\x1b[K"
LISTENER_S = 5.0


class DemoFailed(Exception):
    """What went wrong, in one sentence."""


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    started = time.monotonic()
    try:
        run_demo()
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return 130
    except (DemoFailed, RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"demo: failed: {error}", file=sys.stderr)
        return 1
    print(f"\nThe demo took {time.monotonic() - started:.1f} s.")
    return 0


def run_demo() -> None:
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir()
    with tempfile.TemporaryDirectory(prefix="ltx-demo-") as folder, sandbox(Path(folder)) as hosted:
        stills = [f"{hosted.url}/frames/{name}" for name in STILLS]
        job = hosted.add_job(stills, PROMPTS, watermark=True, id="demo")
        env = worker_environ(hosted, Path(folder) / "worker", "demo-worker")
        code = run_worker(env)
        outcome = check_outcome(hosted.job(job), code)
        shutil.copyfile(hosted.blob_path(job), FILM)
    check_film(env["VIDEO_SIZE"])
    draw_sheet(FILM, len(PROMPTS), SHEET)
    tell_stages()
    tell_results(outcome)


@contextlib.contextmanager
def sandbox(folder: Path) -> Iterator[Hosted]:
    hosted = Hosted(folder / "hosted", frames=FRAMES)
    # The process inherits the mask: Ctrl-C is for the worker, whose last report must be heard.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        hosted.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    try:
        yield hosted
    finally:
        hosted.stop()


def worker_environ(hosted: Hosted, state: Path, worker: str) -> dict[str, str]:
    own = {"STATE_DIR": str(state), "WORKER_ID": worker, "VIDEO_SIZE": "1920x1080"}
    if os.environ.get("COMFYUI_DIR"):
        size = {name: os.environ[name] for name in ("VIDEO_SIZE",) if name in os.environ}
        return {**os.environ, **hosted.worker_settings(), **own, **size}
    return environ({**box_settings(hosted, state), **own, **PACE})


def run_worker(env: Mapping[str, str]) -> int:
    """The worker's exit code; what it says goes to the terminal and into demo/worker.log."""
    # On a terminal it gets one of its own, so that it draws its progress bar and we can listen.
    ours, theirs = os.openpty() if sys.stderr.isatty() else os.pipe()
    listener = threading.Thread(target=copy_output, args=(ours,), daemon=True)
    listener.start()
    try:
        # A session of its own: a Ctrl-C reaches it once, from us.
        worker = Running(
            worker_command("run", "--once"), env,
            stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(theirs)
    try:
        with worker:
            return worker.wait(None)
    finally:
        listener.join(LISTENER_S)


def copy_output(source: int) -> None:
    said = b""
    # A terminal whose other side is closed is an error (EIO), not an end of file.
    with contextlib.suppress(OSError), open(source, "rb", buffering=0) as output:
        while chunk := output.read(65536):
            said += chunk
            sys.stderr.buffer.write(chunk)
            sys.stderr.flush()
    if sys.stderr.isatty():
        print(ERASE_LINE, end="", file=sys.stderr, flush=True)
    LOG.write_text(without_bar(said.decode(errors="replace")))


def without_bar(text: str) -> str:
    lines = text.split("\n")[:-1]
    return "".join(line.rpartition(ERASE_LINE)[2].rstrip("\r") + "\n" for line in lines)


def check_outcome(job: dict[str, Any], code: int) -> dict[str, Any]:
    outcome: dict[str, Any] = job["outcome"] or {}
    if job["state"] != "completed":
        error = outcome.get("error", {})
        told = f"{error.get('code', 'no outcome')}: {error.get('message', f'see {LOG}')}"
        raise DemoFailed(f"the worker left the job {job['state']} (exit code {code}); {told}")
    if code:
        raise DemoFailed(f"the job was done, but the worker ended with exit code {code}")
    return outcome


def check_film(size: str) -> None:
    streams = probe(FILM)
    if [stream["codec_type"] for stream in streams] != ["video"]:
        raise DemoFailed(f"{FILM} should hold one video stream and nothing else")
    film, frames = streams[0], CLIP_FRAMES * len(PROMPTS)
    found = {
        "frames": int(film["nb_read_frames"]),
        "seconds": Fraction(film["duration"]),
        "size": f"{film['width']}x{film['height']}",
        "rate": Fraction(film["avg_frame_rate"]),
    }
    due = {"frames": frames, "seconds": Fraction(frames, FPS), "size": size, "rate": Fraction(FPS)}
    wrong = [
        f"{name} {found[name]} instead of {due[name]}" for name in due if found[name] != due[name]
    ]
    if wrong:
        raise DemoFailed(f"{FILM} is not right: {', '.join(wrong)}")


def probe(path: Path) -> list[dict[str, Any]]:
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(path)]
    answer = subprocess.run(command, capture_output=True, check=True)
    streams: list[dict[str, Any]] = json.loads(answer.stdout)["streams"]
    return streams


def draw_sheet(film: Path, clips: int, target: Path) -> None:
    """First, middle and last frame of each clip, a row for each clip."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = [Image.open(path) for path in extract_frames(film, clips, Path(folder))]
        width, height = pictures[0].size
        across, down = len(SHOWN), clips
        step_x, step_y = width + GAP, height + CAPTION + GAP
        sheet = Image.new("RGB", (GAP + across * step_x, GAP + down * step_y), "white")
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
        for number, picture in enumerate(pictures):
            clip, column = divmod(number, across)
            place = (GAP + column * step_x, GAP + clip * step_y)
            sheet.paste(picture, place)
            moment = (clip * CLIP_FRAMES + [*SHOWN.values()][column]) / FPS
            caption = f"clip {clip + 1}, {[*SHOWN][column]} ({moment:.2f} s)"
            pen.text((place[0], place[1] + height + 4), caption, "#333333", font)
    sheet.save(target, optimize=True)


def extract_frames(film: Path, clips: int, folder: Path) -> list[Path]:
    """The frames SHOWN of every clip, in order: 01.png, 02.png…"""
    numbers = [clip * CLIP_FRAMES + n for clip in range(clips) for n in SHOWN.values()]
    chosen = "+".join(f"eq(n,{number})" for number in numbers)
    # New timestamps, without gaps: ffmpeg would fill those with copies.
    steps = f"select='{chosen}',setpts=N/{FPS}/TB,scale={CELL_WIDTH}:-2:flags=lanczos"
    command = ["ffmpeg", "-v", "error", "-i", str(film), "-vf", steps, str(folder / "%02d.png")]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    found = sorted(folder.glob("*.png"))
    if len(found) != len(numbers):
        raise DemoFailed(f"{len(found)} frames instead of {len(numbers)} came out of {film}")
    return found


def tell_stages() -> None:
    print("\nWhat happened, in seconds (stages overlap):")
    for line in LOG.read_text().splitlines():
        stage = re.search(r" (\w+)_done .*\bms=(\d+)", line)
        clip = re.search(r" clip=(\d+)", line)
        if stage:
            where = f"clip {clip[1]}" if clip else ""
            print(f"  {stage[1]:<10} {where:<7} {int(stage[2]) / 1000:6.2f}")
        elif total := re.search(r" job_done .*\btotal=([\d.]+)", line):
            print(f"  {'total':<18} {float(total[1]):5.1f}")


def tell_results(outcome: dict[str, Any]) -> None:
    size, length = f"{outcome['width']}x{outcome['height']}", outcome["sizeBytes"] / 1e6
    frames, fps, seconds = outcome["frames"], outcome["fps"], outcome["durationSec"]
    mark = "watermarked" if outcome["watermarked"] else "without watermark"
    print(
        f"\n{FILM}\n  {size}, {frames} frames at {fps}/s = {seconds:g} s, {length:.1f} MB, {mark}"
    )
    print(f"{SHEET}\n  first, middle and last frame of each clip")
    print(f"{LOG}\n  what the worker said")


if __name__ == "__main__":
    sys.exit(main())
