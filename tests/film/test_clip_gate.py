"""No bad clip reaches a customer: each is looked at, rendered once more, and then refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.clip_gate.clips import Case, encode
from bench.clip_gate.look import inspect, media, try_case
from ltx.job import CLIP_FRAMES
from ltx.settings import Size
from sandbox.client import Hosted
from tests.conftest import Box, serving
from tests.pictures import image_of, picture, save

# What the look-alike can do to a clip, and a word of the check that has to find it.
FLAWS = {
    "black": "light",
    "noise": "grain",
    "frozen": "still",
    "ignore_last": "arrive",
    "bounce": "arrive",
    "cut": "jump",
    "flash": "jump",
    "truncated": "it cannot be read",
    "short_clip": "expected",
    "wrong_size": "expected",
}
ROOMS = [("sandbox", f"{name}.jpg", "") for name in (
    "01-hall", "02-doorway", "03-living-room", "04-sofa", "05-reading-corner", "06-garden-door"
)]  # fmt: skip


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    # One process for all good clips; the second attempt at a bad one has its own.
    settings = {"COMFYUI_RESTART": "job", "COMFYUI_STANDBY": "1", "CLIP_GATE": "enforce"}
    with serving(tmp_path_factory.mktemp("gate"), **settings) as box:
        yield box


def flawed(box: Box, flaw: dict[str, Any], times: int, clips: int = 1) -> dict[str, Any]:
    """The outcome of a job whose first clip comes out like this so many times."""
    box.hosted.script_comfyui(*[{"on": "prompt", **flaw}] * times)
    outcome = box.await_outcome(box.add_job(clips, maxAttempts=1), timeout=60)
    box.hosted.clear_comfyui_script()
    return outcome


def bad_clips(box: Box) -> list[str]:
    return sorted(path.name for path in (box.state / "bad-clips").glob("*-clip*"))


@pytest.mark.parametrize("kind", FLAWS)
def test_a_clip_that_came_out_bad_once_is_rendered_again(box: Box, kind: str) -> None:
    outcome = flawed(box, {"kind": kind}, 1)
    assert outcome["kind"] == "complete", outcome
    [clip] = box.hosted.job(outcome["job"])["outcome"]["clips"]
    assert clip["attempts"] == 2
    assert clip["gate"]["last"] > 0.9
    retry = re.search(rf"clip_retry job={outcome['job']}.*", box.running[-1].log)
    assert retry
    assert FLAWS[kind] in retry[0]
    assert f"{outcome['job']}-clip1-attempt1.mp4" in bad_clips(box)


@pytest.mark.parametrize("colour", ["white", "black", "#804020"])
@pytest.mark.parametrize("flat", [(1,), (0,), (0, 1)], ids=["last", "first", "both"])
def test_a_picture_of_one_colour_is_no_reason_to_refuse_a_clip(
    box: Box, colour: str, flat: tuple[int, ...]
) -> None:
    plain = save(Image.new("RGB", (320, 180), colour))
    shown = [plain if n in flat else picture((320, 180), n) for n in (0, 1)]
    frames = [box.hosted.put_frame(f"flat-{n}.png", one) for n, one in enumerate(shown)]
    outcome = box.await_outcome(box.hosted.add_job(frames, ["on"], False), timeout=60)
    assert outcome["kind"] == "complete", outcome
    [clip] = box.hosted.job(outcome["job"])["outcome"]["clips"]
    assert clip["attempts"] == 1


@pytest.mark.parametrize("crf", [10, 28])
def test_a_pale_picture_that_fades_to_black_is_not_taken_for_coming_back(
    tmp_path: Path, crf: int
) -> None:
    """Near the end only the noise of encoding is left, and that may look like the first picture."""
    grey = image_of(3, (320, 160)).convert("L").convert("RGB")
    pale = 225 + np.asarray(grey, dtype=float) * 25 / 255
    ways = np.linspace(1, 0, CLIP_FRAMES)
    frames = np.stack([np.round(pale * way).astype(np.uint8) for way in ways])
    raw, first, last = (tmp_path / name for name in ("raw.mp4", "first.png", "last.png"))
    encode(frames, raw, crf)
    for number, path in ((0, first), (-1, last)):
        Image.fromarray(frames[number]).save(path)
    result = inspect(media(), raw, first, last, Size(320, 160))
    assert result.look
    assert result.failed == [], result.told
    assert result.look.back < 0.15


def test_a_clip_that_does_not_arrive_at_a_picture_of_one_colour_is_refused(box: Box) -> None:
    box.hosted.script_comfyui(*[{"on": "prompt", "kind": "ignore_last"}] * 2)
    shown = [picture((320, 180), 0), save(Image.new("RGB", (320, 180), "white"))]
    frames = [box.hosted.put_frame(f"missed-{n}.png", one) for n, one in enumerate(shown)]
    outcome = box.await_outcome(box.hosted.add_job(frames, ["on"], False, maxAttempts=1))
    box.hosted.clear_comfyui_script()
    assert outcome["kind"] == "fail", outcome


def test_a_clip_that_comes_out_bad_twice_fails_the_job_and_is_kept_to_look_at(box: Box) -> None:
    outcome = flawed(box, {"kind": "frozen"}, 2)
    assert outcome["kind"] == "fail"
    job = outcome["job"]
    error = box.hosted.job(job)["outcome"]["error"]
    assert error["code"] == "bad_clip"
    told = re.search(r"Clip 1: .*arrive is -?[\d.]+, allowed is at least 0\.4", error["message"])
    assert told, error
    kept = {f"{job}-clip1-attempt{n}.{ext}" for n in (1, 2) for ext in ("mp4", "jpg")}
    assert kept <= set(bad_clips(box))


def test_a_clip_of_an_earlier_render_is_not_taken_for_the_one_asked_for(box: Box) -> None:
    good = flawed(box, {"kind": "slow"}, 0)
    stale = {"kind": "stale", "path": str(box.hosted.blob_path(good["job"]))}
    outcome = flawed(box, stale, 1)
    assert outcome["kind"] == "complete"
    assert box.hosted.job(outcome["job"])["outcome"]["clips"][0]["attempts"] == 2


def test_only_the_bad_clip_of_a_film_is_rendered_again(box: Box) -> None:
    outcome = flawed(box, {"kind": "black"}, 1, clips=3)
    clips = box.hosted.job(outcome["job"])["outcome"]["clips"]
    assert [clip["attempts"] for clip in clips] == [2, 1, 1]


def test_no_more_than_the_newest_ten_bad_clips_are_kept(box: Box) -> None:
    assert len([name for name in bad_clips(box) if name.endswith(".mp4")]) <= 10


def test_a_killed_worker_remembers_that_a_clip_had_its_first_attempt(
    tmp_path: Path, hosted: Hosted
) -> None:
    box = Box(tmp_path, hosted)
    box.settings["CLIP_GATE"] = "enforce"
    hosted.script_comfyui({"on": "prompt", "kind": "black"}, {"on": "prompt", "kind": "hang"})
    job = box.add_job(maxAttempts=1)
    worker = box.start("run")
    first = hosted.wait("comfyui.prompt")
    hosted.wait("comfyui.prompt", after=first["seq"], timeout=60)
    # The encode of the refused clip is thrown away.
    assert [file.name for file in (box.state / "jobs" / job / "clips").iterdir()] == [
        "000.record.json"
    ]
    worker.end()
    hosted.clear_comfyui_script()
    hosted.script_comfyui({"on": "prompt", "kind": "black"})
    box.start("run", "--once").wait()
    assert box.failure(job)["code"] == "bad_clip"
    assert len(bad_clips(box)) == 4


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        ("dissolve", "good"),
        ("strong motion", "good"),
        ("dim room", "good"),
        ("near-identical", "good"),
        ("portrait", "good"),
        ("last ignored", "mild"),
        ("wrong image", "mild"),
        ("bounce-back", "mild"),
        ("still end", "mild"),
        ("cut", "mild"),
        ("noise", "mild"),
        ("black", "mild"),
    ],
)
def test_good_clips_pass_and_mildly_bad_ones_do_not(kind: str, label: str) -> None:
    result = try_case(Case(kind, label, 1, 0), ROOMS)
    assert result.look
    assert bool(result.failed) == (label != "good"), result
