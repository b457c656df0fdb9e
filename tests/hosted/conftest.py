"""A film that was made once, for tests of what happens to films."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import a_stage, made_once
from tests.hosted.films import PUT


@pytest.fixture(scope="session")
def finished_job(shared_folder: Path) -> Path:
    """The spool folder of a job whose film is made and not yet uploaded."""
    return made_once(shared_folder / "finished", make_film) / "job"


def make_film(folder: Path) -> None:
    with a_stage(folder) as box:
        box.hosted.fault(PUT, times=-1, status=503)
        job = box.add_job()
        worker = box.start("run")
        box.hosted.wait("fault", timeout=60)
        worker.end()
        shutil.copytree(box.state / "jobs" / job, folder / "job")
