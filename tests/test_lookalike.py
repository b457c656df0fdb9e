"""The ComfyUI look-alike keeps the habits that were measured on the real one."""

from __future__ import annotations

import json
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import websocket

from tests.pictures import Array, likeness, paint, picture

PROGRAM = Path(__file__).resolve().parent.parent / "sandbox" / "comfyui"
sys.path.insert(0, str(PROGRAM))

from schemas import VERSIONS, load_schemas  # noqa: E402
from validation import validate  # noqa: E402

Json = dict[str, Any]
Message = tuple[str, Json]
SIZE = (128, 96)
FRAMES = 25
PATIENCE_S = 15
QUICK = {"BOOT": "0.05", "LOAD": "0.02", "WARM_LOAD": "0.01", "STEP": "0.01", "DECODE": "0"}


class Lookalike:
    """A running look-alike with folders of its own, and one client of it."""

    def __init__(self, folder: Path, *flags: str, port: int = 0, **env: str) -> None:
        self.folder = folder
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client_id = "tester"
        self.lines: queue.Queue[str] = queue.Queue()
        self.process = self._start(flags, env)
        threading.Thread(target=self._read_output, daemon=True).start()

    def _start(self, flags: tuple[str, ...], env: dict[str, str]) -> subprocess.Popen[str]:
        address = ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch"]
        folders = [
            *("--temp-directory", str(self.folder)),
            *("--input-directory", str(self.folder / "input")),
            *("--output-directory", str(self.folder / "output")),
            *("--database-url", "sqlite:///:memory:"),
        ]
        quick = {f"LOOKALIKE_{name}_S": value for name, value in QUICK.items()}
        return subprocess.Popen(
            [sys.executable, "main.py", *address, *folders, *flags],
            cwd=PROGRAM,
            env={"PATH": "/usr/bin:/bin", "LOOKALIKE_STOP_S": "0.1", **quick, **env},
            stderr=subprocess.PIPE,
            text=True,
        )

    def _read_output(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.put(line)

    def wait_for_line(self, text: str) -> str:
        seen = ""
        while text not in seen:
            seen += self.lines.get(timeout=PATIENCE_S)
        return seen

    def ready(self) -> Lookalike:
        try:
            self.wait_for_line("To see the GUI go to")
        except queue.Empty:
            # A fixture that gets no further has nothing yet that it could end.
            self.end()
            raise
        return self

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=PATIENCE_S, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=PATIENCE_S, **options)

    def upload(self, name: str, content: bytes, **form: str) -> requests.Response:
        return self.post("/upload/image", files={"image": (name, content)}, data=form)

    def upload_pair(self) -> Lookalike:
        self.upload("first.png", picture(SIZE, 1))
        self.upload("last.png", picture(SIZE, 2))
        return self

    def connect(self) -> websocket.WebSocket:
        address = f"ws://127.0.0.1:{self.port}/ws?clientId={self.client_id}"
        return websocket.create_connection(address, timeout=PATIENCE_S)

    def submit(self, graph: Json, **more: Any) -> requests.Response:
        return self.post("/prompt", {"prompt": graph, "client_id": self.client_id, **more})

    def run(self, graph: Json, **more: Any) -> tuple[str, list[Message]]:
        """Submit, and hear everything up to the end."""
        ws = self.connect()
        prompt_id = self.submit(graph, **more).json()["prompt_id"]
        messages = list(hear(ws, _is_end))
        ws.close()
        return prompt_id, messages

    def history(self, prompt_id: str) -> Json:
        history: Json = self.get(f"/history/{prompt_id}").json()
        return history

    def video(self, prompt_id: str) -> Json:
        video: Json = self.history(prompt_id)[prompt_id]["outputs"]["19"]["gifs"][0]
        return video


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def hear(ws: websocket.WebSocket, last: Callable[[Message], bool]) -> Iterator[Message]:
    while True:
        received = json.loads(ws.recv())
        message = received["type"], received["data"]
        yield message
        if last(message):
            return


def _is_end(message: Message) -> bool:
    kind, data = message
    return kind == "executing" and data["node"] is None


def _is(kind: str, **wanted: Any) -> Callable[[Message], bool]:
    return lambda message: message[0] == kind and wanted.items() <= message[1].items()


def payload(messages: list[Message], kind: str) -> Json:
    return next(data for name, data in messages if name == kind)


