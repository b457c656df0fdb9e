"""The look-alike tells of a prompt's way, caches and interrupts as the real ComfyUI does."""

from __future__ import annotations

from pathlib import Path

from tests.pictures import picture
from tests.sandbox.conftest import Start
from tests.sandbox.lookalike import (
    SIZE,
    Lookalike,
    changed,
    flf2v,
    hear,
    is_a,
    is_end,
    payload,
    renamed,
)


def test_messages_come_in_the_order_of_the_real_server(comfyui: Lookalike) -> None:
    prompt_id, messages = comfyui.run(flf2v(prefix="order"))
    kinds = [kind for kind, _ in messages]
    assert messages[0][1]["sid"] == "tester"
    assert kinds[:5] == ["status", "status", "status", "execution_start", "execution_cached"]
    assert kinds[5:7] == ["progress_state", "executing"]
    assert kinds[-5:] == [
        "executed", "progress_state", "execution_success", "status", "executing",
    ]  # fmt: skip
    assert kinds.count("executed") == 1
    steps = [data["value"] for kind, data in messages if is_a("progress", node="17")((kind, data))]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert messages[-2][1]["status"]["exec_info"]["queue_remaining"] == 0
    assert messages[-1][1] == {"node": None, "prompt_id": prompt_id}
    nodes = {data["node"] for kind, data in messages if kind == "executing"}
    assert nodes == {*flf2v(), None}


def test_the_history_comes_after_success_was_announced(start: Start) -> None:
    comfyui = start(LOOKALIKE_HISTORY_S="2").ready().upload_pair()
    ws = comfyui.connect()
    prompt_id = comfyui.submit(flf2v(prefix="history")).json()["prompt_id"]
    list(hear(ws, is_a("execution_success")))
    assert comfyui.history(prompt_id) == {}
    list(hear(ws, is_end))
    entry = comfyui.history(prompt_id)[prompt_id]
    assert entry["status"]["status_str"] == "success"
    assert entry["status"]["messages"][-1][0] == "execution_success"
    assert entry["prompt"][1] == prompt_id
    assert entry["prompt"][2]["19"]["inputs"]["frame_rate"] == 24.0
    assert entry["prompt"][3]["client_id"] == "tester"


def test_an_identical_prompt_returns_the_old_file_name(comfyui: Lookalike) -> None:
    graph = flf2v(prefix="jobs/same")
    video = comfyui.video(comfyui.run(graph)[0])
    Path(video["fullpath"]).unlink()
    prompt_id, messages = comfyui.run(graph)
    assert payload(messages, "execution_cached")["nodes"] == list(graph)
    assert comfyui.video(prompt_id) == video
    assert video["filename"] == "same_00001.mp4"
    assert video["subfolder"] == "jobs"
    assert not Path(video["fullpath"]).exists()
    assert [data["node"] for kind, data in messages if kind == "executing"] == [None]


def test_new_node_ids_only_write_the_video_again(comfyui: Lookalike) -> None:
    graph = flf2v(prefix="ids")
    comfyui.run(graph)
    _, messages = comfyui.run(renamed(graph))
    executed = {data["node"] for kind, data in messages if kind == "executing"}
    assert executed == {"100019", None}
    assert payload(messages, "executed")["output"]["gifs"][0]["filename"] == "ids_00002.mp4"


def test_other_bytes_under_the_same_name_are_noticed(comfyui: Lookalike) -> None:
    comfyui.upload("changing.png", picture(SIZE, 3))
    graph = changed("8", image="changing.png")
    comfyui.run(graph)
    comfyui.upload("changing.png", picture(SIZE, 4), overwrite="true")
    _, messages = comfyui.run(graph)
    cached = payload(messages, "execution_cached")["nodes"]
    assert {"7", "9", "15"} <= set(cached)
    assert not {"8", "10", "17"} & set(cached)


def test_a_free_right_after_a_prompt_is_lost_until_the_next_one(start: Start) -> None:
    comfyui = start(LOOKALIKE_SETTLE_S="2").ready().upload_pair()
    wish = {"unload_models": True, "free_memory": True}
    comfyui.run(flf2v())
    comfyui.post("/free", wish)
    _, still_cached = comfyui.run(flf2v())
    _, fresh = comfyui.run(flf2v())
    assert payload(still_cached, "execution_cached")["nodes"] == list(flf2v())
    assert payload(fresh, "execution_cached")["nodes"] == []


def test_an_interrupt_acts_on_the_running_prompt_only(hanging: Lookalike) -> None:
    ws = hanging.connect()
    prompt_id = hanging.submit(flf2v()).json()["prompt_id"]
    waiting = hanging.submit(flf2v(seed=8)).json()["prompt_id"]
    list(hear(ws, is_a("progress", value=2)))
    assert hanging.post("/interrupt", {"prompt_id": waiting}).status_code == 200
    queued = hanging.get("/queue").json()
    assert [item[1] for item in queued["queue_running"]] == [prompt_id]
    assert [item[1] for item in queued["queue_pending"]] == [waiting]
    hanging.post("/queue", {"delete": [waiting, "unknown"]})
    hanging.post("/interrupt", {"prompt_id": prompt_id})
    ending = list(hear(ws, is_end))
    assert payload(ending, "execution_interrupted")["node_type"] == "SamplerCustomAdvanced"
    status = hanging.history(prompt_id)[prompt_id]["status"]
    assert (status["status_str"], status["completed"]) == ("error", False)
    assert hanging.history(waiting) == {}
    assert hanging.get(f"/api/jobs/{prompt_id}").json()["status"] == "cancelled"
    ws.close()


def test_a_client_that_returns_hears_the_running_node_without_its_prompt(
    hanging: Lookalike,
) -> None:
    ws = hanging.connect()
    prompt_id = hanging.submit(flf2v()).json()["prompt_id"]
    list(hear(ws, is_a("progress", value=2)))
    successor = hanging.connect()
    greeting = list(hear(successor, is_a("executing")))
    assert greeting[0][1]["status"]["exec_info"]["queue_remaining"] == 1
    assert greeting[1] == ("executing", {"node": "17"})
    assert hanging.post(f"/api/jobs/{prompt_id}/cancel").json() == {"cancelled": True}
    assert "execution_interrupted" in [kind for kind, _ in hear(successor, is_end)]
    for socket_ in (ws, successor):
        socket_.close()
