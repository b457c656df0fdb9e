"""The look-alike's film is the one that the graph asks for, or has the flaw that was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

from tests.pictures import Array, likeness, paint, picture
from tests.programs import with_current_ffmpeg
from tests.sandbox.conftest import Start
from tests.sandbox.lookalike import (
    FRAMES,
    SIZE,
    Control,
    Lookalike,
    changed,
    flf2v,
    frames_of,
    payload,
)


def test_the_film_goes_from_the_first_image_to_the_last(comfyui: Lookalike) -> None:
    film = frames_of(comfyui.video(comfyui.run(flf2v(prefix="film"))[0])["fullpath"])
    assert len(film) == FRAMES
    assert likeness(film[0], paint(SIZE, 1)) < 2
    assert likeness(film[-1], paint(SIZE, 2)) < 2
    steps = [likeness(one, other) for one, other in pairwise(film)]
    assert min(steps) > 0.1
    assert max(steps) < likeness(film[0], film[-1]) / 5


def test_the_seed_decides_every_byte_of_the_film(start: Start) -> None:
    comfyui = start("--cache-none").ready().upload_pair()
    films = [
        Path(comfyui.video(comfyui.run(flf2v(seed, prefix=f"seed-{n}"))[0])["fullpath"])
        for n, seed in enumerate((1, 1, 2))
    ]
    same, again, other = (film.read_bytes() for film in films)
    assert same == again != other


def test_a_current_ffmpeg_leaves_a_films_colours_as_they_are(start: Start, tmp_path: Path) -> None:
    comfyui = start(PATH=with_current_ffmpeg(tmp_path)).ready().upload_pair()
    film = frames_of(comfyui.video(comfyui.run(flf2v(prefix="film"))[0])["fullpath"])
    assert likeness(film[0], paint(SIZE, 1)) < 2
    assert likeness(film[-1], paint(SIZE, 2)) < 2


def test_without_its_second_image_the_film_silently_never_arrives(comfyui: Lookalike) -> None:
    graph = changed("12", **{"num_images.image_2": None})
    film = frames_of(comfyui.video(comfyui.run(graph)[0])["fullpath"])
    assert likeness(film[0], paint(SIZE, 1)) < 2
    assert likeness(film[-1], paint(SIZE, 1)) < likeness(film[-1], paint(SIZE, 2)) / 2


def test_num_images_as_a_number_fails_in_the_node(comfyui: Lookalike) -> None:
    _, messages = comfyui.run(changed("12", num_images=2))
    error = payload(messages, "execution_error")
    assert (error["exception_type"], error["node_id"]) == ("TypeError", "12")
    assert error["exception_message"] == (
        "LTXVImgToVideoInplaceKJ.execute() got an unexpected keyword argument"
        " 'num_images.image_1'\n"
    )


def test_images_are_turned_as_their_exif_says(comfyui: Lookalike) -> None:
    lying = paint((SIZE[1], SIZE[0]), 9)  # taken with the camera on its side
    exif_rotate_90 = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    sideways = picture((SIZE[1], SIZE[0]), 9, format="PNG", exif=exif_rotate_90)
    comfyui.upload("sideways.png", sideways)
    film = frames_of(comfyui.video(comfyui.run(changed("7", image="sideways.png"))[0])["fullpath"])
    assert likeness(film[0], np.rot90(lying, -1)) < 2


def test_a_file_that_is_no_image_fails_when_it_is_loaded(comfyui: Lookalike) -> None:
    comfyui.upload("text.png", b"no image")
    _, messages = comfyui.run(changed("7", image="text.png"))
    assert payload(messages, "execution_error")["exception_type"] == "PIL.UnidentifiedImageError"


FLAWS: dict[str, Callable[[Array, Array], bool]] = {
    "black": lambda film, good: film.max() < 8,
    "noise": lambda film, good: likeness(film[3], film[4]) > 30,
    "frozen": lambda film, good: likeness(film[0], film[-1]) < 1,
    "ignore_last": lambda film, good: likeness(film[-1], good[-1]) > likeness(film[-1], good[0]),
    "bounce": lambda film, good: likeness(film[-1], good[0]) < 2,
    "cut": lambda film, good: _biggest_step(film) > 4 * _biggest_step(good),
    "flash": lambda film, good: _biggest_step(film) > 4 * _biggest_step(good),
    "short_clip": lambda film, good: len(film) == 17,
    "stale": lambda film, good: len(film) == 17,
}


def _biggest_step(film: Array) -> float:
    return max(likeness(one, other) for one, other in pairwise(film))


def test_a_flawed_film_is_a_success_with_a_flaw_to_see(start: Start) -> None:
    flaws = [{"kind": kind} | ({"frames": 17} if kind == "short_clip" else {}) for kind in FLAWS]
    control = Control({}, *flaws)
    comfyui = start("--cache-none", LOOKALIKE_CONTROL_URL=control.url).ready().upload_pair()
    good, *flawed = (
        frames_of(comfyui.video(comfyui.run(flf2v(prefix="film"))[0])["fullpath"])
        for _ in ["good", *FLAWS]
    )
    control.server.shutdown()
    seen = {kind: FLAWS[kind](film, good) for kind, film in zip(FLAWS, flawed, strict=True)}
    assert all(seen.values()), seen


def test_a_broken_file_is_a_success_all_the_same(start: Start) -> None:
    for kind, size in (("no_output", None), ("short_file", 8)):
        comfyui = start(LOOKALIKE_FAULT=json.dumps({"kind": kind})).ready().upload_pair()
        prompt_id, messages = comfyui.run(flf2v())
        assert "execution_success" in [name for name, _ in messages]
        path = Path(comfyui.video(prompt_id)["fullpath"])
        assert (path.stat().st_size if path.exists() else None) == size
