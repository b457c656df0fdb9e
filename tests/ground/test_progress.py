"""Progress is told whatever the disk does."""

from __future__ import annotations

import os

from ltx.state import claim_folder
from tests.conftest import Box


def test_heartbeats_go_on_while_the_disk_stalls(box: Box) -> None:
    claim_folder(box.state)
    # Whoever opens this to write waits for a reader, as for a disk that does not answer.
    stalled = box.state / "pace.part"
    os.mkfifo(stalled)
    box.add_job()
    worker = box.start("run", "--once", LTX_TEXT="job")
    box.hosted.wait("comfyui.text")
    beat = box.hosted.wait(
        "heartbeat", where=lambda one: one["data"]["progress"]["stage"] == "booting"
    )
    for _ in range(3):
        beat = box.hosted.wait("heartbeat", after=beat["seq"])
    assert beat["data"]["progress"]["stage"] == "booting"
    stalled.read_text()
    assert worker.wait() == 0
