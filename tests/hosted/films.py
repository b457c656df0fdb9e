"""A finished film in a worker's spool: nothing is left but to deliver it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ltx.state import claim_folder
from tests.conftest import Box

PUT = "PUT /api/blob*"


def spool_film(box: Box, finished: Path, name: str) -> str:
    """A job that a worker of this box claimed, made and did not get to upload; its id."""
    claim_folder(box.state)
    folder = box.state / "jobs" / name
    shutil.copytree(finished, folder)
    stage = json.loads((folder / "job.json").read_text())["stageData"]
    box.hosted.add_stage(stage, id=name)
    return name
