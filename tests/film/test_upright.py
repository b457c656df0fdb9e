"""Every picture stands upright, turned once."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ltx.film.ffmpeg import Media
from ltx.film.pictures import read_layout
from tests.conftest import SIZE, Box
from tests.film.films import film_of, shown
from tests.film.frames import ALIKE, SHAPE, cut_to, pixels_of, prepare
from tests.film.picture_files import exif, turned
from tests.pictures import image_of, likeness, save

TALL = SIZE[::-1]
FORMATS = ("JPEG", "PNG", "WEBP")

UNUSABLE = {
    "0": exif(0),
    "9": exif(9),
    "65535": exif(65535),
    "head only": exif(6)[:14],
    "cut in a tag": exif(6)[:20],
    "garbage": exif(6)[:18] + b"\xff" * 9,
}


@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", FORMATS)
def test_every_orientation_is_read_in_both_byte_orders_behind_other_tags(
    format: str, orientation: int, order: str
) -> None:
    content = save(Image.new("RGB", (8, 8)), format, exif=exif(orientation, order, tags=40))
    assert read_layout(content).orientation == orientation


@pytest.mark.parametrize("block", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("format", FORMATS)
def test_an_orientation_that_says_nothing_usable_counts_as_upright(
    format: str, block: bytes
) -> None:
    content = save(Image.new("RGB", (8, 8)), format, exif=block)
    assert read_layout(content).orientation == 1


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_with_damaged_exif_is_still_a_picture(
    media: Media, tmp_path: Path, format: str
) -> None:
    upright = image_of("upright", (320, 200))
    content = save(upright, format, exif=UNUSABLE["garbage"])
    assert likeness(pixels_of(prepare(media, tmp_path, content)), cut_to(upright, SHAPE)) < ALIKE


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_without_exif_is_upright(format: str) -> None:
    assert read_layout(save(image_of(1), format)).orientation == 1


def test_every_clip_of_a_portrait_film_opens_on_its_picture_upright(box: Box) -> None:
    uprights = [image_of(f"room {n}", (180, 320)) for n in range(4)]
    files = [
        save(turned(uprights[0], 6), "JPEG", exif=exif(6), quality=90),
        save(turned(uprights[1], 8), "PNG", exif=exif(8, ">")),
        save(turned(uprights[2], 5), "WEBP", exif=exif(5), quality=90),
        save(uprights[3].convert("CMYK"), "JPEG", quality=95),
    ]
    urls = [box.hosted.put_frame(f"turned-{n}", file) for n, file in enumerate(files)]
    frames = film_of(box, urls, TALL)
    assert len(frames) == 360
    for clip, upright in enumerate(uprights[:3]):
        assert likeness(frames[120 * clip], shown(upright, TALL)) < 8
    # The last picture itself is trimmed away; one frame before it, hardly anything is missing.
    assert likeness(frames[-1], shown(uprights[3], TALL)) < 8
