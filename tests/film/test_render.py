"""`render` by hand: a bar on a terminal, lines in a pipe, a clean stop, nothing overwritten."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.launch import WORKER
from tests.conftest import Box
from tests.pictures import picture


def command(box: Box, *options: str) -> list[str]:
    frames = [box.folder / f"{n}.png" for n in range(3)]
    for number, frame in enumerate(frames):
        frame.write_bytes(picture((320, 180), number))
    film = ("--prompt", "walk on", "-o", str(box.folder / "film.mp4"))
    return [sys.executable, str(WORKER), "render", *map(str, frames), *film, *options]


def on_a_terminal(
    box: Box, columns: int, seen: Callable[[str, subprocess.Popen[bytes]], None]
) -> tuple[int, str]:
    """Runs `render` on a pseudo terminal; `seen` is told what is on it so far."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(command(box), env=box.environ(), stdout=slave, stderr=slave)
    os.close(slave)
    screen = b""
    try:
        while piece := os.read(master, 4096):
            screen += piece
            seen(screen.decode(errors="replace"), process)
    except OSError:
        pass  # Linux tells the end of a terminal's other side as EIO.
    finally:
        os.close(master)
    return process.wait(), screen.decode()


def bars(screen: str) -> list[str]:
    """Every state of the last line that was drawn."""
    drawn = re.findall(r"\r\x1b\[K([^\r\n\x1b]*)", screen)
    return [bar for bar in drawn if "job render: " in bar]


def test_a_terminal_shows_clip_step_rate_and_eta_on_one_line(box: Box) -> None:
    box.settings["LOOKALIKE_STEP_S"] = "0.1"
    code, screen = on_a_terminal(box, 110, lambda _screen, _process: None)
    assert code == 0, screen
    assert (box.folder / "film.mp4").exists()
    shown = bars(screen)
    wanted = r"\[█+░+\] job render: rendering clip 2/2 step \d/8 \d+ %, about \d+ s left"
    wanted += r", \d\.\d\d s/step"
    assert any(re.fullmatch(wanted, bar) for bar in shown), shown
    assert max(map(len, shown)) < 110
    narrow = on_a_terminal_again(box, 40)
    assert 0 < max(map(len, narrow)) < 40


def on_a_terminal_again(box: Box, columns: int) -> list[str]:
    (box.folder / "film.mp4").unlink()
    code, screen = on_a_terminal(box, columns, lambda _screen, _process: None)
    assert code == 0, screen
    return bars(screen)


def test_control_c_stops_with_a_sentence_and_leaves_nothing(box: Box) -> None:
    box.hosted.script_comfyui({"on": "prompt", "kind": "hang", "at": 3})
    stopped: list[int] = []

    def interrupt(screen: str, process: subprocess.Popen[bytes]) -> None:
        if "step 3/8" in screen and not stopped:
            stopped.append(process.pid)
            process.send_signal(signal.SIGINT)

    code, screen = on_a_terminal(box, 110, interrupt)
    assert (code, len(stopped)) == (1, 1), screen
    assert "Stopped before the film was done; nothing was left running." in screen
    assert "Traceback" not in screen
    assert box.children() == []
    assert not (box.folder / "film.mp4").exists()
    assert not [*box.state.glob("render-*")]


def render(box: Box, *options: str) -> subprocess.CompletedProcess[str]:
    arguments = command(box, *options)
    return subprocess.run(
        arguments, env=box.environ(), capture_output=True, text=True, timeout=60, check=False
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_pipe_gets_plain_lines_and_nothing_is_overwritten_without_force(box: Box) -> None:
    done = render(box, "--keep")
    film, clips = box.folder / "film.mp4", box.folder / "film.clips"
    assert (done.returncode, done.stdout) == (0, f"{film}\n"), done.stderr
    assert not re.search(r"[█░\r\x1b]", done.stderr)
    assert "render_done" in done.stderr
    assert names(clips) == ["000.mp4", "001.mp4"]
    first = film.read_bytes()
    before = box.hosted.now()
    for there, options in ((film, ()), (film, ("--keep",))):
        again = render(box, *options)
        assert again.returncode == 2
        assert f"{there} exists; --force overwrites it" in again.stderr
    film.unlink()
    assert f"{clips} exists; --force overwrites it" in render(box, "--keep").stderr
    assert not box.hosted.events("comfyui.boot", after=before), "it worked before it refused"
    film.write_bytes(b"an older film")
    (clips / "004.mp4").write_bytes(b"a clip of an older film")
    assert render(box, "--keep", "--force", "--seed", "7").returncode == 0
    assert film.stat().st_size > len(first) // 2
    assert names(clips) == ["000.mp4", "001.mp4"]


@pytest.mark.parametrize("output", ["absent/film.mp4", "."])
def test_an_output_that_cannot_be_written_is_a_usage_error(box: Box, output: str) -> None:
    arguments = [*command(box), "-o", str(box.folder / output)]
    done = subprocess.run(arguments, env=box.environ(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "give a file in a folder that exists" in done.stderr
