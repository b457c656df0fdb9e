"""What a film shows, for tests that look at all of it."""

from __future__ import annotations

import subprocess

import numpy as np
from PIL import Image

from ltx.settings import Size
from tests.conftest import Box
from tests.film.frames import cut_to
from tests.pictures import Array


def film_of(box: Box, frames: list[str], size: tuple[int, int]) -> Array:
    """Every frame of the film that is made of these."""
    job = box.hosted.add_job(frames, ["walk on"] * (len(frames) - 1))
    worker = box.run_once()
    assert box.hosted.job(job)["state"] == "completed", worker.log[-3000:]
    command = ["ffmpeg", "-v", "error", "-i", str(box.hosted.blob_path(job)), "-vf"]
    command += ["scale=in_color_matrix=bt709:in_range=tv:out_range=pc"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, size[1], size[0], 3)


def shown(image: Image.Image, film: tuple[int, int]) -> Array:
    """An upright picture as the film shows it: filled to the rendered size, then cut."""
    rendered = Size(*(-(-side // 32) * 32 for side in film))
    x, y = ((big - small) // 2 for big, small in zip(rendered, film, strict=True))
    return cut_to(image, rendered)[y : y + film[1], x : x + film[0]]
