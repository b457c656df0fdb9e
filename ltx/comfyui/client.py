"""One ComfyUI server: prompts go in, clips come out."""

from __future__ import annotations

import contextlib
import functools
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from ltx.cancellation import Cancellation
from ltx.comfyui.answers import (
    Gap,
    OutputFile,
    describe_stranger,
    find_gaps,
    read_history,
    read_rejection,
)
from ltx.comfyui.conditioning import LOAD_NODE
from ltx.comfyui.events import COMFY_CALL_S, PromptEvents, Sign
from ltx.comfyui.workflow import SAMPLER_NODE, Workflow
from ltx.errors import JobError, PortHeld, Unavailable, is_refused
from ltx.hosted.calls import wait_uncancelled
from ltx.hosted.http import Http, Reply
from ltx.process import END_GRACE_S, Child, is_listened_on
from ltx.state import remove_own
from ltx.text import as_dict, as_list, log_event, one_line

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
MAX_CLIP_BYTES = 2 * 2**30
BOOT_POLL_S = 0.1
HISTORY_POLL_S = 1.0
# VRAM is back the moment a process is gone (measured); what is not belongs to somebody else.
VRAM_BACK = 0.9
# /free is lost in the 0.7 s after a prompt's end, so it comes later and is checked, once more if
# need be.
FREE_PAUSE_S, FREE_TRIES, FREE_LOOK_S = 1.0, 2, 1.5
# One process holds as much after five clips as after one, unless ComfyUI's older memory manager is
# at work: 29 GB after the first clip, 42 GB after the second.
MEMORY_GROWTH = 1.25


class ComfyLost(Exception):
    """A ComfyUI went away or stopped making sense."""


class Vram(NamedTuple):
    """Bytes of a GPU's memory."""

    free: int
    total: int


NOTHING: dict[str, Any] = {}


class Rendering(NamedTuple):
    """How far a prompt is: the sampler's steps, and the outputs once it has ended."""

    step: int
    outputs: Mapping[str, Any] = NOTHING


