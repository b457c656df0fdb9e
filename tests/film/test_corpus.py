"""What ComfyUI gets for the pictures of a job, from workers that run with each ffmpeg."""

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
from tests.film.frames import ALIKE, chunks, cut_to, pixels_of
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


def two_by_two(box: Box, samples: list[Sample]) -> dict[str, tuple[Sample, Sample]]:
    """Jobs of two pictures each."""
    jobs = {}
    for number, pair in enumerate(zip(samples[::2], samples[1::2], strict=True)):
        urls = [box.hosted.put_frame(f"{number}-{n}", one.content) for n, one in enumerate(pair)]
        jobs[box.hosted.add_job(urls, ["walk on"])] = pair
    return jobs


@pytest.mark.long
@pytest.mark.parametrize("which", ["Debian's ffmpeg", "a current ffmpeg"])
def test_comfyui_gets_what_each_picture_shows_and_nothing_else(
    box: Box, tmp_path: Path, which: str
) -> None:
    path = with_current_ffmpeg(tmp_path) if "current" in which else SYSTEM_PATH
    jobs, got = two_by_two(box, corpus()), dict[tuple[str, int], bytes]()
    with several_workers(box, PATH=path, VIDEO_SIZE=f"{SIZE.width}x{SIZE.height}") as inboxes:
        codes = {job: box.await_outcome(job, timeout=100)["data"]["error"] for job in jobs}
        for inbox in inboxes:
            got |= inbox.got
    assert {error["code"] for error in codes.values()} == {"comfyui_failed"}, codes
    far = {}
    for job, pair in jobs.items():
        for number, sample in enumerate(pair):
            frame = got[job, number]
            # A density of 1:1 is all that there is beside the pixels.
            assert set(chunks(frame)) <= {b"IHDR", b"pHYs", b"IDAT", b"IEND"}, sample.name
            levels = likeness(pixels_of(frame), cut_to(sample.shows, SIZE))
            far[f"{sample.kind}: {sample.name}"] = levels
    assert len(far) >= 120
    assert {name: levels for name, levels in far.items() if levels >= ALIKE} == {}
