"""Reading texts in the look-alike: what it takes, where it takes room, and what goes wrong."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.conftest import Start
from tests.sandbox.lookalike import (
    PATIENCE_S,
    Control,
    Json,
    Lookalike,
    flf2v,
    from_files,
    hear,
    is_a,
    is_end,
    key_of,
    pack_flags,
    payload,
    texts,
)

BOTH = ("walk on", "blurry")


def test_a_resting_encoder_leaves_the_card_and_is_not_loaded_again(
    start: Start, tmp_path: Path
) -> None:
    control = Control(*[{}] * 4)
    comfyui = start(*pack_flags(tmp_path), LOOKALIKE_CONTROL_URL=control.url).ready()
    idle = comfyui.free_vram()
    comfyui.run(texts(rest=False))
    assert comfyui.free_vram() == idle
    comfyui.run(texts("walk on", rest=False))
    assert idle - comfyui.free_vram() > 10**10
    _, messages = comfyui.run(texts("walk off"))
    assert comfyui.free_vram() == idle
    assert payload(messages, "execution_cached")["nodes"] == ["1"]
    encoded = [event["text"] for event in control.events if event["event"] == "encoded"]
    assert encoded == ["walk on", "walk off"]


def test_after_free_an_encoder_is_off_the_card_only_after_a_while(
    start: Start, tmp_path: Path
) -> None:
    def missing(collect: str) -> int:
        comfyui = start(*pack_flags(tmp_path / collect), LOOKALIKE_COLLECT_S=collect).ready()
        idle = comfyui.free_vram()
        comfyui.run(texts("walk on", rest=False))
        comfyui.post("/free", {"unload_models": True})
        # Once another prompt is over, the wish has been heard.
        comfyui.run(texts(rest=False))
        return idle - comfyui.free_vram()

    assert missing("60") > 10**10
    assert missing("0") == 0


# By setting: prompts that do not pay for it, and prompts of which the last one does.
Prompts = Callable[[], list[Json]]
TIMES: dict[str, tuple[Prompts, Prompts]] = {
    "TEXT_LOAD": (lambda: [from_files()], lambda: [texts(rest=False)]),
    "TEXT_MOVE": (lambda: [texts(rest=False), from_files()], lambda: [texts("walk off")]),
    "TEXT": (lambda: [texts(rest=False), from_files()], lambda: [texts("walk off")]),
    "REST": (lambda: [texts("walk off", rest=False)], lambda: [texts("walk off")]),
    "LOAD": (lambda: [texts(*BOTH)], lambda: [from_files()]),
    "WARM_LOAD": (lambda: [from_files()], lambda: [from_files(), from_files(seed=2)]),
    "SHUFFLE": (lambda: [texts(*BOTH), from_files()], lambda: [flf2v()]),
    "WARM_SHUFFLE": (
        lambda: [flf2v(), from_files(seed=2)],
        lambda: [flf2v(), other_text()],
    ),
}


def other_text() -> Json:
    graph = flf2v(seed=2)
    graph["3"]["inputs"]["text"] = "walk off"
    return graph


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of both texts."""
    folder = tmp_path_factory.mktemp("texts")
    reader = Lookalike(folder / "own", *pack_flags(folder)).ready()
    reader.run(texts(*BOTH))
    reader.end()
    return folder


@pytest.mark.parametrize("setting", TIMES)
def test_each_time_is_spent_where_it_belongs(start: Start, home: Path, setting: str) -> None:
    """Those who do not pay would not come to an end within the patience of a test."""
    spare, pay = TIMES[setting]
    endless, slow = (
        start(*pack_flags(home), **{f"LOOKALIKE_{setting}_S": seconds}).ready().upload_pair()
        for seconds in ("600", "0.3")
    )
    for graph in spare():
        ended(endless, graph)
    *before, last = pay()
    for graph in before:
        ended(slow, graph)
    began = time.monotonic()
    ended(slow, last)
    assert time.monotonic() - began >= 0.3


def ended(comfyui: Lookalike, graph: Json) -> None:
    _, messages = comfyui.run(graph)
    assert "execution_success" in [kind for kind, _ in messages]


FAULTS: dict[str, tuple[Json, Any]] = {
    "dies": ({"kind": "kill"}, -9),
    "crashes": ({"kind": "segfault"}, -11),
    "runs out of memory": ({"kind": "oom"}, "torch.OutOfMemoryError"),
    "fails": ({"kind": "execution_error"}, "RuntimeError"),
}


