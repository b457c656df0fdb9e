"""The doctor tries each thing for real: break it, and the line says what and what to type."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from ltx.cancellation import Cancellation
from ltx.comfyui.answers import find_gaps
from ltx.comfyui.workflow import ClipSpec, build_workflow
from ltx.film.clip_gate import measure_clip
from ltx.film.clips import Placement, contact_sheet, encode_clip
from ltx.film.ffmpeg import ffmpeg_command, read_clip
from ltx.film.formats import Canvas, Layout
from ltx.film.pictures import UPRIGHT, Picture, frame_command
from ltx.operator.checks import CHECKS, FILTERS, weigh_memory
from ltx.operator.comfyui_checks import tell_gap
from ltx.operator.doctor import examine
from ltx.operator.findings import DoctorContext, Finding
from ltx.settings import Settings, Size
from sandbox.client import ROOT, Hosted, free_port
from sandbox.edges import DENIALS, MISSING
from tests.conftest import Box, foreign_comfyui, install
from tests.pictures import picture
from tests.programs import stand_in

sys.path.insert(0, str(ROOT / "sandbox" / "comfyui"))

from schemas import VERSIONS, load_schemas

RTX_5090 = "NVIDIA GeForce RTX 5090, 32607, 580.95.05"


@pytest.fixture
def box(tmp_path: Path, session_hosted: Hosted) -> Iterator[Box]:
    """Checks only read, and one box's probe is in nobody's way, so one hosted side does."""
    box = Box(tmp_path, session_hosted)
    yield box
    for worker in box.running:
        worker.end()
    session_hosted.clear_faults()
    session_hosted.clear_comfyui_script()


def look(box: Box, name: str, **changes: str) -> list[Finding]:
    """What one check says of the box."""
    cancellation = Cancellation()
    context = DoctorContext(
        Settings.load(box.environ(**{"LTX_TEXT": "job", **changes})), cancellation
    )
    with context.undo:
        return list(examine(context, [check for check in CHECKS if check.name == name]))


def without(box: Box, word: str) -> str:
    """The PATH on which ffmpeg was built without something."""
    return stand_in(box.folder, "ffmpeg", f'{shutil.which("ffmpeg")} "$@" | sed "s/{word}/other/g"')


def only(found: list[Finding]) -> tuple[str, str, str]:
    [finding] = found
    return finding.status, finding.detail, finding.next


def test_the_filters_asked_for_are_those_that_the_commands_use() -> None:
    one, two, three = (Path(name) for name in ("/a", "/b", "/c"))
    size, turned = Size(9, 9), 6
    layout = Layout("webp_pipe", size, Canvas(12, 12, 1, 1), turned, b"", alpha=True, parts=())
    streams = [
        frame_command(Picture("", one, layout), one, "a.cube", three, Size(128, 96)),
        encode_clip(read_clip(one), two, Size(128, 72), three, Placement(0, 0, 9, 9)),
        measure_clip(read_clip(one), two, three, Size(128, 96)),
        contact_sheet(one, two),
    ]
    graphs = [word for stream in streams for word in ffmpeg_command(stream) if "[" in word]
    used = {name for graph in graphs for name in re.findall(r"\](\w+)", graph)}
    upright = {name for steps in UPRIGHT.values() for name, _ in steps}
    assert set(FILTERS) == used | upright | {"alphaextract"}


@pytest.mark.parametrize(
    ("word", "told"),
    [
        *((f"\\b{name}\\b", f"no filter {name}") for name in ("overlay", FILTERS[-1])),
        ("libx264", "no encoder libx264"),
        ("D\\(.*\\) webp ", "no decoder webp"),
    ],
)
def test_an_ffmpeg_that_lacks_something_fails(box: Box, word: str, told: str) -> None:
    status, detail, then = only(look(box, "ffmpeg", PATH=without(box, word)))
    assert (status, then) == ("FAIL", "sudo apt install ffmpeg")
    assert told in detail


def test_an_absent_ffprobe_fails(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stand_in(box.folder, "ffmpeg", "exit 0").partition(":")[0]
    monkeypatch.setenv("PATH", path)
    status, detail, then = only(look(box, "programs"))
    assert (status, then) == ("FAIL", "sudo apt install ffmpeg util-linux coreutils")
    assert "ffprobe" in detail


@pytest.mark.parametrize(
    ("name", "changes", "told", "then"),
    [
        ("api", {"VIDEOGEN_WORKER_SECRET": "not-the-right-one"}, "refused", "nano "),
        ("api", {"API_URL": "http://127.0.0.1:1"}, "Connection", "curl -i http://127.0.0.1:1"),
        ("blob", {"BLOB_READ_WRITE_TOKEN": "vercel_blob_rw_x_y"}, "forbidden", "nano "),
        ("blob", {"BLOB_ACCESS": "private"}, "set BLOB_ACCESS", "nano "),
        ("blob", {"VERCEL_BLOB_API_URL": "http://127.0.0.1:1"}, "Connection", "curl -i http://127"),
        ("watermark", {"WATERMARK_PATH": "/absent.png"}, "missing or empty", "file /absent.png"),
    ],
)
def test_a_wrong_setting_fails(
    box: Box, name: str, changes: dict[str, str], told: str, then: str
) -> None:
    found = only(look(box, name, **changes))
    assert found[0] == "FAIL"
    assert told in found[1]
    assert found[2].startswith(then)


def test_the_probe_leaves_nothing_in_the_store_and_a_delete_that_fails_is_told(box: Box) -> None:
    before = set(box.hosted.blobs())
    assert only(look(box, "blob"))[0] == "OK"
    assert set(box.hosted.blobs()) == before
    error = {"error": {"code": "forbidden", "message": "no deletes today"}}
    box.hosted.fault("POST /api/blob/delete", status=403, body=error)
    status, detail, _ = only(look(box, "blob"))
    assert status == "FAIL"
    assert "no deletes today" in detail


@pytest.mark.parametrize(
    ("date", "told"),
    [("Tue, 01 Jan 2999 00:00:00 GMT", "behind it"), ("Tue, 01 Jan 2019 00:00:00 GMT", "ahead of")],
)
def test_a_clock_that_disagrees_with_the_api_warns(box: Box, date: str, told: str) -> None:
    box.hosted.fault("* /api/videogen/*", times=-1, status=200, body={}, headers={"Date": date})
    status, detail, then = only(look(box, "api"))
    assert (status, then) == ("WARN", "sudo timedatectl set-ntp true")
    assert told in detail


def test_the_calls_that_the_api_has_are_told_and_no_job_is_touched(box: Box) -> None:
    job, before = box.add_job(), box.hosted.requests("GET */pending")
    status, detail, _ = only(look(box, "api"))
    assert status == "OK"
    assert detail.endswith("takes our secret; it has register, heartbeat, claim, complete, fail")
    assert box.hosted.job(job)["offers"] == 0
    assert box.hosted.requests("GET */pending") == before
    box.hosted.cancel(job)


@pytest.mark.parametrize("edge", [*MISSING, "json"])
@pytest.mark.parametrize(
    ("call", "status", "told"),
    [
        ("register", "OK", "has heartbeat, claim, complete, fail, and is fine without register"),
        ("claim", "OK", "and is fine without claim"),
        ("heartbeat", "WARN", "it has no heartbeat: nobody sees"),
        ("fail", "WARN", "it has no fail: a job that fails is let go of"),
        ("complete", "FAIL", "it has no complete: no film can be reported"),
    ],
)
def test_a_call_that_the_api_does_not_have_is_told_from_a_job_that_nobody_has(
    box: Box, edge: str, call: str, status: str, told: str
) -> None:
    missing = (
        {"status": 404, "body": {"error": "nothing here"}} if edge == "json" else MISSING[edge]
    )
    for name in (call, "no-such-call"):
        box.hosted.fault(f"* /api/videogen/*{name}", **missing)
    found = only(look(box, "api"))
    assert found[0] == status
    assert told in found[1]


@pytest.mark.parametrize("edge", [*DENIALS, *MISSING, "200 page"])
def test_an_address_where_no_api_answers_fails(box: Box, edge: str) -> None:
    box.hosted.fault("*", times=-1, edge=edge)
    status, detail, then = only(look(box, "api"))
    assert (status, then) == ("FAIL", f"curl -i {box.hosted.url}")
    assert edge != "www" or "set API_URL=https://www.example.com" in detail


def test_a_working_workers_heartbeat_is_left_to_that_worker(box: Box) -> None:
    mark, before = box.hosted.now(), len(box.hosted.requests("POST */heartbeat"))
    worker = box.start("run", HEARTBEAT_INTERVAL_S="600")
    box.hosted.wait("heartbeat", after=mark)
    found = only(look(box, "api"))
    worker.end()
    assert found[0] == "OK"
    assert len(box.hosted.requests("POST */heartbeat")) == before + 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_opaque_watermark_warns(box: Box, mode: str) -> None:
    opaque = Image.open(io.BytesIO(picture((60, 40), 1))).convert(mode)
    opaque.save(box.watermark)
    status, detail, _ = only(look(box, "watermark"))
    assert (status, "opaque" in detail) == ("WARN", True)


def test_a_full_disk_fails(box: Box) -> None:
    box.state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(box.state)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        status, detail, then = only(look(box, "disk"))
    finally:
        subprocess.run(["umount", "--lazy", str(box.state)], check=True)
    assert (status, then) == ("FAIL", f"du -xh {box.state} | sort -h")
    assert "1 MB free" in detail


def test_memory_is_weighed_with_swap() -> None:
    gb = 2**20
    both, ram, more = (
        f"MemTotal: {16 * gb} kB\nSwapTotal: {swap * gb} kB\n" for swap in (16, 0, 8)
    )
    assert [weigh_memory(one, "clip")[0] for one in (both, ram, more)] == ["OK", "WARN", "WARN"]
    assert [weigh_memory(one, "job")[0] for one in (both, ram, more)] == ["OK", "WARN", "OK"]
    assert weigh_memory(ram, "job")[1].startswith("16 GB RAM, 0 GB swap; ")


def gpu(box: Box, name: str, compute: str, **changes: str) -> list[Finding]:
    answer = f'case "$*" in *compute_cap*) echo {compute};; *) echo "{name}";; esac'
    return look(box, "gpu", PATH=stand_in(box.folder, "nvidia-smi", answer), **changes)


def test_a_gpu_is_named_and_blackwell_is_warned_of_what_is_risky_there(box: Box) -> None:
    assert only(gpu(box, RTX_5090, "12.0")) == (
        "OK",
        "NVIDIA GeForce RTX 5090, 32607 MB, driver 580.95.05",
        "",
    )
    risky = {
        "LTX_TEXT_ENCODER": "gemma_3_12B_it_fp8_scaled.safetensors",
        "COMFYUI_RESTART": "job",
    }
    assert [one.next for one in gpu(box, RTX_5090, "12.0", COMFYUI_RESTART="job")] == [""]
    found = gpu(box, RTX_5090, "12.0", LTX_TEXT="clip", **risky)
    assert [finding.status for finding in found] == ["WARN"] * 2
    assert [name for name, one in zip(risky, found, strict=True) if name in one.next] == [*risky]
    assert only(gpu(box, "NVIDIA H200, 143771, 580.159.04", "9.0", **risky))[0] == "OK"


def test_a_small_gpu_and_none_warn(box: Box) -> None:
    status, detail, _ = only(gpu(box, "NVIDIA GeForce RTX 4090, 24564, 570.1", "8.9"))
    assert (status, detail[:8]) == ("WARN", "24564 MB")
    path = stand_in(box.folder, "nvidia-smi", "echo 'No devices were found'; exit 6")
    assert only(look(box, "gpu", PATH=path))[:2] == ("WARN", "nvidia-smi tells of no GPU")


def test_a_python_that_does_not_run_fails(box: Box) -> None:
    python = stand_in(box.folder, "python", "exit 1").partition(":")[0] + "/python"
    status, _, then = only(look(box, "interpreter", COMFYUI_PYTHON=python))
    assert (status, then) == ("FAIL", f"{python} --version")


def test_a_comfyui_that_does_not_boot_fails_with_its_last_words(box: Box) -> None:
    fault = {"on": "boot", "kind": "exit", "rc": 1, "message": "CUDA driver is too old"}
    box.hosted.script_comfyui(fault)
    status, detail, then = only(look(box, "comfyui"))
    assert status == "FAIL"
    assert "CUDA driver is too old" in detail
    assert then == f"cd {box.settings['COMFYUI_DIR']} && {sys.executable} main.py"
    remote = only(look(box, "comfyui", COMFYUI_URL=f"http://127.0.0.2:{free_port()}"))
    assert remote[0] == "FAIL"
    assert "No ComfyUI answers" in remote[1]


def test_a_comfyui_that_answers_is_looked_at_and_left_as_it_was(box: Box) -> None:
    with foreign_comfyui(box) as comfyui:
        after = box.hosted.now()
        status, detail, _ = only(look(box, "comfyui"))
        assert (status, f":{box.port} and is not ended" in detail) == ("OK", True)
        assert only(look(box, "workflow"))[0] == "OK"
        assert comfyui.process.poll() is None
        assert not box.hosted.events("comfyui.free", after=after)


@pytest.mark.parametrize("version", VERSIONS)
def test_each_gap_in_comfyui_is_told_with_what_closes_it(box: Box, version: str) -> None:
    settings = Settings.load(box.environ())
    spec = ClipSpec(0, "first.png", "last.png", "", 0, "probe", Size(256, 160))
    workflow = build_workflow(spec, settings)

    def told(**lack: set[str]) -> list[tuple[str, str]]:
        found = find_gaps(workflow, load_schemas(version, **lack))
        return [tell_gap(gap, settings) for gap in found]

    assert told() == []
    for kind in {node["class_type"] for node in workflow.values()}:
        [(detail, fix)] = told(missing_nodes={kind})
        assert f"Node {kind} is missing; install " in detail
        assert fix.startswith(("git clone https://github.com/", "git -C "))
    for model in (settings.checkpoint, settings.text_encoder, settings.text_projection):
        [(detail, fix)] = told(missing_models={model})
        assert detail.startswith(f"Put {model} into ")
        assert fix.startswith(("curl -fL -o ", "ls "))


def test_an_input_that_an_older_pack_spells_otherwise_and_a_sampler_it_lacks_are_told(
    box: Box,
) -> None:
    settings = Settings.load(box.environ())
    spec = ClipSpec(0, "first.png", "last.png", "", 0, "probe", Size(256, 160))
    spoilt = json.dumps(load_schemas()).replace('"image_2"', '"image.2"')
    known = json.loads(spoilt.replace(f'"{settings.sampler}"', '"gone"'))
    details = [gap.detail for gap in find_gaps(build_workflow(spec, settings), known)]
    assert sorted(details) == [
        f"Node KSamplerSelect of ComfyUI knows no sampler_name {settings.sampler!r}; "
        "update the older of ComfyUI and ltx-worker.",
        "Node LTXVImgToVideoInplaceKJ of ComfyUI-KJNodes has no input num_images.image_2; "
        "update the older of ComfyUI-KJNodes and ltx-worker.",
    ]


def test_without_systemd_the_service_warns(box: Box) -> None:
    path = stand_in(box.folder, "systemctl", "exit 1")
    assert "nothing restarts the worker" in only(look(box, "service", PATH=path))[1]


def test_a_broken_box_is_told_whole_and_what_hangs_on_a_failure_is_skipped(box: Box) -> None:
    """The real command, in a folder whose .env the neighbours can read."""
    home = box.folder / "ltx-worker"
    home.mkdir()
    (home / ".env").write_text("LTX_SAMPLER=euler\n")
    (home / ".env").chmod(0o644)
    python = stand_in(box.folder, "python", "exit 1").partition(":")[0] + "/python"
    environ = box.environ(COMFYUI_PYTHON=python, VIDEOGEN_WORKER_SECRET="not-the-right-one")
    command = [sys.executable, str(install(home)), "doctor"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    failed = [line.split()[1] for line in lines if line.startswith("FAIL")]
    assert failed == ["env", "interpreter:", "api:"]
    for number, line in enumerate(lines):
        if line.startswith("FAIL"):
            assert lines[number + 1].startswith("     next: "), line
    assert f"     next: chmod 600 {home}/.env" in lines
    assert "WARN comfyui: skipped, as interpreter failed" in lines
    assert "WARN workflow: skipped, as comfyui failed" in lines
    assert "not-the-right-one" not in done.stdout + done.stderr


def test_the_quick_checks_refuse_a_start_but_an_absent_watermark_only_warns(box: Box) -> None:
    python = stand_in(box.folder, "python", "exit 1").partition(":")[0] + "/python"
    worker = box.start("run", WATERMARK_PATH="/absent.png", COMFYUI_PYTHON=python)
    assert worker.wait() == 78
    assert f"ltx_worker: COMFYUI_PYTHON={python} does not run. Next: {python} --ver" in worker.log
    box.add_job()
    assert box.run_once(WATERMARK_PATH="/absent.png").wait() == 0
    assert "watermark_missing" in box.running[-1].log


def test_the_unit_that_the_doctor_installs_is_there() -> None:
    assert (ROOT / "systemd" / "ltx-worker.service").is_file()
