"""Line 7 of the mission: what the delivered film is, read from its bytes and its pixels."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sandbox.client import free_port
from sandbox.launch import WORKER, Running
from tests.conftest import SIZE, Box, a_stage, made_once
from tests.pictures import Array, likeness, picture
from tests.programs import SYSTEM_PATH, preceded, with_current_ffmpeg

CLIP_FRAMES = 120
TALL = SIZE[::-1]
# The model renders multiples of 32, so 72 is rendered as 96 and the excess is cut away.
RENDERED = {SIZE: (128, 96), TALL: (96, 128)}
PROMPT = "past the zinc-grey lanterns, part"
# Above this left edge of the watermark's column nothing but the film is seen.
UNMARKED = 190


@dataclass(frozen=True)
class Film:
    """A film as it was delivered, and the pictures it was made of."""

    folder: Path
    clips: int
    size: tuple[int, int]

    @property
    def path(self) -> Path:
        return self.folder / "film.mp4"

    def source(self, number: int) -> Image.Image:
        return Image.open(self.folder / f"{number}.png")


# How each film is made: from six pictures, from two standing ones, by `render` from two wide ones.
FILMS = {"long": (5, SIZE), "tall": (1, TALL), "rendered": (1, SIZE)}


@pytest.fixture(scope="module")
def films(shared_folder: Path) -> dict[str, Film]:
    folder = made_once(shared_folder / "films", make_films)
    return {name: Film(folder / name, *facts) for name, facts in FILMS.items()}


@pytest.fixture(params=FILMS)
def film(films: dict[str, Film], request: pytest.FixtureRequest) -> Film:
    return films[request.param]


@pytest.fixture
def long_film(films: dict[str, Film]) -> Film:
    return films["long"]


def make_films(folder: Path) -> None:
    for name, (clips, _) in FILMS.items():
        (folder / name).mkdir()
        for number in range(clips + 1):
            (folder / name / f"{number}.png").write_bytes(draw(name, number))
    with a_stage(folder) as box:
        box.settings["CLIP_GATE"] = "enforce"
        rendering = start_render(box, folder / "rendered")
        deliver(box, watch_ffmpeg(folder))
        assert rendering.wait() == 0, rendering.log
        assert "rendered/film.mp4" in rendering.log


def draw(name: str, number: int) -> bytes:
    if name == "tall":
        return picture((200, 320), 70 + number)
    if name == "rendered":
        return picture((480, 180), 80 + number)
    # Fine grain, so that the slowest camera changes every frame by more than the encoder does.
    grain = np.random.default_rng(number).integers(20, 236, (50, 80)).astype(np.uint8)
    buffer = io.BytesIO()
    large = Image.fromarray(grain).resize((320, 200), Image.Resampling.BICUBIC)
    large.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def watch_ffmpeg(folder: Path) -> str:
    """A PATH on which the system's ffmpeg notes its arguments before it does its work."""
    note = f'echo "$*" >>"{folder / "ffmpeg.txt"}"'
    return preceded(folder, "ffmpeg", note, SYSTEM_PATH)


def deliver(box: Box, path: str) -> None:
    """Two films through the queue; the long one's clips are taken from the spool before it goes."""
    hosted = box.hosted
    hosted.fault("PUT /api/blob*", times=-1, status=503)
    jobs = {name: add_job(box, name, watermark=name == "long") for name in ("long", "tall")}
    box.start("run", PATH=path)
    hosted.wait("fault", timeout=60)
    shutil.copytree(box.state / "jobs" / jobs["long"] / "clips", box.folder / "long" / "clips")
    shutil.copy(box.folder / "ffmpeg.txt", box.folder / "long")
    hosted.clear_faults()
    for name, job in jobs.items():
        hosted.wait("complete", job, timeout=60)
        shutil.copy(hosted.blob_path(job), box.folder / name / "film.mp4")
        outcome = json.dumps(hosted.job(job)["outcome"])
        (box.folder / name / "outcome.json").write_text(outcome)


def add_job(box: Box, name: str, watermark: bool) -> str:
    clips, _ = FILMS[name]
    frames = [
        box.hosted.put_frame(f"{name}-{n}.png", (box.folder / name / f"{n}.png").read_bytes())
        for n in range(clips + 1)
    ]
    prompts = [f"{PROMPT} {n}" for n in range(clips)]
    # The seeds follow from the id, and from them how the camera moves.
    return box.hosted.add_job(frames, prompts, watermark, id=f"{name}-film")


