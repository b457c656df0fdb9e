"""What the page of the studio says in words, and the sentences with which it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltx.errors import FAULTS

FEWEST, MOST = 2, 6
LONGEST_PROMPT = 2000
# The worker beats every half second here: this long a silence is no hiccup.
SILENT_S = 10.0
STAGES = {
    "starting": "Starting",
    "checking": "Checking the pictures",
    "downloading": "Fetching the pictures",
    "conditioning": "Reading the texts",
    "booting": "Starting the renderer for clip {clip} of {clips}",
    "loading": "Loading the models for clip {clip} of {clips}",
    "rendering": "Rendering clip {clip} of {clips}, step {step} of {steps}",
    "decoding": "Decoding clip {clip} of {clips}",
    "encoding": "Encoding the last clip",
    "joining": "Joining the clips",
    "uploading": "Uploading the film",
    "reporting": "Reporting the film",
}


class Refused(Exception):
    """What is wrong with a request, in one sentence for people."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


def picture_kind(body: bytes) -> str | None:
    if body.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if body[:4] == b"RIFF" and body[8:12] == b"WEBP" else None


def checked_job(given: Any, known: set[str]) -> tuple[list[str], list[str], bool]:
    """Pictures, prompts and watermark of what the page sends, or Refused."""
    given = given if isinstance(given, dict) else {}
    pictures, prompts, watermark = (given.get(k) for k in ("pictures", "prompts", "watermark"))
    if not isinstance(pictures, list) or not FEWEST <= len(pictures) <= MOST:
        raise Refused(f"A film needs {FEWEST} to {MOST} pictures.")
    if not all(isinstance(name, str) and name in known for name in pictures):
        raise Refused("A picture is not here; add it again.")
    if not isinstance(prompts, list) or len(prompts) != len(pictures) - 1:
        raise Refused("A film needs a prompt between each two pictures.")
    if not all(isinstance(text, str) and text.strip() for text in prompts):
        raise Refused("A prompt is empty.")
    if any(len(text) > LONGEST_PROMPT for text in prompts):
        raise Refused(f"A prompt is longer than {LONGEST_PROMPT} letters.")
    if not isinstance(watermark, bool):
        raise Refused("The watermark is either true or false.")
    return pictures, [text.strip() for text in prompts], watermark


def describe_worker(code: int | None, silent_s: float, beat: Mapping[str, Any]) -> dict[str, str]:
    """The worker's state in one word and in words; code: how its process ended, if it did."""
    if code is not None:
        told = f"The worker has ended (exit code {code}). Start make sandbox again."
        return {"state": "down", "words": told}
    if silent_s > SILENT_S:
        told = f"The worker has not been heard of for {silent_s:.0f} s."
        return {"state": "down", "words": told}
    if not beat:
        return {"state": "starting", "words": "The worker is starting."}
    if beat["status"] == "degraded":
        trouble = beat["progress"]["stage"].rpartition(" ")[2]
        why = FAULTS[trouble].sentence if trouble in FAULTS else trouble
        told = f"The worker takes no film until this is mended: {why} ({trouble})"
        return {"state": "degraded", "words": told}
    calm = {"idle": "The worker is ready.", "busy": "The worker is making a film."}
    words = calm.get(beat["status"], "The worker is stopping.")
    return {"state": beat["status"], "words": words}


def tell_progress(progress: Mapping[str, Any]) -> str:
    if not progress:
        return STAGES["starting"]
    stage: str = progress["stage"]
    if stage == "rendering" and progress["step"] in (0, progress["steps"]):
        stage = "decoding" if progress["step"] else "loading"
    return STAGES.get(stage, stage).format(**progress)


def tell_film(outcome: Mapping[str, Any]) -> str:
    size, megabytes = f"{outcome['width']} x {outcome['height']}", outcome["sizeBytes"] / 1e6
    return (
        f"Ready: {outcome['durationSec']:g} s, {size}, {outcome['fps']} frames a second,"
        f" {megabytes:.1f} MB, made in {outcome['renderSec']:.0f} s"
    )
