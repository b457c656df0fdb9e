"""The watermark is checked first, and lies on the film where and how it was promised."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ltx.film.clips import Placement, place_watermark
from ltx.settings import Size
from tests.conftest import Box
from tests.pictures import Array, picture, save

SIZE = (256, 144)
VIDEO_SIZE = "{}x{}".format(*SIZE)
GREEN, RED, BLUE = (30, 160, 60), (220, 40, 40), (40, 60, 200)
CLOSE = 8  # levels; what two lossy encodes and colour at half the resolution leave of a flat area
EDGE = 6  # pixels around an edge that scaling and chroma blur


def film_of(box: Box, mark: Image.Image, size: tuple[int, int]) -> Array:
    """First and last frame of a film of flat green frames under the watermark."""
    box.watermark.write_bytes(save(mark))
    job = add_green_job(box, size, watermark=True)
    worker = box.run_once(VIDEO_SIZE=VIDEO_SIZE)
    assert box.hosted.job(job)["state"] == "completed", worker.log[-3000:]
    return decode(box.hosted.blob_path(job), size)


def add_green_job(box: Box, size: tuple[int, int], *, watermark: bool) -> str:
    url = box.hosted.put_frame("green.png", save(Image.new("RGB", size, GREEN)))
    return box.hosted.add_job([url, url], ["stand still"], watermark)


def decode(film: Path, size: tuple[int, int]) -> Array:
    command = ["ffmpeg", "-v", "error", "-i", str(film), "-vf"]
    command += ["select='eq(n,0)+eq(n,119)',scale=in_color_matrix=bt709:in_range=tv:out_range=pc"]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, size[1], size[0], 3)
    assert len(frames) == 2
    return frames


def is_like(area: Array, colour: tuple[int, ...]) -> bool:
    assert area.size
    return bool(np.abs(area.astype(int) - np.array(colour)).max() <= CLOSE)


def mix(over: tuple[int, ...], under: tuple[int, ...], alpha: float) -> tuple[int, ...]:
    pairs = zip(over, under, strict=True)
    return tuple(round(alpha * a + (1 - alpha) * b) for a, b in pairs)


def split(frames: Array, place: Placement) -> tuple[Array, Array]:
    """The pixels well within a place, and those well outside of it (frames, pixels, 3)."""
    inside = np.zeros(frames.shape[1:3], bool)
    outside = np.ones(frames.shape[1:3], bool)
    right, bottom = place.x + place.width, place.y + place.height
    inside[place.y + EDGE : bottom - EDGE, place.x + EDGE : right - EDGE] = True
    top, left = max(0, place.y - EDGE), max(0, place.x - EDGE)
    outside[top : bottom + EDGE, left : right + EDGE] = False
    return frames[:, inside], frames[:, outside]


# Before anything costs time

USELESS: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda good: None,
    "empty": lambda good: b"",
    "cut short": lambda good: good[: len(good) // 2],
    "corrupt": lambda good: good[:60] + bytes(40) + good[100:],
    "a JPEG": lambda good: picture((120, 40), 1, format="JPEG"),
    "a WebP": lambda good: picture((120, 40), 1, format="WEBP"),
    "text": lambda good: b"to be done",
}


def test_a_free_tier_job_without_a_usable_watermark_starts_no_download_and_no_rendering(
    box: Box,
) -> None:
    good = box.watermark.read_bytes()
    worker = box.start("run", VIDEO_SIZE=VIDEO_SIZE)
    for what, spoil in USELESS.items():
        box.watermark.unlink(missing_ok=True)
        if (content := spoil(good)) is not None:
            box.watermark.write_bytes(content)
        job = box.add_job(watermark=True)
        box.hosted.wait("fail", job=job)
        error = box.failure(job)
        assert error["code"] == "watermark_missing", what
        assert error["retryable"] is True
        assert "WATERMARK_PATH" in error["message"]
        assert content or not box.hosted.events("comfyui.*"), f"{what}, and ComfyUI was booted"
    assert not box.hosted.requests("* /frames/*")
    assert not box.hosted.events("comfyui.prompt")

    # The same worker goes on without a watermark where none is asked for, and sees the good one
    # at once: so it was the watermark and nothing else.
    box.watermark.unlink()
    job = add_green_job(box, SIZE, watermark=False)
    assert box.hosted.wait("complete", job=job)["data"]["watermarked"] is False
    assert is_like(decode(box.hosted.blob_path(job), SIZE), GREEN)
    box.watermark.write_bytes(good)
    job = add_green_job(box, SIZE, watermark=True)
    assert box.hosted.wait("complete", job=job)["data"]["watermarked"] is True
    assert not is_like(decode(box.hosted.blob_path(job), SIZE), GREEN)
    assert len(box.hosted.events("frame.get")) == 4
    assert box.hosted.events("comfyui.boot")

    # One that was good is looked at again when it has changed.
    box.watermark.write_bytes(good[: len(good) // 2])
    job = box.add_job(watermark=True)
    box.hosted.wait("fail", job=job)
    assert box.failure(job)["code"] == "watermark_missing"
    assert worker.process.poll() is None


# Where it lies, and how it looks


def test_a_watermark_lies_bottom_right_at_a_fifth_of_the_width_and_is_mixed_by_its_alpha(
    box: Box,
) -> None:
    # Left to right: opaque red, half transparent blue, nothing at all (though it is red, too).
    mark = Image.new("RGBA", (300, 100), (*RED, 0))
    mark.paste((*RED, 255), (0, 0, 100, 100))
    mark.paste((*BLUE, 128), (100, 0, 200, 100))
    frames = film_of(box, mark, SIZE)
    # 256 wide: a fifth is 51, 2 % are 5, a third of 51 is 17 high.
    place = Placement(200, 122, 51, 17)
    _, outside = split(frames, place)
    assert is_like(outside, GREEN)
    for left, colour in ((200, RED), (217, mix(BLUE, GREEN, 0.5)), (234, GREEN)):
        inside, _ = split(frames, Placement(left, 122, 17, 17))
        assert is_like(inside, colour), (colour, inside.mean((0, 1)))
    reds = np.abs(frames[0].astype(int) - np.array(RED)).max(2) < 60
    rows, columns = np.nonzero(reds)
    assert abs(columns.min() - 200) <= 1
    assert abs(rows.min() - 122) <= 1
    assert abs(rows.max() - 138) <= 1


@pytest.mark.parametrize(
    ("film", "mark"),
    [((256, 144), (512, 288)), ((144, 256), (72, 128))],
    ids=["landscape", "portrait"],
)
def test_a_watermark_of_the_films_own_shape_covers_the_frame(
    box: Box, film: tuple[int, int], mark: tuple[int, int]
) -> None:
    # A frame around nothing: its four sides have to reach the film's four sides.
    picture = Image.new("RGBA", mark, (*BLUE, 0))
    border = mark[0] // 8
    for corner in ((0, 0), (mark[0] - border, 0)):
        picture.paste((*RED, 255), (*corner, corner[0] + border, mark[1]))
    for corner in ((0, 0), (0, mark[1] - border)):
        picture.paste((*RED, 255), (*corner, mark[0], corner[1] + border))
    frames = film_of(box, picture, film)
    wide = border * film[0] // mark[0]
    inner = Placement(wide, wide, film[0] - 2 * wide, film[1] - 2 * wide)
    inside, outside = split(frames, inner)
    assert is_like(inside, GREEN)
    assert is_like(outside, RED)


# Where it would lie, for every size

sides = st.integers(1, 5000)
films = st.builds(Size, st.integers(32, 2048).map(lambda n: 2 * n), st.integers(64, 4096))


@given(st.builds(Size, sides, sides), films)
def test_a_watermark_of_any_shape_is_inside_the_film(mark: Size, film: Size) -> None:
    place = place_watermark(mark, film)
    assert place.width >= 1
    assert place.height >= 1
    assert place.x >= 0
    assert place.y >= 0
    assert place.x + place.width <= film.width
    assert place.y + place.height <= film.height


@given(st.builds(Size, sides, sides), films)
def test_a_watermark_covers_the_film_or_keeps_to_a_fifth_and_the_margin(
    mark: Size, film: Size
) -> None:
    place = place_watermark(mark, film)
    if place == (0, 0, *film):
        assert mark.width / mark.height == pytest.approx(film.width / film.height, rel=0.011)
        return
    assert place.width == pytest.approx(film.width / 5, abs=0.5)
    assert film.width - place.x - place.width == pytest.approx(film.width * 0.02, abs=0.5)
    natural = place.width * mark.height / mark.width
    if natural <= film.height - film.width * 0.02 - 1:
        assert place.height == pytest.approx(max(1, natural), abs=0.5)
        assert film.height - place.y - place.height == pytest.approx(film.width * 0.02, abs=0.5)


@given(films, st.integers(1, 4))
def test_the_films_own_shape_covers_it_at_any_scale(film: Size, times: int) -> None:
    mark = Size(film.width * times, film.height * times)
    assert place_watermark(mark, film) == (0, 0, *film)
