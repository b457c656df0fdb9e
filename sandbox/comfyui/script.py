"""What the test wrote for this process: how long things take, and what goes wrong.

Everything comes from LOOKALIKE_* variables, faults also from the control URL: events are posted
there as JSON, and the answers to "boot" and "prompt" may carry `{"fault": {"kind": ...}}`.
"""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)

CONTROL_TIMEOUT_S = 2.0
ON_BOOT = "exit hang slow segfault stranger crowded"
ON_PROMPT = (
    "execution_error oom segfault kill hang freeze slow no_history"
    " ws_drop ws_refuse ws_garbage node_errors reject escape"
    " no_output short_file truncated short_clip wrong_size"
    " black noise frozen ignore_last bounce stale cut flash"
)
FAULT_KINDS = {"boot": frozenset(ON_BOOT.split()), "prompt": frozenset(ON_PROMPT.split())}


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
    load: float  # text encoder and model, for the first prompt of a process
    warm_load: float  # the same for a later prompt
    step: float
    decode: float
    encode: float  # the least that VHS_VideoCombine takes
    history: float  # from execution_success until the history has it; real, only longer here
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
            load=seconds("LOAD", 0.5),
            warm_load=seconds("WARM_LOAD", 0.1),
            step=seconds("STEP", 0.1),
            decode=seconds("DECODE", 0.1),
            encode=seconds("ENCODE", 0.0),
            history=seconds("HISTORY", 0.02),
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
