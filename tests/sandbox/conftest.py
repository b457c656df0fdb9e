"""Look-alikes and hosted sides for the sandbox's own tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.client import Hosted
from tests.forks import ForkedHosted
from tests.sandbox.callers import Caller, Store
from tests.sandbox.lookalike import Lookalike


@pytest.fixture(scope="module")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lookalike]:
    running = Lookalike(tmp_path_factory.mktemp("comfyui")).ready().upload_pair()
    yield running
    running.end()


@pytest.fixture(scope="module")
def hanging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lookalike]:
    """One whose every prompt stops at the second step, until it is interrupted."""
    fault = json.dumps({"on": "prompt", "kind": "hang", "at": 2})
    folder = tmp_path_factory.mktemp("hanging")
    running = Lookalike(folder, LOOKALIKE_FAULT=fault).ready().upload_pair()
    yield running
    running.end()


Start = Callable[..., Lookalike]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[Lookalike] = []

    def start(*flags: str, **options: Any) -> Lookalike:
        running.append(Lookalike(tmp_path / str(len(running)), *flags, **options))
        return running[-1]

    yield start
    for one in running:
        one.end()


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosted]:
    """One process for many cases, where none of them can see the others' traces."""
    with ForkedHosted(tmp_path_factory.mktemp("hosted")) as running:
        yield running


@pytest.fixture
def worker(hosted: Hosted) -> Caller:
    return Caller(hosted)


@pytest.fixture
def store(hosted: Hosted) -> Store:
    return Store(hosted)


@pytest.fixture
def job(hosted: Hosted) -> str:
    return hosted.add_job(["https://a/1.png", "https://a/2.png"], ["a walk"], maxAttempts=2)


@pytest.fixture
def claimed(job: str, worker: Caller) -> str:
    assert worker.claim(job).status_code == 200
    return job


@pytest.fixture
def rendered(claimed: str, store: Store) -> str:
    assert store.put(f"spatial-story/output/{claimed}.mp4").status_code == 200
    return claimed


@pytest.fixture
def frame(hosted: Hosted) -> str:
    return hosted.put_frame("1.webp", b"picture bytes", "image/webp")
