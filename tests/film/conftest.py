"""A worker that serves jobs of odd frames, and the ffmpegs that make frames of pictures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ltx.film.ffmpeg import Media
from tests.conftest import Box, a_stage
from tests.film.frames import FloodServer, media_on, port_of
from tests.programs import SYSTEM_PATH, with_current_ffmpeg


@pytest.fixture(scope="module")
def flood() -> Iterator[FloodServer]:
    with FloodServer() as server:
        yield server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, flood: FloodServer) -> Iterator[Box]:
    """A worker that goes on from job to job, on a machine whose netrc knows every host."""
    folder = tmp_path_factory.mktemp("frames")
    netrc = folder / ".netrc"
    netrc.write_text("default login someone password netrc-password\n")
    netrc.chmod(0o600)
    with a_stage(folder) as box:
        hosts = f"127.0.0.1:{port_of(box)}, 127.0.0.1:{flood.port}"
        box.forked = False  # its memory is looked at
        box.start("run", HOME=str(folder), FRAME_HOSTS=hosts)
        yield box


@pytest.fixture(scope="module", params=["Debian's ffmpeg", "a current ffmpeg"])
def media(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Media:
    folder = tmp_path_factory.mktemp("media")
    path = with_current_ffmpeg(folder) if "current" in request.param else SYSTEM_PATH
    return media_on(path, folder)
