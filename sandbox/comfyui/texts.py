"""What becomes of a text: numbers that depend on every byte of it and on what has read it."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

from mishaps import strike_text
from run import Run
from standins import model_management, torch
from state import Outputs

log = logging.getLogger(__name__)

NUMBERS = 64
# As ComfyUI has it: pairs of a tensor and its options.
Conditioning = list[list[Any]]


def load_gguf_encoder(run: Run, clip_name1: str, clip_name2: str, type: str) -> Outputs:
    """One of scaled weights is read without its scales, and nobody is told."""
    (clip,) = load_encoder(run, clip_name1, clip_name2, type)
    return (clip if clip_name1.endswith(".gguf") else f"{clip}, not scaled",)


def load_encoder(
    run: Run, clip_name1: str, clip_name2: str, type: str, device: str = "default"
) -> Outputs:
    """Into RAM; it goes to the card with its first text."""
    strike_text(run, 0)
    run.wait(run.times.text_load)
    return (f"{type} clip of {clip_name1} and {clip_name2}",)


def encode_text(run: Run, text: str, clip: str) -> Outputs:
    _read(run, text)
    seed = f"{clip}\0{text}".encode("utf-8", "surrogatepass")
    read = torch.Tensor(byte / 255 for byte in hashlib.shake_256(seed).digest(NUMBERS))
    options = {
        "pooled_output": None,
        "attention_mask": torch.Tensor([1.0] * NUMBERS),
        "unprocessed_ltxav_embeds": True,
    }
    return ([[read, options]],)


def _read(run: Run, text: str) -> None:
    """The time of one text, and of the encoder's way to the card where it is not there."""
    if not model_management.card.encoder:
        log.info("Requested to load LTXAVTEModel_")
        run.wait(run.times.text_move)
        model_management.card.take_encoder()
    run.texts += 1
    strike_text(run, run.texts)
    run.wait(run.times.text)
    run.report("encoded", text=text)


def condition(
    run: Run, positive: Conditioning, negative: Conditioning, frame_rate: float
) -> Outputs:
    return tuple(
        [[read, {**options, "frame_rate": frame_rate}] for read, options in one]
        for one in (positive, negative)
    )


def apply_nag(
    run: Run,
    model: str,
    nag_scale: float,
    nag_cond_video: Conditioning | None = None,
    **settings: Any,
) -> Outputs:
    if nag_cond_video is None or nag_scale == 0:
        return (model,)
    return (f"{model} kept from {fingerprint(nag_cond_video)}",)


def fingerprint(conditioning: Conditioning) -> str:
    """The same for the same numbers and options, wherever they lie and however they came."""
    text = json.dumps(conditioning, default=lambda tensor: tensor.numbers, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