def flf2v(seed: int = 7, prefix: str = "clips/one", length: int = FRAMES) -> Json:
    """The recipe's graph, small."""
    classes: list[tuple[str, Json]] = [
        ("CheckpointLoaderSimple", {"ckpt_name": "ltx-2.3-22b-distilled-fp8.safetensors"}),
        ("DualCLIPLoaderGGUF", {
            "clip_name1": "gemma-3-12b-it-qat-Q4_K_M.gguf",
            "clip_name2": "ltx-2.3_text_projection_bf16.safetensors",
            "type": "ltxv",
        }),
        ("CLIPTextEncode", {"text": "walk on", "clip": ["2", 0]}),
        ("CLIPTextEncode", {"text": "blurry", "clip": ["2", 0]}),
        ("LTXVConditioning", {"positive": ["3", 0], "negative": ["4", 0], "frame_rate": 24}),
        ("LTX2_NAG", {
            "model": ["1", 0], "nag_cond_video": ["4", 0],
            "nag_scale": 3.0, "nag_tau": 2.0, "nag_alpha": 0.2,
        }),
        ("LoadImage", {"image": "first.png"}),
        ("LoadImage", {"image": "last.png"}),
        *[("ImageScale", {
            "image": [source, 0], "upscale_method": "lanczos", "crop": "center",
            "width": SIZE[0], "height": SIZE[1],
        }) for source in "78"],
        ("EmptyLTXVLatentVideo", {
            "width": SIZE[0], "height": SIZE[1], "length": length, "batch_size": 1,
        }),
        ("LTXVImgToVideoInplaceKJ", {
            "vae": ["1", 2], "latent": ["11", 0], "num_images": "2",
            "num_images.image_1": ["9", 0], "num_images.index_1": 0, "num_images.strength_1": 1.0,
            "num_images.image_2": ["10", 0], "num_images.index_2": -1, "num_images.strength_2": 1.0,
        }),
        ("ManualSigmas", {
            "sigmas": "1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0"
        }),
        ("KSamplerSelect", {"sampler_name": "euler_ancestral_cfg_pp"}),
        ("CFGGuider", {
            "model": ["6", 0], "positive": ["5", 0], "negative": ["5", 1], "cfg": 1.0,
        }),
        ("RandomNoise", {"noise_seed": seed}),
        ("SamplerCustomAdvanced", {
            "noise": ["16", 0], "guider": ["15", 0], "sampler": ["14", 0], "sigmas": ["13", 0],
            "latent_image": ["12", 0],
        }),
        ("VAEDecode", {"samples": ["17", 0], "vae": ["1", 2]}),
        ("VHS_VideoCombine", {
            "images": ["18", 0], "frame_rate": 24, "loop_count": 0, "filename_prefix": prefix,
            "format": "video/h264-mp4", "pix_fmt": "yuv420p", "crf": 12, "save_metadata": False,
            "trim_to_audio": False, "pingpong": False, "save_output": True,
        }),
    ]  # fmt: skip
    return {
        str(n): {"class_type": class_type, "inputs": inputs}
        for n, (class_type, inputs) in enumerate(classes, start=1)
    }


def changed(node: str, **inputs: Any) -> Json:
    """The graph with some inputs of a node replaced, or left out where None is given."""
    graph = flf2v()
    graph[node]["inputs"] |= inputs
    graph[node]["inputs"] = {k: v for k, v in graph[node]["inputs"].items() if v is not None}
    return graph


def renamed(graph: Json) -> Json:
    """The same graph under other node ids."""

    def moved(value: Any) -> Any:
        return ["1000" + value[0], value[1]] if isinstance(value, list) else value

    return {
        "1000" + node_id: {
            **node,
            "inputs": {name: moved(value) for name, value in node["inputs"].items()},
        }
        for node_id, node in graph.items()
    }


def frames_of(path: str) -> Array:
    """All frames, (n, height, width, 3)."""
    exact = "accurate_rnd+full_chroma_int"
    command = ["ffmpeg", "-v", "error", "-i", path, "-sws_flags", exact]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, SIZE[1], SIZE[0], 3)


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


# The process.


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


def test_it_says_which_process_it_is(comfyui: Lookalike) -> None:
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


