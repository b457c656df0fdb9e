"""The page of `make sandbox` in a browser without a window, for its tests and its picture.

`python -m sandbox.browse` draws sandbox/page.jpg: one film ready, the next one being made.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright

from sandbox.client import LIGHT, ROOT
from sandbox.launch import inherited

PICTURE = ROOT / "sandbox" / "page.jpg"
FLAGS = ("gpu", "quic", "background-networking", "component-update", "sync")
LONGEST_FILM_MS = 120_000


class StudioProcess:
    """What `make sandbox` runs, on a free port; leaving the context stops it."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.log = folder / "studio.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sandbox.studio", "--port", "0"],
                cwd=ROOT,
                env={**inherited(), **LIGHT, **settings, "TMPDIR": str(folder)},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        if not found:
            self.stop()
            raise RuntimeError(f"the studio did not start: {line}{self.log.read_text()[-2000:]}")
        self.url = found[0]

    def __enter__(self) -> StudioProcess:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> int:
        """Its exit code after a Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=60)
        return self.process.returncode


@contextmanager
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if not program:
        raise RuntimeError("there is no chromium; run .ci/setup browser")
    flags = ["--no-first-run", *(f"--disable-{name}" for name in FLAGS)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=flags, chromium_sandbox=False
        )
        try:
            yield browser
        finally:
            browser.close()


def draw_picture(url: str, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 1265})
    page.goto(url)
    page.click("#samples")
    page.check("#watermark")
    page.click("#send")
    expect(page.locator(".sheet img")).to_have_count(6, timeout=LONGEST_FILM_MS)
    page.click("#send")
    second = page.locator(".clips li").nth(1)
    expect(second).to_have_text("Clip 2: step 4 of 8", timeout=LONGEST_FILM_MS)
    page.screenshot(path=PICTURE, type="jpeg", quality=80)


def main() -> None:
    settings = {"VIDEO_SIZE": "960x540", "LOOKALIKE_STEP_S": "1"}
    with (
        tempfile.TemporaryDirectory() as folder,
        StudioProcess(Path(folder), settings) as studio,
        chromium() as browser,
    ):
        draw_picture(studio.url, browser)


if __name__ == "__main__":
    main()
