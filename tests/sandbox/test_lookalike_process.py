"""The look-alike boots, ends and fails as the process of the real ComfyUI does."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.sandbox.conftest import Start
from tests.sandbox.lookalike import (
    PATIENCE_S,
    Control,
    Lookalike,
    flf2v,
    payload,
)


def test_a_taken_port_is_noticed_only_after_a_whole_boot(comfyui: Lookalike, start: Start) -> None:
    second = start(port=comfyui.port)
    seen = second.wait_for_line("already in use")
    assert "Starting server" in seen
    assert f"Port {comfyui.port} is already in use on address 127.0.0.1" in seen
    assert second.process.wait(PATIENCE_S) == 1


def test_an_unknown_flag_ends_it_with_a_usage_message(start: Start) -> None:
    wrong = start("--no-such-flag")
    assert wrong.process.wait(PATIENCE_S) == 2
    assert "unrecognized arguments: --no-such-flag" in wrong.wait_for_line("unrecognized")


def test_sigterm_kills_it_and_sigint_stops_it_cleanly(start: Start) -> None:
    killed, stopped = start().ready(), start().ready()
    for one in (killed, stopped):
        (one.folder / "temp").mkdir()
    killed.process.send_signal(signal.SIGTERM)
    stopped.process.send_signal(signal.SIGINT)
    assert killed.process.wait(PATIENCE_S) == -signal.SIGTERM
    assert stopped.process.wait(PATIENCE_S) == 0
    assert "Stopped server" in stopped.wait_for_line("Stopped server")
    assert (killed.folder / "temp").exists()
    assert not (stopped.folder / "temp").exists()


def test_it_is_gone_with_the_first_sigterm_however_many_follow(start: Start) -> None:
    dying = start(LOOKALIKE_TERM_S="0.4").ready()
    deadline = time.monotonic() + PATIENCE_S
    # Each far sooner than the 0.4 s, so that it would never end if another one began them anew.
    while dying.process.poll() is None and time.monotonic() < deadline:
        dying.process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert dying.process.poll() == -signal.SIGTERM


def test_it_says_which_process_itis_a(comfyui: Lookalike) -> None:
    stats = comfyui.get("/system_stats").json()
    assert stats["system"]["comfyui_version"] == "0.27.0"
    assert stats["system"]["argv"][:5] == [
        "main.py", "--listen", "127.0.0.1", "--port", str(comfyui.port),
    ]  # fmt: skip
    assert stats["devices"][0]["vram_total"] > stats["devices"][0]["vram_free"] > 0


def test_a_foreign_page_is_refused(comfyui: Lookalike) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert comfyui.get("/system_stats", headers=headers).status_code == 403
    assert comfyui.get("/api/system_stats", headers={"Origin": comfyui.url}).status_code == 200


def test_the_control_server_hears_the_story_and_changes_it(start: Start) -> None:
    control = Control({"kind": "oom", "at": 2})
    comfyui = start(LOOKALIKE_CONTROL_URL=control.url).ready().upload_pair()
    prompt_id, messages = comfyui.run(flf2v())
    comfyui.process.send_signal(signal.SIGINT)
    comfyui.process.wait(PATIENCE_S)
    control.server.shutdown()
    names = [event["event"] for event in control.events]
    # It is told beside the first uploads, as the port is open by then.
    names.remove("ready")
    uploads = ["upload"] * 2
    texts, steps = ["encoded"] * 2, ["step"] * 2
    story = ["boot", *uploads, "prompt", "start", *texts, *steps, "done", "exit"]
    assert names == story
    assert {event["pid"] for event in control.events} == {comfyui.process.pid}
    assert control.events[-2]["promptId"] == prompt_id
    assert payload(messages, "execution_error")["exception_type"] == "torch.OutOfMemoryError"


@pytest.mark.parametrize(
    ("kind", "code"), [("segfault", -signal.SIGSEGV), ("kill", -signal.SIGKILL)]
)
def test_it_can_die_in_the_middle(start: Start, kind: str, code: int) -> None:
    fault = json.dumps({"kind": kind, "at": 1})
    comfyui = start(LOOKALIKE_FAULT=fault).ready().upload_pair()
    comfyui.submit(flf2v())
    assert comfyui.process.wait(PATIENCE_S) == code


def test_it_can_fail_to_boot(start: Start) -> None:
    fault = json.dumps({"on": "boot", "kind": "exit", "rc": 3, "message": "No module named torch"})
    broken = start(LOOKALIKE_FAULT=fault)
    assert broken.process.wait(PATIENCE_S) == 3
    broken.wait_for_line("No module named torch")
