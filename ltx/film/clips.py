"""Clips on their way out: cut, watermarked, encoded, joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import ffmpeg

from ltx.film.ffmpeg import CLEAN, read_clip, read_picture
from ltx.job import FPS, KEPT_FRAMES
from ltx.settings import Size

# What bench/media.py chooses: on natural, grainy and dark clips as good as medium with crf 18, at
# most 1.04 times as large, for two thirds of the CPU. veryfast is cheaper still, but needs up to
# 2.8 times the bytes for the noise of a dark clip.
OUTPUT_PRESET, OUTPUT_CRF = "faster", 17.5
WATERMARK_WIDTH, WATERMARK_MARGIN = 0.2, 0.02


class Placement(NamedTuple):
    """Where the watermark lies on the film, in pixels."""

    x: int
    y: int
    width: int
    height: int


def place_watermark(mark: Size, film: Size) -> Placement:
    """Bottom right at a fifth of the width; a picture of the film's own shape covers all of it."""
    if abs(mark.width * film.height - film.width * mark.height) <= 0.01 * mark.width * film.height:
        return Placement(0, 0, *film)
    width = round(film.width * WATERMARK_WIDTH)
    height = max(1, min(round(width * mark.height / mark.width), film.height))
    margin = round(film.width * WATERMARK_MARGIN)
    return Placement(
        film.width - width - margin, max(0, film.height - height - margin), width, height
    )


def contact_sheet(clip: Path, target: Path) -> Any:
    """Twelve moments of a clip in one JPEG."""
    video = read_clip(clip).filter("framestep", KEPT_FRAMES // 12).filter("scale", 320, -2)
    return video.filter("tile", "4x3").output(str(target), f="mjpeg", vframes=1)


# What every raw clip is, although not every one says so. A current ffmpeg goes by its frames and by
# no option of the output; older ones need the option.
BT709 = {"color_primaries": "bt709", "color_trc": "bt709", "colorspace": "bt709"}
H264 = {
    "c:v": "libx264",
    "preset": OUTPUT_PRESET,
    "crf": OUTPUT_CRF,
    "pix_fmt": "yuv420p",
    "r": FPS,
    "video_track_timescale": FPS * 1000,
    "color_range": "tv",
    **BT709,
}


def encode_clip(clip: Any, target: Path, film: Size, mark: Path | None, place: Placement) -> Any:
    """The one lossy encode: 120 frames, cropped to the film's size, with the watermark.

    clip: its frames, as ffmpeg.read_clip gives them.
    """
    video = clip.filter("setparams", range="tv", **BT709)
    video = video.filter("trim", end_frame=KEPT_FRAMES).filter("setpts", "PTS-STARTPTS")
    video = video.filter("crop", *film, exact=1)
    if mark:
        overlay = read_picture(mark, "png_pipe").filter("format", "rgba")
        colours = {"out_color_matrix": "bt709", "out_range": "tv"}
        overlay = overlay.filter("scale", place.width, place.height, flags="lanczos", **colours)
        overlay = overlay.filter("format", "yuva420p")
        video = video.overlay(overlay, x=place.x, y=place.y)
    return video.output(str(target), f="mp4", **H264, **CLEAN)


# Bytes that an MP4's index takes at most: each frame's size, time, offset, place among the chunks,
# keyframe and flags, 45 together, and what is said once.
INDEX_FRAME_BYTES, INDEX_BYTES = 48, 8192


def join_command(listing: Path, target: Path, frames: int) -> Any:
    """Copies the clips one behind the other, with the index first so that playing starts early.

    Room for it is left from the beginning: `faststart` would read and write the film once more.
    """
    clips = ffmpeg.input(str(listing), f="concat", protocol_whitelist="file")
    room = INDEX_BYTES + INDEX_FRAME_BYTES * frames
    return clips.output(str(target), f="mp4", c="copy", moov_size=room, **CLEAN)