# A prompt's way.


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
    steps = [data["value"] for kind, data in messages if _is("progress", node="17")((kind, data))]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert messages[-2][1]["status"]["exec_info"]["queue_remaining"] == 0
    assert messages[-1][1] == {"node": None, "prompt_id": prompt_id}
    nodes = {data["node"] for kind, data in messages if kind == "executing"}
    assert nodes == {*flf2v(), None}


def test_the_history_comes_after_success_was_announced(comfyui: Lookalike) -> None:
    ws = comfyui.connect()
    prompt_id = comfyui.submit(flf2v(prefix="history")).json()["prompt_id"]
    list(hear(ws, _is("execution_success")))
    assert comfyui.history(prompt_id) == {}
    list(hear(ws, _is_end))
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
    list(hear(ws, _is("progress", value=2)))
    assert hanging.post("/interrupt", {"prompt_id": waiting}).status_code == 200
    queued = hanging.get("/queue").json()
    assert [item[1] for item in queued["queue_running"]] == [prompt_id]
    assert [item[1] for item in queued["queue_pending"]] == [waiting]
    hanging.post("/queue", {"delete": [waiting, "unknown"]})
    hanging.post("/interrupt", {"prompt_id": prompt_id})
    ending = list(hear(ws, _is_end))
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
    list(hear(ws, _is("progress", value=2)))
    successor = hanging.connect()
    greeting = list(hear(successor, _is("executing")))
    assert greeting[0][1]["status"]["exec_info"]["queue_remaining"] == 1
    assert greeting[1] == ("executing", {"node": "17"})
    assert hanging.post(f"/api/jobs/{prompt_id}/cancel").json() == {"cancelled": True}
    assert "execution_interrupted" in [kind for kind, _ in hear(successor, _is_end)]
    for socket_ in (ws, successor):
        socket_.close()


# What is refused, and what is not.

