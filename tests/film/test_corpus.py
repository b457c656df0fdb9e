"""What ComfyUI gets for the pictures of a job, and what each ffmpeg makes of them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.hostile.stage import node_classes
from ltx.settings import Size
from sandbox.evil import EvilComfy, Talk, answer
from tests.conftest import Box
from tests.film.corpus import Sample, corpus
from tests.film.frames import ALIKE, chunks, cut_to, media_on, pixels_of, prepare
from tests.pictures import likeness
from tests.programs import SYSTEM_PATH, with_current_ffmpeg

SIZE = Size(96, 64)
WORKERS = 3
STOPPED: dict[str, Any] = {
    "status": {"status_str": "error", "messages": [["execution_error", {"exception_type": "x"}]]}
}


class Inbox(EvilComfy):
    """Keeps what it is sent, by job and number, and ends every job before anything is rendered."""

    def __init__(self) -> None:
        super().__init__(lambda first, last: b"", node_classes())
        self.got: dict[tuple[str, int], bytes] = {}
        self.overrule("/history", self.stop, times=1_000_000)

    def take_picture(self, talk: Talk) -> None:
        super().take_picture(talk)
        found = re.search(rb'filename="(\w+)-[0-9a-f]{8}-(\d+)\.png"', talk.body)
        assert found
        number = int(found[2])
        self.got[found[1].decode(), number] = self.pictures[number]

    def stop(self, talk: Talk) -> None:
        self.prompted.clear()
        answer({self.prompt_id: STOPPED})(talk)


@contextlib.contextmanager
def several_workers(box: Box, **changes: str) -> Iterator[list[Inbox]]:
    """Workers on one queue, because each pauses for a second with a ComfyUI that is not its own."""
    with contextlib.ExitStack() as stack:
        inboxes = [stack.enter_context(Inbox()) for _ in range(WORKERS)]
        for number, inbox in enumerate(inboxes):
            own = {"STATE_DIR": f"{box.state}-{number}", "WORKER_ID": f"worker-{number}"}
            box.start("run", COMFYUI_URL=inbox.url, **own, **changes)
        yield inboxes


def two_by_two(box: Box, samples: list[Sample]) -> dict[str, int]:
    """Jobs of two pictures each, and the number of the first."""
    jobs = {}
    for first in range(0, len(samples), 2):
        pair = enumerate(samples[first : first + 2], first)
        urls = [box.hosted.put_frame(str(number), sample.content) for number, sample in pair]
        jobs[box.hosted.add_job(urls, ["walk on"])] = first
    return jobs


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return corpus()


def differences(frames: dict[int, bytes], samples: list[Sample]) -> dict[str, float]:
    """The frames that do not show what their picture shows, and by how much."""
    far = {}
    for number, sample in enumerate(samples):
        # A density of 1:1 is all that there is beside the pixels.
        assert set(chunks(frames[number])) <= {b"IHDR", b"pHYs", b"IDAT", b"IEND"}, sample.name
        levels = likeness(pixels_of(frames[number]), cut_to(sample.shows, SIZE))
        far[f"{sample.kind}: {sample.name}"] = levels
    assert len(far) >= 120
    return {name: levels for name, levels in far.items() if levels >= ALIKE}


@pytest.mark.long
def test_comfyui_gets_what_each_picture_shows_and_nothing_else(
    box: Box, samples: list[Sample]
) -> None:
    path = with_current_ffmpeg(box.folder)
    jobs, frames = two_by_two(box, samples), dict[int, bytes]()
    with several_workers(box, PATH=path, VIDEO_SIZE=f"{SIZE.width}x{SIZE.height}") as inboxes:
        errors = {job: box.await_outcome(job, timeout=100)["data"]["error"] for job in jobs}
        for (job, number), frame in (got for inbox in inboxes for got in inbox.got.items()):
            frames[jobs[job] + number] = frame
    assert {error["code"] for error in errors.values()} == {"comfyui_failed"}, errors
    assert differences(frames, samples) == {}


@pytest.mark.long
def test_the_systems_ffmpeg_makes_the_same_of_each_picture(
    tmp_path: Path, samples: list[Sample]
) -> None:
    media = media_on(SYSTEM_PATH, tmp_path)
    frames = {n: prepare(media, tmp_path, one.content, SIZE) for n, one in enumerate(samples)}
    assert differences(frames, samples) == {}
