"""A raw clip is read once; what that one pass fails of is told apart."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import SIZE, Box
from tests.programs import preceded

RAW_SIZE = (SIZE[0], 96)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of the right size and length, with a hole in its middle."""
    clip = tmp_path_factory.mktemp("damaged") / "clip.mp4"
    source = f"testsrc2=size={RAW_SIZE[0]}x{RAW_SIZE[1]}:rate=24"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-frames:v", "121"]
    subprocess.run([*command, "-pix_fmt", "yuv420p", str(clip)], check=True)
    data = clip.read_bytes()
    middle = len(data) // 2
    clip.write_bytes(data[:middle] + bytes(4000) + data[middle + 4000 :])
    return clip


def without_encoder(box: Box) -> str:
    """A PATH on which ffmpeg renders and decodes, but cannot encode for the customer."""
    refusal = 'case "$*" in *.raw.mp4*libx264*) echo no encoder >&2; exit 1;; esac'
    return preceded(box.folder, "ffmpeg", refusal)


def test_a_damaged_clip_is_refused(box: Box, damaged: Path) -> None:
    box.hosted.script_comfyui(*[{"on": "prompt", "kind": "stale", "path": str(damaged)}] * 2)
    job = box.add_job(maxAttempts=1)
    box.run_once(CLIP_GATE="enforce")
    error = box.failure(job)
    assert error["code"] == "bad_clip"
    assert "Clip 1 cannot be decoded whole" in error["message"]


def test_an_encoder_that_fails_is_not_taken_for_a_bad_clip(box: Box) -> None:
    job = box.add_job(maxAttempts=1)
    worker = box.run_once(CLIP_GATE="enforce", PATH=without_encoder(box))
    error = box.failure(job)
    assert (error["code"], error["retryable"]) == ("media_failed", True), worker.log
    assert "no encoder" in error["message"]
    assert len(box.hosted.events("comfyui.prompt")) == 1