REFUSALS: dict[str, tuple[Json, str, str, str]] = {
    "a value above the maximum": (
        changed("19", loop_count=500), "19", "value_bigger_than_max", "loop_count",
    ),
    "a value below the minimum": (
        changed("16", noise_seed=-1), "16", "value_smaller_than_min", "noise_seed",
    ),
    "a strength that is left out": (
        changed("12", **{"num_images.strength_2": None}), "12",
        "required_input_missing", "strength_2",
    ),
    "a strength above one": (
        changed("12", **{"num_images.strength_2": 1.5}), "12",
        "value_bigger_than_max", "num_images.strength_2",
    ),
    "a model that is not there": (
        changed("1", ckpt_name="x.safetensors"), "1", "value_not_in_list",
        "ckpt_name: 'x.safetensors' not in ['ltx-2.3-22b-distilled-fp8.safetensors',"
        " 'ltx-2.3-22b-dev-fp8.safetensors']",
    ),
    "a word for a number": (
        changed("11", width="wide"), "11", "invalid_input_type",
        "width, wide, invalid literal for int() with base 10: 'wide'",
    ),
    "a list that is no link": (
        changed("13", sigmas=[1.0, 0.5, 0.0]), "13", "bad_linked_input", "sigmas",
    ),
    "a mask for an image": (
        changed("9", image=["7", 1]), "9", "return_type_mismatch",
        "image, received_type(MASK) mismatch input_type(IMAGE)",
    ),
    "an image that was never uploaded": (
        changed("7", image="nope.png"), "7", "custom_validation_failed",
        "image - Invalid image file: nope.png",
    ),
    "a link to nowhere": (
        changed("9", image=["77", 0]), "9", "exception_during_inner_validation", "'77'",
    ),
    "a node id that is a number": (
        changed("9", image=[7, 0]), "9", "exception_during_inner_validation", "7",
    ),
    "a circle": (changed("9", image=["9", 0]), "9", "dependency_cycle", "9 -> 9"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_it_refuses(comfyui: Lookalike, case: str) -> None:
    graph, node, kind, details = REFUSALS[case]
    answer = comfyui.submit(graph)
    body = answer.json()
    assert answer.status_code == 400
    assert body["error"]["type"] == "prompt_outputs_failed_validation"
    report = body["node_errors"][node]
    assert [(error["type"], error["details"]) for error in report["errors"]] == [(kind, details)]
    assert report["dependent_outputs"] == ["19"]
    assert report["class_type"] == flf2v()[node]["class_type"]


def test_a_refusal_has_the_real_body_to_the_letter(comfyui: Lookalike) -> None:
    assert comfyui.submit(changed("19", loop_count=500)).json() == {
        "error": {
            "type": "prompt_outputs_failed_validation",
            "message": "Prompt outputs failed validation",
            "details": "Value 500 bigger than max of 100: loop_count",
            "extra_info": {},
        },
        "node_errors": {
            "19": {
                "errors": [
                    {
                        "type": "value_bigger_than_max",
                        "message": "Value 500 bigger than max of 100",
                        "details": "loop_count",
                        "extra_info": {
                            "input_name": "loop_count",
                            "input_config": [
                                "INT",
                                {"default": 0, "min": 0, "max": 100, "step": 1},
                            ],
                            "received_value": 500,
                        },
                    }
                ],
                "dependent_outputs": ["19"],
                "class_type": "VHS_VideoCombine",
            }
        },
    }


def test_prompts_without_sense_are_refused_as_a_whole(comfyui: Lookalike) -> None:
    unknown = {**flf2v(), "9": {"class_type": "NoSuchNode", "inputs": {}}}
    answers = {
        "missing_node_type": comfyui.submit(unknown),
        "prompt_no_outputs": comfyui.submit({}),
        "no_prompt": comfyui.post("/prompt", {}),
        "invalid_prompt_id": comfyui.submit(flf2v(), prompt_id="job 42"),
    }
    for kind, answer in answers.items():
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == kind
        assert answer.json()["node_errors"] == {}
    assert comfyui.post("/prompt", data="{").status_code == 500


def test_one_bad_output_of_two_is_dropped_and_the_rest_runs(comfyui: Lookalike) -> None:
    graph = {**flf2v(), "20": {"class_type": "PreviewImage", "inputs": {"images": ["77", 0]}}}
    ws = comfyui.connect()
    answer = comfyui.submit(graph)
    assert answer.status_code == 200
    error = answer.json()["node_errors"]["20"]["errors"][0]
    assert (error["type"], error["details"]) == ("exception_during_validation", "'77'")
    assert "execution_success" in [kind for kind, _ in hear(ws, _is_end)]
    ws.close()


def test_the_older_version_takes_any_prompt_id(start: Start) -> None:
    older = start("--normalvram", LOOKALIKE_VERSION="0.21").ready().upload_pair()
    assert older.submit(flf2v(), prompt_id=42).json()["prompt_id"] == "42"
    assert older.get("/system_stats").json()["system"]["comfyui_version"] == "0.21.0"


def test_missing_nodes_and_models_are_missing_everywhere(start: Start) -> None:
    poor = start(
        LOOKALIKE_MISSING_NODES="LTX2_NAG,VAELoaderKJ",
        LOOKALIKE_MISSING_MODELS="gemma-3-12b-it-qat-Q4_K_M.gguf",
    ).ready()
    known = poor.get("/object_info").json()
    assert {"LTX2_NAG", "VAELoaderKJ"}.isdisjoint(known)
    names = known["DualCLIPLoaderGGUF"]["input"]["required"]["clip_name1"][0]
    assert "gemma-3-12b-it-qat-Q4_K_M.gguf" not in names
    assert poor.get("/object_info/LTX2_NAG").json() == {}
    assert poor.submit(flf2v()).json()["error"]["type"] == "missing_node_type"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_recipe_stands_the_strict_validation(version: str) -> None:
    assert validate(flf2v(), load_schemas(version), strict=True).ok


MISTAKES: dict[str, tuple[str, Json]] = {
    "num_images as a number": ("12", {"num_images": 2}),
    "no last image": ("12", {"num_images.image_2": None}),
    "no last index": ("12", {"num_images.index_2": None}),
    "an input nobody knows": ("17", {"denoise": 1.0}),
    "a width that is cut": ("11", {"width": 770}),
    "a length that is cut": ("11", {"length": 98}),
    "no sigmas": ("13", {"sigmas": ""}),
    "sigmas that are none": ("13", {"sigmas": "1.0, high, 0.0"}),
    "a pixel format of another kind": ("19", {"pix_fmt": "nope"}),
    "a crf that is left out": ("19", {"crf": None}),
    "metadata as a word": ("19", {"save_metadata": "false"}),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_the_strict_validation_finds_what_the_server_lets_pass(case: str) -> None:
    node, inputs = MISTAKES[case]
    lenient = validate(changed(node, **inputs), load_schemas())
    strict = validate(changed(node, **inputs), load_schemas(), strict=True)
    assert lenient.ok
    assert strict.error is None
    assert all(mistake.startswith(f"node {node} ") for mistake in strict.mistakes)
    assert strict.mistakes


# Files.


def test_an_upload_never_overwrites_other_bytes_unasked(comfyui: Lookalike) -> None:
    one, other = picture(SIZE, 5), picture(SIZE, 6)
    names = [
        comfyui.upload("up.png", one).json(),
        comfyui.upload("up.png", one).json(),
        comfyui.upload("up.png", other).json(),
        comfyui.upload("up.png", other).json(),
        comfyui.upload("up.png", other, overwrite="true", subfolder="job").json(),
    ]
    assert [answer["name"] for answer in names] == [
        "up.png", "up.png", "up (1).png", "up (1).png", "up.png",
    ]  # fmt: skip
    assert names[-1] == {"name": "up.png", "subfolder": "job", "type": "input"}
    assert (comfyui.folder / "input" / "job" / "up.png").read_bytes() == other


def test_an_upload_cannot_leave_its_folder(comfyui: Lookalike) -> None:
    assert comfyui.upload("../../x.png", b"x").status_code == 400
    assert comfyui.upload("x.png", b"x", subfolder="../..").status_code == 400
    assert comfyui.upload("a/b.png", b"x").status_code == 500
    assert comfyui.post("/upload/image", files={"picture": b"x"}).status_code == 400


def test_an_upload_above_the_limit_is_refused(start: Start) -> None:
    answer = start("--max-upload-size", "1").ready().upload("big.png", bytes(1_100_000))
    assert answer.status_code == 413
    assert answer.text == "Maximum request body size 1048576 exceeded."


def test_view_serves_files_and_parts_of_them(comfyui: Lookalike) -> None:
    video = comfyui.video(comfyui.run(flf2v(prefix="view/it"))[0])
    whole = Path(video["fullpath"]).read_bytes()
    path = f"/view?filename={video['filename']}&subfolder=view&type=output"
    answer = comfyui.get(path)
    assert (answer.content, answer.headers["Content-Type"]) == (whole, "video/mp4")
    part = comfyui.get(path, headers={"Range": "bytes=0-99"})
    assert (part.status_code, part.content) == (206, whole[:100])
    assert part.headers["Content-Range"] == f"bytes 0-99/{len(whole)}"
    assert comfyui.get(path, headers={"Range": f"bytes={len(whole)}-"}).status_code == 416
    head = requests.head(comfyui.url + path, timeout=PATIENCE_S)
    assert head.headers["Content-Length"] == str(len(whole))
    assert comfyui.get("/view?filename=nope.mp4").status_code == 404
    assert comfyui.get("/view?filename=../x").status_code == 400
    assert comfyui.get("/view?filename=x&subfolder=../..").status_code == 403


# The film.


def test_the_film_goes_from_the_first_image_to_the_last(comfyui: Lookalike) -> None:
    film = frames_of(comfyui.video(comfyui.run(flf2v(prefix="film"))[0])["fullpath"])
    assert len(film) == FRAMES
    assert likeness(film[0], paint(SIZE, 1)) < 2
    assert likeness(film[-1], paint(SIZE, 2)) < 2
    steps = [likeness(one, other) for one, other in pairwise(film)]
    assert min(steps) > 0.1
    assert max(steps) < likeness(film[0], film[-1]) / 5


def test_the_seed_decides_every_byte_of_the_film(start: Start) -> None:
    comfyui = start("--cache-none").ready().upload_pair()
    films = [
        Path(comfyui.video(comfyui.run(flf2v(seed, prefix=f"seed-{n}"))[0])["fullpath"])
        for n, seed in enumerate((1, 1, 2))
    ]
    same, again, other = (film.read_bytes() for film in films)
    assert same == again != other


def test_without_its_second_image_the_film_silently_never_arrives(comfyui: Lookalike) -> None:
    graph = changed("12", **{"num_images.image_2": None})
    film = frames_of(comfyui.video(comfyui.run(graph)[0])["fullpath"])
    assert likeness(film[0], paint(SIZE, 1)) < 2
    assert likeness(film[-1], paint(SIZE, 1)) < likeness(film[-1], paint(SIZE, 2)) / 2


def test_num_images_as_a_number_fails_in_the_node(comfyui: Lookalike) -> None:
    _, messages = comfyui.run(changed("12", num_images=2))
    error = payload(messages, "execution_error")
    assert (error["exception_type"], error["node_id"]) == ("TypeError", "12")
    assert error["exception_message"] == (
        "LTXVImgToVideoInplaceKJ.execute() got an unexpected keyword argument"
        " 'num_images.image_1'\n"
    )


def test_images_are_turned_as_their_exif_says(comfyui: Lookalike) -> None:
    lying = paint((SIZE[1], SIZE[0]), 9)  # taken with the camera on its side
    exif_rotate_90 = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    sideways = picture((SIZE[1], SIZE[0]), 9, format="PNG", exif=exif_rotate_90)
    comfyui.upload("sideways.png", sideways)
    film = frames_of(comfyui.video(comfyui.run(changed("7", image="sideways.png"))[0])["fullpath"])
    assert likeness(film[0], np.rot90(lying, -1)) < 2


def test_a_file_that_is_no_image_fails_when_it_is_loaded(comfyui: Lookalike) -> None:
    comfyui.upload("text.png", b"no image")
    _, messages = comfyui.run(changed("7", image="text.png"))
    assert payload(messages, "execution_error")["exception_type"] == "PIL.UnidentifiedImageError"


# Scripted faults.


class Control:
    """A control server: keeps the events, answers each "prompt" with the next fault."""

    def __init__(self, *faults: Json) -> None:
        self.events: list[Json] = []
        self.answers = [{"fault": fault} if fault else {} for fault in faults]
        control = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                control.events.append(event)
                answer = control.answers.pop(0) if event["event"] == "prompt" else {}
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/events"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def test_the_control_server_hears_the_story_and_changes_it(start: Start) -> None:
    control = Control({"kind": "oom", "at": 2})
    comfyui = start(LOOKALIKE_CONTROL_URL=control.url).ready().upload_pair()
    prompt_id, messages = comfyui.run(flf2v())
    comfyui.process.send_signal(signal.SIGINT)
    comfyui.process.wait(PATIENCE_S)
    control.server.shutdown()
    names = [event["event"] for event in control.events]
    uploads = ["upload"] * 2
    story = ["boot", "ready", *uploads, "prompt", "start", "step", "step", "done", "exit"]
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


FLAWS: dict[str, Callable[[Array, Array], bool]] = {
    "black": lambda film, good: film.max() < 8,
    "noise": lambda film, good: likeness(film[3], film[4]) > 30,
    "frozen": lambda film, good: likeness(film[0], film[-1]) < 1,
    "ignore_last": lambda film, good: likeness(film[-1], good[-1]) > likeness(film[-1], good[0]),
    "bounce": lambda film, good: likeness(film[-1], good[0]) < 2,
    "cut": lambda film, good: _biggest_step(film) > 4 * _biggest_step(good),
    "flash": lambda film, good: _biggest_step(film) > 4 * _biggest_step(good),
    "short_clip": lambda film, good: len(film) == 17,
    "stale": lambda film, good: len(film) == 17,
}


def _biggest_step(film: Array) -> float:
    return max(likeness(one, other) for one, other in pairwise(film))


def test_a_flawed_film_is_a_success_with_a_flaw_to_see(start: Start) -> None:
    flaws = [{"kind": kind} | ({"frames": 17} if kind == "short_clip" else {}) for kind in FLAWS]
    control = Control({}, *flaws)
    comfyui = start("--cache-none", LOOKALIKE_CONTROL_URL=control.url).ready().upload_pair()
    good, *flawed = (
        frames_of(comfyui.video(comfyui.run(flf2v(prefix="film"))[0])["fullpath"])
        for _ in ["good", *FLAWS]
    )
    control.server.shutdown()
    seen = {kind: FLAWS[kind](film, good) for kind, film in zip(FLAWS, flawed, strict=True)}
    assert all(seen.values()), seen


def test_a_broken_file_is_a_success_all_the_same(start: Start) -> None:
    for kind, size in (("no_output", None), ("short_file", 8)):
        comfyui = start(LOOKALIKE_FAULT=json.dumps({"kind": kind})).ready().upload_pair()
        prompt_id, messages = comfyui.run(flf2v())
        assert "execution_success" in [name for name, _ in messages]
        path = Path(comfyui.video(prompt_id)["fullpath"])
        assert (path.stat().st_size if path.exists() else None) == size
