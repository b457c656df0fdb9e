"""A clip keeps its colours and says what they are, with any ffmpeg."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ltx.film.clips import Placement, encode_clip
from ltx.film.ffmpeg import Media, read_clip
from ltx.settings import Size
from tests.film.frames import ALIKE
from tests.pictures import Array, likeness, picture

GREEN = (30, 160, 60)
RAW, FILM = Size(128, 96), Size(128, 72)
TAGS = ("color_range", "color_space", "color_transfer", "color_primaries")


def a_raw_clip(path: Path, *tags: str) -> Array:
    """Of one colour, encoded as VHS does; its first frame, cut to the film, as it decodes."""
    frames = np.full((121, RAW.height, RAW.width, 3), GREEN, np.uint8).tobytes()
    command = ["ffmpeg", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{RAW.width}x{RAW.height}", "-r", "24", "-i", "-", "-crf", "1"]
    command += ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-pix_fmt", "yuv420p", *tags]
    subprocess.run([*command, str(path)], input=frames, check=True)
    return first_frame(path, RAW)[: FILM.height]


def first_frame(path: Path, size: Size) -> Array:
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-frames:v", "1", "-vf"]
    command += ["scale=in_color_matrix=bt709:in_range=tv:out_range=pc"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(size.height, size.width, 3)


def tags_of(path: Path) -> list[str]:
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_streams", str(path)]
    (stream,) = json.loads(subprocess.check_output(command))["streams"]
    return [str(stream.get(name)) for name in TAGS]


@pytest.mark.parametrize("marked", [False, True], ids=["plain", "with a watermark"])
@pytest.mark.parametrize("tags", [(), ("-colorspace", "bt709", "-color_range", "tv")])
def test_a_clip_is_bt709_and_says_so(
    media: Media, tmp_path: Path, tags: tuple[str, ...], marked: bool
) -> None:
    raw, trimmed, mark = (tmp_path / name for name in ("raw.mp4", "trimmed.mp4", "mark.png"))
    mark.write_bytes(picture((40, 20), "mark", mode="RGBA"))
    given = a_raw_clip(raw, *tags)
    place = Placement(80, 40, 40, 20)
    media.run(encode_clip(read_clip(raw), trimmed, FILM, mark if marked else None, place))
    assert tags_of(trimmed) == ["tv", "bt709", "bt709", "bt709"]
    got = first_frame(trimmed, FILM)
    assert likeness(got[:30], given[:30]) < ALIKE
    assert (likeness(got[40:60, 80:120], given[40:60, 80:120]) > 10 * ALIKE) == marked
