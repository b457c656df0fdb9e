"""A running ComfyUI look-alike, a client of it, and the graph of the recipe, small."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import requests
import websocket

from sandbox.client import ROOT, free_port
from sandbox.launch import pace
from tests.forks import Fork, run_script
from tests.pictures import Array, picture

PROGRAM = ROOT / "sandbox" / "comfyui"
Json = dict[str, Any]
Message = tuple[str, Json]
SIZE = (128, 96)
FRAMES = 25
PATIENCE_S = 60
QUICK = pace(
    BOOT=0.05, TEXT_LOAD=0, TEXT=0, LOAD=0.02, WARM_LOAD=0.01, STEP=0.01, DECODE=0, STOP=0.1
)
GEMMA, CORE_GEMMA = "gemma-3-12b-it-qat-Q4_K_M.gguf", "gemma_3_12B_it_fp8_scaled.safetensors"
PACKS = ROOT / "ltx" / "comfyui" / "nodes"


class Lookalike:
    """A running look-alike with folders of its own, and one client of it."""

    def __init__(self, folder: Path, *flags: str, port: int = 0, **env: str) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client_id = "tester"
        self.lines: queue.Queue[str] = queue.Queue()
        folder.mkdir(parents=True, exist_ok=True)
        os.mkfifo(folder / "stderr")
        threading.Thread(target=self._read_output, daemon=True).start()
        self.process = self._start(flags, env)

    def free_vram(self) -> int:
        """Bytes."""
        return int(self.get("/system_stats").json()["devices"][0]["vram_free"])

    def _start(self, flags: tuple[str, ...], env: dict[str, str]) -> Fork:
        address = ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch"]
        folders = [
            *("--temp-directory", str(self.folder)),
            *("--input-directory", str(self.folder / "input")),
            *("--output-directory", str(self.folder / "output")),
            *("--database-url", "sqlite:///:memory:"),
        ]
        command = ["main.py", *address, *folders, *flags]
        environ = {"PATH": os.environ["PATH"], **QUICK, **env}
        return Fork(run_script, command, environ, self.folder / "stderr", PROGRAM)

    def _read_output(self) -> None:
        with (self.folder / "stderr").open() as lines:
            for line in lines:
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
        messages = list(hear(ws, is_end))
        ws.close()
        return prompt_id, messages

    def history(self, prompt_id: str) -> Json:
        history: Json = self.get(f"/history/{prompt_id}").json()
        return history

    def video(self, prompt_id: str) -> Json:
        video: Json = self.history(prompt_id)[prompt_id]["outputs"]["19"]["gifs"][0]
        return video


def hear(ws: websocket.WebSocket, last: Callable[[Message], bool]) -> Iterator[Message]:
    while True:
        received = json.loads(ws.recv())
        message = received["type"], received["data"]
        yield message
        if last(message):
            return


def is_end(message: Message) -> bool:
    kind, data = message
    return kind == "executing" and data["node"] is None


def is_a(kind: str, **wanted: Any) -> Callable[[Message], bool]:
    return lambda message: message[0] == kind and wanted.items() <= message[1].items()


def payload(messages: list[Message], kind: str) -> Json:
    return next(data for name, data in messages if name == kind)


def flf2v(seed: int = 7, prefix: str = "clips/one", length: int = FRAMES) -> Json:
    """The recipe's graph, small."""
    classes: list[tuple[str, Json]] = [
        ("CheckpointLoaderSimple", {"ckpt_name": "ltx-2.3-22b-distilled-fp8.safetensors"}),
        ("DualCLIPLoaderGGUF", {
            "clip_name1": GEMMA,
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


def pack_flags(folder: Path, packs: Path = PACKS) -> list[str]:
    """Has a look-alike load our nodes; their files lie in `folder`/conditioning."""
    kept, file = folder / "conditioning", folder / "paths.yaml"
    kept.mkdir(parents=True, exist_ok=True)
    entry = {"custom_nodes": str(packs), "ltx_worker_conditioning": str(kept)}
    file.write_text(json.dumps({"ltx_worker": entry}))
    return ["--extra-model-paths-config", str(file)]


def key_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def texts(*wanted: str, rest: bool = True, encoder: str = GEMMA) -> Json:
    """A graph that keeps what the encoder reads of each text, under the text's own key.

    The encoder then rests in RAM, or stays where it is.
    """
    core = encoder.endswith(".safetensors")
    files = {"clip_name1": encoder, "clip_name2": "ltx-2.3_text_projection_bf16.safetensors"}
    loader = "DualCLIPLoader" if core else "DualCLIPLoaderGGUF"
    graph: Json = {"1": {"class_type": loader, "inputs": {**files, "type": "ltxv"}}}
    after: Json = {}
    for n, text in enumerate(wanted):
        read = {"text": text, "clip": ["1", 0]}
        graph[f"2{n}"] = {"class_type": "CLIPTextEncode", "inputs": read}
        kept = {"conditioning": [f"2{n}", 0], "key": key_of(text), **after}
        graph[f"3{n}"] = {"class_type": "LTXWorkerSaveConditioning", "inputs": kept}
        after = {"after": [f"3{n}", 0]}
    last, after = ("Rest", after) if rest else ("Hold", {})
    kind = f"LTXWorker{last}TextEncoder"
    graph["4"] = {"class_type": kind, "inputs": {"clip": ["1", 0], **after}}
    return graph


def from_files(text: str = "walk on", negative: str = "blurry", **more: Any) -> Json:
    """The recipe's graph with its texts from files."""
    graph = flf2v(**more)
    del graph["2"]
    for node, wanted in (("3", text), ("4", negative)):
        inputs = {"key": key_of(wanted)}
        graph[node] = {"class_type": "LTXWorkerLoadConditioning", "inputs": inputs}
    return graph


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