def start_render(box: Box, folder: Path) -> Running:
    """The film of the command line, with nothing set that only the hosted side needs.

    It is made with a current ffmpeg, the others with the system's.
    """
    frames = [str(folder / f"{n}.png") for n in range(2)]
    own = {"STATE_DIR": str(folder / "state"), "COMFYUI_URL": f"http://localhost:{free_port()}"}
    own["PATH"] = with_current_ffmpeg(folder)
    hosted_side = ("API_URL", "VIDEOGEN_WORKER_SECRET", "BLOB_READ_WRITE_TOKEN", "WATERMARK_PATH")
    unset = dict.fromkeys(hosted_side, "")
    command = ("render", *frames, "--prompt", PROMPT, "-o", str(folder / "film.mp4"))
    return box.start(*command, **own, **unset)


# Reading a film


@functools.cache
def probe(path: Path) -> dict[str, Any]:
    """ffprobe's account of a file, every frame decoded."""
    command = ["ffprobe", "-v", "error", "-of", "json", "-count_frames"]
    command += ["-show_format", "-show_streams", "-show_entries", "frame=pts,key_frame"]
    answer: dict[str, Any] = json.loads(subprocess.check_output([*command, str(path)]))
    return answer


def decode(path: Path, pixels: str, chosen: str = "1") -> Array:
    """The frames for which ffmpeg's expression `chosen` is true, as rgb24 or gray."""
    stream = probe(path)["streams"][0]
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-vf", f"select='{chosen}'"]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", pixels, "-"]
    raw = np.frombuffer(subprocess.check_output(command), np.uint8)
    frames = raw.reshape(-1, stream["height"], stream["width"], 3 if pixels == "rgb24" else 1)
    return frames[..., 0] if pixels == "gray" else frames


def frame_hashes(path: Path) -> list[str]:
    """One MD5 for each decoded frame."""
    told = subprocess.check_output(["ffmpeg", "-v", "error", "-i", path, "-f", "framemd5", "-"])
    lines = [line for line in told.decode().splitlines() if not line.startswith("#")]
    return [line.rpartition(",")[2].strip() for line in lines]


def boxes(data: bytes) -> Iterator[str]:
    """The names of an MP4's outermost boxes, in order."""
    at = 0
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        yield name.decode()
        at += size or len(data)


