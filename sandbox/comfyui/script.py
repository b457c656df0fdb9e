"""What the test wrote for this process: how long things take, and what goes wrong.

Everything comes from LOOKALIKE_* variables, faults also from the control URL: events are posted
there as JSON, and the answers to "boot", "prompt", "text" and "hold" may carry
`{"fault": {"kind": ...}}`. A prompt that keeps what the text encoder reads is a "text", one that
only loads the encoder a "hold"; both can be scripted without a thought of the clips.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)

CONTROL_TIMEOUT_S = 2.0
ON_BOOT = "exit hang slow segfault stranger crowded pack_broken"
ON_TEXT = (
    "execution_error oom segfault kill hang freeze slow no_history"
    " ws_drop ws_refuse ws_garbage node_errors reject damaged"
)
ON_PROMPT = (
    f"{ON_TEXT} escape no_output short_file truncated short_clip wrong_size"
    " black noise frozen ignore_last bounce stale cut flash"
)
FAULT_KINDS = {
    "boot": frozenset(ON_BOOT.split()),
    "prompt": frozenset(ON_PROMPT.split()),
    "text": frozenset(ON_TEXT.split()),
    "hold": frozenset(ON_TEXT.split()) - {"damaged"},
}


@dataclass(frozen=True)
class Fault:
    kind: str
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, event: str, given: Mapping[str, Any]) -> Fault:
        kind = given.get("kind")
        if kind not in FAULT_KINDS.get(event, frozenset()):
            raise ValueError(f"no fault {kind!r} on {event}; there are {FAULT_KINDS}")
        return cls(kind, {key: given[key] for key in given if key not in ("kind", "on")})

    def get(self, name: str, default: Any) -> Any:
        return self.details.get(name, default)


@dataclass(frozen=True)
class Times:
    """Seconds, already scaled."""

    boot: float
    text_load: float  # what an encoder's file takes into RAM
    text_move: float  # and from there to the card
    text: float  # one text
    rest: float  # what an encoder takes back to RAM
    load: float  # all else that comes before the first step, for the first film of a process
    warm_load: float  # the same for a later one
    shuffle: float  # what comes on top of it where an encoder is on the card and has to leave
    warm_shuffle: float
    step: float
    decode: float
    encode: float  # the least that VHS_VideoCombine takes
    history: float  # from execution_success until the history has it; real, only longer here
    collect: float  # from /free until an encoder's memory is back
    settle: float  # after a prompt, while nobody listens for /free
    stop: float
    term: float  # what a driver takes to end a process that SIGTERM kills

    @classmethod
    def parse(cls, env: Mapping[str, str]) -> Times:
        scale = float(env.get("LOOKALIKE_TIME_SCALE", "1"))

        def seconds(name: str, default: float) -> float:
            return scale * float(env.get(f"LOOKALIKE_{name}_S", default))

        return cls(
            boot=seconds("BOOT", 1.0),
            text_load=seconds("TEXT_LOAD", 0.2),
            text_move=seconds("TEXT_MOVE", 0.0),
            text=seconds("TEXT", 0.02),
            rest=seconds("REST", 0.0),
            load=seconds("LOAD", 0.25),
            warm_load=seconds("WARM_LOAD", 0.05),
            shuffle=seconds("SHUFFLE", 0.0),
            warm_shuffle=seconds("WARM_SHUFFLE", 0.0),
            step=seconds("STEP", 0.1),
            decode=seconds("DECODE", 0.1),
            encode=seconds("ENCODE", 0.0),
            history=seconds("HISTORY", 0.02),
            collect=seconds("COLLECT", 10.0),
            settle=seconds("SETTLE", 0.05),
            stop=seconds("STOP", 1.3),
            term=seconds("TERM", 0.0),
        )


class Script:
    def __init__(self, env: Mapping[str, str], port: int) -> None:
        self.port = port
        self.times = Times.parse(env)
        self.version = env.get("LOOKALIKE_VERSION", "0.27")
        self.missing_nodes = _names(env.get("LOOKALIKE_MISSING_NODES", ""))
        self.missing_models = _names(env.get("LOOKALIKE_MISSING_MODELS", ""))
        self.added_inputs = _names(env.get("LOOKALIKE_ADDED_INPUTS", ""))
        self.gpu_name = env.get("LOOKALIKE_GPU_NAME", "NVIDIA GeForce RTX 5090")
        self.vram_total = int(env.get("LOOKALIKE_VRAM_TOTAL", 34_190_458_880))  # bytes
        # What every prompt leaves behind in RAM, in MB, and whether /free gives it back.
        self.leak_mb = int(env.get("LOOKALIKE_LEAK_MB", 0))
        self.leak_stays = env.get("LOOKALIKE_LEAK_STAYS") == "1"
        self.pad_mb = int(env.get("LOOKALIKE_PAD_MB", 0))  # the least size of a film's file
        self.crowded_until = 0.0  # monotonic: somebody else's models fill the card
        self.control_url = env.get("LOOKALIKE_CONTROL_URL")
        self.standing_fault = json.loads(env.get("LOOKALIKE_FAULT", "{}"))
        # No proxy: the control server is on this machine, whatever http_proxy says.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def crowd(self, seconds: float) -> None:
        self.crowded_until = time.monotonic() + seconds

    def report(self, event: str, **facts: Any) -> Fault | None:
        """Tell the control server what happens; its answer, or LOOKALIKE_FAULT, is the fault."""
        answer = self._post({"event": event, "pid": os.getpid(), "port": self.port, **facts})
        given = answer.get("fault") if isinstance(answer, dict) else None
        if given is None and self.standing_fault.get("on", "prompt") == event:
            given = self.standing_fault or None
        if given is None or event not in FAULT_KINDS:
            return None
        return Fault.parse(event, given)

    def _post(self, event: dict[str, Any]) -> Any:
        if not self.control_url:
            return None
        request = urllib.request.Request(
            self.control_url,
            data=json.dumps(event).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with self.opener.open(request, timeout=CONTROL_TIMEOUT_S) as answer:
                return json.loads(answer.read() or b"null")
        except (OSError, ValueError) as error:
            log.debug("control server: %s", error)
            return None


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def segfault() -> None:
    """For real, so that faulthandler has its say, as in the real program."""
    signal.pthread_kill(threading.get_ident(), signal.SIGSEGV)