def scripted(fault: Json, event: str = "text") -> str:
    return json.dumps({"on": event, **fault})


@pytest.mark.parametrize("name", FAULTS)
def test_a_text_prompt_can_go_wrong_at_any_text(start: Start, tmp_path: Path, name: str) -> None:
    fault, end = FAULTS[name]
    standing = scripted({**fault, "at": 2})
    comfyui = start(*pack_flags(tmp_path), LOOKALIKE_FAULT=standing).ready().upload_pair()
    if isinstance(end, int):
        comfyui.submit(texts(*BOTH))
        assert comfyui.process.wait(PATIENCE_S) == end
    else:
        _, messages = comfyui.run(texts(*BOTH))
        error = payload(messages, "execution_error")
        assert (error["node_type"], error["exception_type"]) == ("CLIPTextEncode", end)
        assert "execution_success" in [kind for kind, _ in comfyui.run(flf2v())[1]]
    kept = [path.name for path in (tmp_path / "conditioning").iterdir()]
    assert kept == [key_of("walk on")]


def test_it_can_hang_at_a_text_until_it_is_interrupted(start: Start, tmp_path: Path) -> None:
    fault = scripted({"kind": "hang"})
    comfyui = start(*pack_flags(tmp_path), LOOKALIKE_FAULT=fault).ready()
    ws = comfyui.connect()
    prompt_id = comfyui.submit(texts("walk on")).json()["prompt_id"]
    list(hear(ws, is_a("executing", node="20")))
    comfyui.post("/interrupt", {"prompt_id": prompt_id})
    ending = list(hear(ws, is_end))
    assert payload(ending, "execution_interrupted")["node_type"] == "CLIPTextEncode"
    ws.close()


def test_loading_ahead_can_go_wrong_without_a_text(start: Start, tmp_path: Path) -> None:
    fault = scripted({"kind": "kill"}, "hold")
    comfyui = start(*pack_flags(tmp_path), LOOKALIKE_FAULT=fault).ready()
    ended(comfyui, texts("walk on"))
    comfyui.submit(texts(rest=False))
    # Loaded by now, so there is nothing that could go wrong.
    fresh = start(*pack_flags(tmp_path), LOOKALIKE_FAULT=fault).ready()
    fresh.submit(texts(rest=False))
    assert fresh.process.wait(PATIENCE_S) == -signal.SIGKILL
    assert comfyui.process.poll() is None


@pytest.mark.parametrize("event", ["text", "prompt"])
def test_a_file_can_be_damaged_as_it_is_written_or_before_it_is_read(
    start: Start, tmp_path: Path, event: str
) -> None:
    fault = scripted({"kind": "damaged"}, event)
    comfyui = start(*pack_flags(tmp_path), LOOKALIKE_FAULT=fault).ready().upload_pair()
    ended(comfyui, texts(*BOTH))
    _, messages = comfyui.run(from_files())
    error = payload(messages, "execution_error")
    assert error["node_type"] == "LTXWorkerLoadConditioning"
    assert "is damaged" in error["exception_message"]


def test_a_pack_that_does_not_load_leaves_all_else_as_it_is(start: Start, tmp_path: Path) -> None:
    fault = json.dumps({"on": "boot", "kind": "pack_broken"})
    comfyui = start(*pack_flags(tmp_path), LOOKALIKE_FAULT=fault)
    assert "(IMPORT FAILED)" in comfyui.wait_for_line("To see the GUI go to")
    comfyui.upload_pair()
    assert comfyui.get("/object_info/LTXWorkerLoadConditioning").json() == {}
    ended(comfyui, flf2v())


def test_prompts_that_render_nothing_are_told_apart_from_clips(start: Start, home: Path) -> None:
    control = Control({"kind": "oom", "at": 1})
    url = {"LOOKALIKE_CONTROL_URL": control.url}
    comfyui = start(*pack_flags(home), **url).ready().upload_pair()
    ended(comfyui, texts(rest=False))
    ended(comfyui, texts("walk off"))
    _, messages = comfyui.run(from_files())
    assert payload(messages, "execution_error")["node_type"] == "SamplerCustomAdvanced"
    told = [event["event"] for event in control.events]
    assert [one for one in told if one in ("hold", "text", "prompt")] == ["hold", "text", "prompt"]