def center(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    x, y = (image.width - size[0]) / 2, (image.height - size[1]) / 2
    return image.crop(
        (math.floor(x), math.floor(y), *(math.floor(x) + size[0], math.floor(y) + size[1]))
    )


def as_filmed(source: Image.Image, size: tuple[int, int]) -> Array:
    """A picture cut to the rendered shape, scaled to it, and without the excess rows."""
    width, height = RENDERED[size]
    scale = min(source.width / width, source.height / height)
    cut = center(source, (round(width * scale), round(height * scale)))
    return np.asarray(center(cut.resize((width, height), Image.Resampling.LANCZOS), size))


# The promises


def test_a_film_has_120_frames_a_clip_each_on_the_grid_of_24_a_second(film: Film) -> None:
    (stream,) = probe(film.path)["streams"]
    assert int(stream["nb_read_frames"]) == CLIP_FRAMES * film.clips
    tick = Fraction(stream["time_base"])
    shown = [frame["pts"] * tick * 24 for frame in probe(film.path)["frames"]]
    assert shown == list(range(CLIP_FRAMES * film.clips))
    assert (stream["r_frame_rate"], stream["avg_frame_rate"]) == ("24/1", "24/1")


def test_a_film_lasts_exactly_five_seconds_a_clip(film: Film) -> None:
    told = probe(film.path)
    seconds = f"{5 * film.clips}.000000"
    assert [told["format"]["duration"], told["streams"][0]["duration"]] == [seconds, seconds]
    assert told["format"]["start_time"] == "0.000000"


def test_a_film_has_the_asked_size_standing_when_its_first_picture_does(film: Film) -> None:
    (stream,) = probe(film.path)["streams"]
    assert (stream["width"], stream["height"]) == film.size
    assert stream.get("sample_aspect_ratio", "1:1") == "1:1"


def test_a_film_is_yuv420p_tagged_as_bt709(film: Film) -> None:
    (stream,) = probe(film.path)["streams"]
    assert (stream["codec_name"], stream["pix_fmt"]) == ("h264", "yuv420p")
    tags = [stream.get(f"color_{name}") for name in ("space", "primaries", "transfer", "range")]
    assert tags == ["bt709", "bt709", "bt709", "tv"]


def test_a_film_is_silent(film: Film) -> None:
    assert [stream["codec_type"] for stream in probe(film.path)["streams"]] == ["video"]


def test_a_film_holds_no_prompts_and_no_titles(film: Film) -> None:
    told, data = probe(film.path), film.path.read_bytes()
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        assert PROMPT.encode(encoding) not in data
    assert b"class_type" not in data
    tags = told["format"]["tags"].keys() | told["streams"][0]["tags"].keys()
    brands = {"major_brand", "minor_version", "compatible_brands"}
    assert tags <= brands | {"language", "handler_name", "vendor_id"}


def test_a_film_starts_to_play_before_it_is_loaded(film: Film) -> None:
    order = list(boxes(film.path.read_bytes()))
    assert order.index("moov") < order.index("mdat")


def test_every_clip_opens_with_a_keyframe(film: Film) -> None:
    frames = probe(film.path)["frames"]
    assert [frames[CLIP_FRAMES * clip]["key_frame"] for clip in range(film.clips)] == [
        1
    ] * film.clips


def test_every_clip_opens_with_its_picture(film: Film) -> None:
    opening = decode(film.path, "rgb24", f"not(mod(n,{CLIP_FRAMES}))")[:, :, :UNMARKED]
    assert len(opening) == film.clips
    pictures = [as_filmed(film.source(n), film.size)[:, :UNMARKED] for n in range(film.clips + 1)]
    for clip, frame in enumerate(opening):
        apart = [likeness(frame, one) for one in pictures]
        assert apart[clip] < 4, (clip, apart)
        assert min(apart[:clip] + apart[clip + 1 :]) > 3 * apart[clip], (clip, apart)


def test_only_the_excess_rows_are_cut_and_nothing_is_squeezed(films: dict[str, Film]) -> None:
    film = films["tall"]
    (frame,) = decode(film.path, "rgb24", "not(n)")
    squeezed = np.asarray(film.source(0).resize(film.size, Image.Resampling.LANCZOS))
    apart = likeness(frame, as_filmed(film.source(0), film.size))
    assert 2 * apart < likeness(frame, squeezed)


def test_no_frame_is_shown_twice_not_even_at_a_seam(long_film: Film) -> None:
    frames = decode(long_film.path, "gray")[:, :, :UNMARKED]
    steps = np.array([likeness(one, next_one) for one, next_one in pairwise(frames)])
    assert steps.min() > np.median(steps) / 3, int(steps.argmin())
    for clip in range(1, long_film.clips):
        shown = as_filmed(long_film.source(clip), long_film.size)[:, :UNMARKED, 0]
        before, opening = frames[CLIP_FRAMES * clip - 1], frames[CLIP_FRAMES * clip]
        # The picture that ends a rendered clip opens the next one, so it must be seen only there.
        assert likeness(before, shown) > 2.4 * likeness(opening, shown), clip


def test_a_clip_is_encoded_once_after_comfyui_and_only_copied_from_then_on(long_film: Film) -> None:
    runs = (long_film.folder / "ffmpeg.txt").read_text().splitlines()
    # The look-alike pipes raw video into its encoder, as VHS_VideoCombine does.
    encodes = [run for run in runs if "libx264" in run and "rawvideo" not in run]
    assert len(encodes) == long_film.clips, encodes
    # Its measures are taken in the same pass.
    assert [run for run in runs if ".raw.mp4" in run] == encodes
    clips = sorted((long_film.folder / "clips").glob("*.mp4"))
    assert [clip.name for clip in clips] == [f"{n:03}.mp4" for n in range(long_film.clips)]
    pieces = [digest for clip in clips for digest in frame_hashes(clip)]
    assert frame_hashes(long_film.path) == pieces


@pytest.mark.parametrize("name", ["long", "tall"])
def test_what_is_reported_is_what_was_uploaded(films: dict[str, Film], name: str) -> None:
    film = films[name]
    told = json.loads((film.folder / "outcome.json").read_text())
    assert told["sizeBytes"] == film.path.stat().st_size
    assert (told["width"], told["height"], told["fps"]) == (*film.size, 24)
    assert (told["frames"], told["durationSec"]) == (CLIP_FRAMES * film.clips, 5.0 * film.clips)
    assert told["watermarked"] is (name == "long")
    assert len(told["clips"]) == film.clips


@pytest.mark.parametrize("clip", [0, 4])
def test_workflow_prints_the_graph_of_a_clip_as_json(clip: int) -> None:
    command = [sys.executable, str(WORKER), "workflow", "first.png", "last.png"]
    command += ["--prompt", PROMPT, "--negative", "fog", "--clip", str(clip), "--seed", "7"]
    told = subprocess.run(
        command, env={"PATH": os.environ["PATH"]}, capture_output=True, check=True
    )
    graph = json.loads(told.stdout)
    assert all(clip * 1000 < int(node) < (clip + 1) * 1000 for node in graph)
    texts = json.dumps(graph)
    assert all(f'"{text}"' in texts for text in (PROMPT, "fog", "first.png", "last.png"))
    assert '"noise_seed": 7' in texts
