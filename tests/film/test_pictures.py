"""A frame shows what its picture shows, and carries pixels and nothing else, with any ffmpeg."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ltx.errors import JobError
from ltx.film.ffmpeg import Media
from ltx.settings import Size
from tests.film.corpus import corpus
from tests.film.frames import ALIKE, SHAPE, cut_to, pixels_of, prepare
from tests.film.picture_files import SHOWN, jpeg, restarts
from tests.pictures import image_of, likeness, save

CORPUS = {f"{sample.kind}: {sample.name}": sample for sample in corpus()}
STRAY = restarts(jpeg(restart_marker_rows=1))


def chunks(content: bytes) -> Iterator[bytes]:
    place = 8
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        yield content[place + 4 : place + 8]
        place += 12 + length


def test_the_corpus_has_many_kinds_of_pictures() -> None:
    assert len(CORPUS) == len(corpus()) >= 120
    assert len({sample.kind for sample in CORPUS.values()}) == 7


@pytest.mark.parametrize("name", CORPUS)
def test_a_frame_shows_what_is_in(media: Media, tmp_path: Path, name: str) -> None:
    frame = prepare(media, tmp_path, CORPUS[name].content)
    assert likeness(pixels_of(frame), cut_to(CORPUS[name].shows, SHAPE)) < ALIKE
    # A density of 1:1 is all that there is beside the pixels.
    assert set(chunks(frame)) <= {b"IHDR", b"pHYs", b"IDAT", b"IEND"}


def test_what_only_a_newer_ffmpeg_decodes_is_rendered_there_and_told_elsewhere(
    media: Media, tmp_path: Path
) -> None:
    told = ""
    try:
        frame = prepare(media, tmp_path, STRAY)
    except JobError as error:
        told = error.detail
    if told:  # Debian 12's loses lines, so this is as much as can be done there
        assert re.search(r"that ffmpeg version 5\.\S+ cannot read and a newer one may", told)
    else:
        assert likeness(pixels_of(frame), cut_to(SHOWN, SHAPE)) < ALIKE


@pytest.mark.parametrize("shape", [Size(128, 96), Size(96, 128)], ids=["landscape", "portrait"])
def test_a_frame_is_cut_around_its_middle(media: Media, tmp_path: Path, shape: Size) -> None:
    image = image_of("wide", (500, 120))
    got = pixels_of(prepare(media, tmp_path, save(image), shape))
    assert likeness(got, cut_to(image, shape)) < ALIKE
