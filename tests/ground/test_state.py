"""The state folder: other people's files stay, wherever STATE_DIR points."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ltx.errors import ConfigError
from ltx.job import Job
from ltx.state import MARK, claim_folder, make_own, names_in, note_newest, remove_own, tidy
from tests.conftest import Box


def fill(folder: Path, *names: str) -> set[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("precious")
    return files_in(folder)


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


HOMES = {
    "a home with a ComfyUI": ("comfyui/main.py", "comfyui/models/vae/x.safetensors", "notes.txt"),
    "a project with jobs": ("jobs/nightly/run.sh", "lock"),
    "a folder of pictures": ("render-1/film.mp4",),
    "an old state folder with more in it": ("lock", "status.json", "jobs/a/job.json", "mine.txt"),
    "a job folder with more in it": ("lock", "jobs/a/job.json", "jobs/a/mine.txt"),
    "a ComfyUI in a numbered folder": ("lock", "comfyui/2/main.py"),
}


@pytest.mark.parametrize("command", ["run", "render"])
@pytest.mark.parametrize("names", HOMES.values(), ids=HOMES)
def test_a_folder_of_somebody_elses_is_refused_and_nothing_in_it_changes(
    box: Box, names: tuple[str, ...], command: str
) -> None:
    home = box.folder / "home"
    before = fill(home, *names)
    mode = home.stat().st_mode
    film = ["--prompt", "x", "-o", str(box.folder / "film.mp4")]
    frames = [str(box.watermark)] * 2
    words = [command, *frames, *film] if command == "render" else [command]
    worker = box.start(*words, STATE_DIR=str(home))
    assert worker.wait() == 78
    assert f"STATE_DIR={home}: ltx-worker did not make this folder" in worker.log
    assert f"give STATE_DIR={home}/ltx-worker" in worker.log
    assert files_in(home) == before
    assert home.stat().st_mode == mode


def test_the_doctor_tells_of_a_state_folder_that_is_not_ours(box: Box) -> None:
    before = fill(box.folder / "home", "notes.txt")
    doctor = box.start("doctor", STATE_DIR=str(box.folder / "home"))
    assert doctor.wait() == 1
    assert "FAIL state: STATE_DIR=" in doctor.log
    assert files_in(box.folder / "home") == before


def test_a_state_folder_of_an_earlier_version_is_adopted_and_its_job_goes_on(box: Box) -> None:
    box.add_job()
    assert box.run_once().wait() == 0
    for mark in [*box.state.rglob(MARK)]:
        mark.unlink()
    # It read no texts ahead.
    shutil.rmtree(box.state / "conditioning")
    (box.state / "conditioning.yaml").unlink()
    half_made = box.state / "jobs" / "half-made" / "frames"
    half_made.mkdir(parents=True)
    job = box.add_job()
    assert box.run_once().wait() == 0
    assert (box.state / MARK).is_file()
    assert not half_made.exists()
    assert box.hosted.job(job)["state"] == "completed"


def test_what_others_put_into_our_folder_stays(tmp_path: Path) -> None:
    claim_folder(tmp_path)
    mine = fill(tmp_path, "jobs/mine/a.txt", "comfyui/8188/main.py", "render-2/film.mp4")
    Job(tmp_path / "jobs" / "ours").create(None)
    (tmp_path / "jobs" / "ours" / "job.json").unlink()
    tidy(tmp_path)
    assert not (tmp_path / "jobs" / "ours").exists()
    Job(tmp_path / "jobs" / "mine").remove()
    assert files_in(tmp_path) >= mine
    with pytest.raises(FileExistsError, match="not made by ltx-worker"):
        Job(tmp_path / "jobs" / "mine").create(None)


def test_a_link_that_looks_like_ours_is_not_followed(tmp_path: Path) -> None:
    elsewhere = make_own(tmp_path / "elsewhere")
    mine = fill(elsewhere, "a.txt")
    (tmp_path / "link").symlink_to(elsewhere)
    remove_own(tmp_path / "link")
    ours = make_own(tmp_path / "ours")
    (ours / "link").symlink_to(elsewhere)
    remove_own(ours)
    assert not ours.exists()
    assert files_in(elsewhere) == mine


def test_only_the_newest_of_our_own_files_are_kept(tmp_path: Path) -> None:
    folder = make_own(tmp_path / "logs")
    fill(folder, "comfyui-0.log")
    for number in range(1, 5):
        fill(folder, f"comfyui-{number}.log")
        note_newest(folder, [f"comfyui-{number}.log"], 2)
    kept = {"comfyui-0.log", "comfyui-3.log", "comfyui-4.log"}
    assert {path.name for path in folder.glob("*.log")} == kept


def test_a_removal_that_was_cut_short_is_taken_up_again(tmp_path: Path) -> None:
    job = Job(make_own(tmp_path / "state") / "jobs" / "a")
    job.create({"frames": []})
    assert json.loads(job.order.read_text()) == {"stageData": {"frames": []}}
    job.order.unlink()
    (job.folder / "frames").rmdir()
    tidy(tmp_path / "state")
    assert not job.folder.exists()


def test_a_new_state_folder_is_made_with_its_parents_and_for_us_alone(tmp_path: Path) -> None:
    state = tmp_path / "a" / "b"
    claim_folder(state)
    claim_folder(state)
    assert (state / MARK).is_file()
    assert state.stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConfigError, match="a/ltx-worker"):
        claim_folder(tmp_path / "a")


def test_a_mark_that_was_cut_short_makes_no_folder_somebody_elses(tmp_path: Path) -> None:
    """A full disk, or a kill, leaves its half behind."""
    for name, make in (("state", claim_folder), ("job", make_own)):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".ltx-worker.part").touch()
        make(tmp_path / name)
        assert names_in(tmp_path / name) == {".ltx-worker"}
