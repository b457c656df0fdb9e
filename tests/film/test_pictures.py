"""A frame shows what its picture shows, and carries pixels and nothing else, with any ffmpeg."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ltx.errors import JobError
from ltx.film.ffmpeg import Media
from ltx.film.pictures import check_picture, prepare_frames
from ltx.settings import Size
from tests.film.frames import ALIKE, SHAPE, cut_to, media_on, pixels_of, prepare
from tests.film.picture_files import SHOWN, exif, jpeg, managed, restarts, webp
from tests.film.profiles import P3_V4
from tests.pictures import image_of, likeness, save
from tests.programs import preceded, stand_in

STRAY = restarts(jpeg(restart_marker_rows=1))


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


# Side by side


def media_with(folder: Path, script: str) -> Media:
    """One whose ffmpeg is a script."""
    return media_on(stand_in(folder, "ffmpeg", script), folder)


def prepare_all(media: Media, folder: Path, files: list[bytes], at_once: int) -> None:
    pictures = []
    for number, content in enumerate(files):
        (folder / f"{number}.download").write_bytes(content)
        picture = check_picture(folder / f"{number}.download", f"frames[{number}]")
        pictures.append((picture, folder / f"{number}.png"))
    prepare_frames(media, pictures, SHAPE, at_once)


# Each of two waits until the other has begun, too.
MEETING = """
touch "{folder}/$$.here"
while [ "$(ls "{folder}" | grep -c here)" -lt {wanted} ]; do sleep 0.01; done
exec {ffmpeg} "$@"
"""
# Fails when there are more of them than there may be.
CROWD = """
mkdir "{folder}/$$.busy"
[ "$(ls "{folder}" | grep -c busy)" -le {wanted} ] || {{ echo crowded; exit 1; }}
{ffmpeg} "$@"
status=$?
rmdir "{folder}/$$.busy"
exit $status
"""


@pytest.mark.parametrize("script", [MEETING, CROWD], ids=["together", "no more than allowed"])
def test_frames_are_made_side_by_side(tmp_path: Path, script: str) -> None:
    folder = tmp_path / "busy"
    folder.mkdir()
    filled = script.format(folder=folder, wanted=2, ffmpeg=shutil.which("ffmpeg"))
    images = [image_of(number) for number in range(5)]
    prepare_all(media_with(tmp_path, filled), tmp_path, [save(one) for one in images], at_once=2)
    for number, image in enumerate(images):
        made = pixels_of((tmp_path / f"{number}.png").read_bytes())
        assert likeness(made, cut_to(image, SHAPE)) < ALIKE


def test_a_bad_frame_ends_what_is_made_beside_it(tmp_path: Path) -> None:
    """The second one would take for ever."""
    stuck = 'case "$*" in *1.pixels*) exec sleep 1000;; esac'
    media = media_on(preceded(tmp_path, "ffmpeg", stuck), tmp_path)
    good = save(image_of(1))
    bad = good[:60] + bytes(40) + good[100:]
    with pytest.raises(JobError, match=r"frames\[0\]: it is damaged"):
        prepare_all(media, tmp_path, [bad, good, good], at_once=2)
    left = {path.name for path in tmp_path.iterdir() if path.suffix in (".png", ".pixels")}
    assert left == set()
    assert not [command for command in commands() if f"{tmp_path}/1.pixels" in command]


def commands() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes().replace(b"\0", b" ").decode(errors="replace")


def test_a_frame_costs_one_process(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    for tool in ("ffmpeg", "ffprobe"):
        path = preceded(tmp_path, tool, f'echo "$0" >> {calls}')
    media = media_on(path, tmp_path)
    files = [save(image_of(1)), jpeg(exif=exif(6)), webp(icc_profile=P3_V4)]
    prepare_all(media, tmp_path, files, at_once=1)
    assert len(calls.read_text().splitlines()) == len(files)


def test_a_killed_ffmpeg_is_the_machines_fault(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="media_failed: ffmpeg: killed"):
        prepare_all(media_with(tmp_path, "kill -9 $$"), tmp_path, [save(image_of(1))], at_once=1)


def test_what_the_machine_says_is_no_fault_of_a_picture(tmp_path: Path) -> None:
    said = 'echo "libx.so.1: no version information" >&2'
    media = media_on(preceded(tmp_path, "ffmpeg", said), tmp_path)
    prepare_all(media, tmp_path, [save(image_of(1))], at_once=1)
    assert (tmp_path / "0.png").exists()


def test_a_silent_failure_has_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="ffmpeg ended without a word") as told:
        prepare_all(media_with(tmp_path, "exit 1"), tmp_path, [save(image_of(1))], at_once=1)
    assert "exit code" not in told.value.detail


def test_a_folder_may_have_any_name(media: Media, tmp_path: Path) -> None:
    """The way of a cube goes through ffmpeg's language of filters."""
    folder = tmp_path / "it's a [odd]; folder, 100%d: #1 = \\x"
    folder.mkdir()
    frame = prepare(media, folder, webp(icc_profile=P3_V4))
    assert likeness(pixels_of(frame), cut_to(managed(SHOWN, P3_V4), SHAPE)) < ALIKE