class Comfy:
    """One ComfyUI server: ours when it has a child, otherwise somebody else's, never ended."""

    def __init__(
        self,
        url: str,
        cancellation: Cancellation,
        child: Child | None = None,
        home: Path | None = None,
    ):
        self.url, self.cancellation, self.child, self.home = url, cancellation, child, home
        self.client_id = uuid.uuid4().hex
        self.first_memory = 0
        self.stranger = ""
        # The node classes that were seen to fit our graph.
        self.fitting: frozenset[str] = frozenset()
        # The server is on this machine; a proxy has no business in between.
        self.http = Http(wait=cancellation.wait, proxies=False)

    def _get(self, path: str, seconds: float = COMFY_CALL_S) -> Any:
        reply = self.http.exchange("GET", f"{self.url}{path}", seconds=seconds)
        return reply.json_or(None) if reply.ok else None

    def _stats(self, seconds: float = COMFY_CALL_S) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the server tells of itself and of its first device."""
        stats = as_dict(self._get("/system_stats", seconds))
        return as_dict(stats.get("system")), as_dict([*as_list(stats.get("devices")), None][0])

    def answers(self, seconds: float = COMFY_CALL_S) -> bool:
        """Whether the server at the URL is a ComfyUI, and our child if we have one.

        What else answers there is left in `stranger`.
        """
        self.stranger = ""
        try:
            reply = self.http.exchange("GET", f"{self.url}/system_stats", seconds=seconds)
        except Unavailable:
            return False
        stats = as_dict(reply.json_or(None)) if reply.ok else {}
        if "comfyui_version" not in as_dict(stats.get("system")):
            self.stranger = describe_stranger(reply.status, self._is_childs())
        elif self.child and not self._is_childs():
            self.stranger = "a ComfyUI that we did not start has the port"
        return not self.stranger

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 80

    def _is_childs(self) -> bool:
        """Whether it is our child that listens, which no other process can make us believe."""
        return self.child is not None and self.child.listens_on(self.port)

    def is_port_held(self) -> bool:
        """Whether a program of this machine that is not our child listens there."""
        is_here = urlsplit(self.url).hostname in LOCAL_HOSTS
        return is_here and is_listened_on(self.port) and not self._is_childs()

    def describe(self) -> str:
        """The server's version and device, for people."""
        system, device = self._stats()
        return one_line(f"{system.get('comfyui_version')} on {device.get('name', 'no device')}")

    def vram(self) -> Vram:
        """What the server tells of its first device; zeros when it tells nothing."""
        _, device = self._stats()
        sizes = (device.get(name) for name in ("vram_free", "vram_total"))
        return Vram(*(value if isinstance(value, int) else 0 for value in sizes))

    def await_ready(self, seconds: float) -> None:
        """Raises JobError comfyui_unavailable when our child ends or is not up in time."""
        assert self.child
        end = time.monotonic() + seconds
        while not self.answers():
            why = f"ComfyUI did not answer within {seconds:g} s."
            if not self.child.alive or self.cancellation.wait(BOOT_POLL_S, self.child.pidfd):
                why = f"ComfyUI ended while booting ({self.child.last_words()})."
            elif time.monotonic() < end:
                continue
            raise self._explain_silence(why)

    def _explain_silence(self, why: str) -> JobError:
        assert self.child
        kind = JobError
        if self.is_port_held():
            kind, why = PortHeld, f"The port of {self.url} is held by another program; end it."
        if self.stranger:
            why = f"{why} At {self.url} {self.stranger}."
        # One that died may have been killed; one that is just slow would be slow again.
        died = not self.child.alive
        return kind("comfyui_unavailable", why, again=died, tail=self.child.tail())

    def parts(self, kinds: Iterable[str]) -> dict[str, Any]:
        """What /object_info tells of these node classes; a missing one is an empty object.

        Raises Unavailable for an answer that is none of ComfyUI's.
        """
        asked = {kind: self._get(f"/object_info/{kind}") for kind in kinds}
        if odd := [kind for kind, answer in asked.items() if not isinstance(answer, dict)]:
            raise Unavailable(f"/object_info/{odd[0]} was not answered as ComfyUI does")
        return {kind: as_dict(answer.get(kind)) for kind, answer in asked.items()}

    def pack(self) -> str:
        """What our node pack tells of itself there; '' where it is not. Raises Unavailable."""
        return str(self.parts([LOAD_NODE])[LOAD_NODE].get("description") or "")

    def gaps(self, workflow: Workflow) -> list[Gap]:
        """Every node class, input and model file of the workflow that this ComfyUI lacks."""
        known = self.parts({node["class_type"] for node in workflow.values()})
        return list(find_gaps(workflow, known))

    def check_parts(self, workflow: Workflow) -> None:
        """Raises Gap for the first one; asks once, as a process does not change what it loaded."""
        kinds = frozenset(node["class_type"] for node in workflow.values())
        if kinds <= self.fitting:
            return
        for gap in self.gaps(workflow):
            gap.tail = self.tail()
            raise gap
        self.fitting |= kinds

    def flush(self) -> None:
        """Empties the server's caches, and looks whether the VRAM came back."""
        for _ in range(FREE_TRIES):
            self.cancellation.wait(FREE_PAUSE_S)
            before, end = self.vram(), time.monotonic() + FREE_LOOK_S
            self._post("/free", json={"unload_models": True, "free_memory": True})
            while time.monotonic() < end:
                now = self.vram()
                if now.free >= VRAM_BACK * now.total or now.free > before.free + now.total // 20:
                    return
                self.cancellation.wait(BOOT_POLL_S)

    def is_lean(self) -> bool:
        """Whether our process has not grown since its first clip, after a /free if need be."""
        assert self.child
        self.first_memory = self.first_memory or self.child.memory()
        if self.child.memory() <= MEMORY_GROWTH * self.first_memory:
            return True
        grown = {"mb": self.child.memory() >> 20, "first_mb": self.first_memory >> 20}
        log_event("comfyui_grown", "Asking it to free its memory.", **grown)
        self.flush()
        return self.child.memory() <= MEMORY_GROWTH * self.first_memory

    def _post(self, path: str, **options: Any) -> Reply:
        url = f"{self.url}{path}"
        return self.http.exchange("POST", url, seconds=30.0, **options)

    def upload(self, path: Path, name: str) -> str:
        """Uploads an image and returns the name that the workflow has to use."""
        with path.open("rb") as file:
            reply = self._post("/upload/image", files={"image": (name, file, "image/png")})
        answer = as_dict(reply.json_or(None)) if reply.ok else {}
        if not isinstance(answer.get("name"), str):
            raise ComfyLost(f"the upload of a frame was answered with status {reply.status}")
        folder = answer.get("subfolder") or ""
        return f"{folder}/{answer['name']}" if folder else str(answer["name"])

    def submit(self, workflow: Workflow, prompt_id: str) -> None:
        """Queues the prompt. Raises JobError when it is refused."""
        body = {"prompt": workflow, "prompt_id": prompt_id, "client_id": self.client_id}
        # VHS would leave a picture beside every clip.
        extra = {"extra_pnginfo": {"workflow": {"extra": {"VHS_MetadataImage": False}}}}
        reply = self._post("/prompt", json={**body, "extra_data": extra})
        answer = reply.json_or(reply.body.decode(errors="replace"))
        # 200 with node_errors means that a part of the graph was dropped.
        if reply.status >= 500:
            raise ComfyLost(f"it answered the prompt with status {reply.status}")
        if not reply.ok or as_dict(answer).get("node_errors"):
            raise read_rejection(answer, reply.status)

    def render(self, workflow: Workflow) -> Iterator[Rendering]:
        """Runs a prompt; yields with every step, and once more at the end, with the outputs.

        A prompt without a sampler has no steps.

        Raises JobError, ComfyLost.

        The end is learnt from whichever speaks first of the websocket, the history and the
        process; the websocket is a hint, the history is the truth.
        """
        with contextlib.closing(PromptEvents(self.url, self.client_id, self.http.caller)) as events:
            # A lower-case UUID: ComfyUI 0.27 takes nothing else.
            prompt_id = str(uuid.uuid4())
            samplers = (n for n, node in workflow.items() if node["class_type"] == SAMPLER_NODE)
            sampler = next(samplers, "")
            try:
                self.submit(workflow, prompt_id)
                step, record = 0, NOTHING
                while not record:
                    sign = self._listen(events, prompt_id, sampler)
                    if sign.step is not None:
                        step = sign.step
                        yield Rendering(step)
                    record = self._record(prompt_id) if sign.ended else NOTHING
            except JobError:
                self._interrupt(prompt_id)
                raise
        yield Rendering(step, read_history(record))

    def _listen(self, events: PromptEvents, prompt_id: str, sampler: str) -> Sign:
        """Waits for the next sign of life; without one it is time to look into the history."""
        process = [self.child.pidfd] if self.child else []
        ready = self.cancellation.wait(HISTORY_POLL_S, *process, *events.files())
        if self.child and not self.child.alive:
            raise ComfyLost(f"it ended by itself ({self.child.last_words()})")
        return events.read(prompt_id, sampler) if ready else Sign(ended=True)

    def _record(self, prompt_id: str) -> dict[str, Any]:
        """The prompt's entry in the history; empty while it waits or runs."""
        try:
            if record := as_dict(as_dict(self._get(f"/history/{prompt_id}")).get(prompt_id)):
                return record
            queue = self._get("/queue")
            if isinstance(queue, dict) and prompt_id not in json.dumps(queue):
                # It may have ended between the two questions.
                record = as_dict(as_dict(self._get(f"/history/{prompt_id}")).get(prompt_id))
                if not record:
                    raise ComfyLost("it no longer knows the prompt")
                return record
        except Unavailable as error:
            # Busy or frozen: its end, its websocket or the clip's time limit will tell.
            if self.child is None and is_refused(error):
                raise ComfyLost("it is gone") from error
        return {}

    def _interrupt(self, prompt_id: str) -> None:
        """Asks the server to stop the prompt; one of ours is ended afterwards in any case."""
        call = functools.partial(self.http.exchange, "POST", wait=wait_uncancelled, seconds=1.0)
        wishes = {"/interrupt": {"prompt_id": prompt_id}, "/queue": {"delete": [prompt_id]}}
        with contextlib.suppress(Unavailable):
            for path, wish in wishes.items():
                call(f"{self.url}{path}", json=wish)

    def fetch(self, file: OutputFile, target: Path) -> None:
        """Brings the clip to `target`: moved when it is on this disk, else downloaded."""
        if self.home:
            root = (self.home / "output").resolve()
            # 120 characters, so that no file system minds the length.
            source = root / one_line(file.subfolder, 120) / one_line(file.filename, 120)
            with contextlib.suppress(RuntimeError):  # links that go round in circles
                source = source.resolve()
            if not source.is_relative_to(root) or not source.is_file():
                raise ComfyLost(f"the clip it named is not there: {one_line(file.filename)}")
            source.replace(target)
        else:
            url = f"{self.url}/view?{urlencode(file._asdict(), errors='replace')}"
            with target.open("wb") as sink:
                options: dict[str, Any] = {"sink": sink, "limit": MAX_CLIP_BYTES, "seconds": 120.0}
                reply = self.http.exchange("GET", url, **options)
            if not reply.ok:
                raise ComfyLost(f"the clip it named is not there: status {reply.status}")

    def tail(self) -> str:
        return self.child.tail() if self.child else ""

    def end(self) -> None:
        self.http.close()
        if self.child:
            self.child.end(END_GRACE_S)
        if self.home:
            remove_own(self.home)
