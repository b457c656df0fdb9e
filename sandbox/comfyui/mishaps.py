"""Faults that strike in the middle of a prompt, at a step or at a node."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from run import NodeError, Run
from script import segfault
from standins import folder_paths

log = logging.getLogger(__name__)

OOM_MESSAGE = (
    "Allocation on device 0 would exceed allowed memory. (out of memory)\n"
    "Currently allocated     : 30.25 GiB\n"
    "Requested               : 990.00 MiB\n"
    "Device limit            : 31.84 GiB\n"
    "Free (according to CUDA): 19.56 MiB\n"
)
SAVE_NODE, LOAD_NODE = "LTXWorkerSaveConditioning", "LTXWorkerLoadConditioning"
HUGE = 3 * 1024 * 1024  # characters


def raise_error(run: Run) -> None:
    message = run.fault.get("message", "expected scalar type BFloat16 but found Float")
    raise NodeError(message, run.fault.get("type", "RuntimeError"))


def run_out_of_memory(run: Run) -> None:
    raise NodeError(run.fault.get("message", OOM_MESSAGE), "torch.OutOfMemoryError")


def crash(run: Run) -> None:
    log.error("CUDA error: an illegal memory access was encountered")
    run.hub.flush()
    run.report("exit", reason="segfault")
    segfault()


def be_killed(run: Run) -> None:
    """As by the kernel when the host's memory is gone: not a word."""
    run.hub.flush()
    run.report("exit", reason="kill")
    os.kill(os.getpid(), signal.SIGKILL)


def hang(run: Run) -> None:
    if run.fault.get("deaf", False):
        threading.Event().wait()
    run.state.interrupted.wait()
    run.check_interrupt()


def freeze(run: Run) -> None:
    run.hub.flush()
    os.kill(os.getpid(), signal.SIGSTOP)


def drop_sockets(run: Run) -> None:
    run.hub.drop()


def refuse_sockets(run: Run) -> None:
    run.hub.drop(refuse=True)


def send_garbage(run: Run) -> None:
    """Everything a client must not trip over."""
    other = "00000000-0000-4000-8000-000000000000"
    wrong: list[Any] = [
        None,
        [],
        "text",
        {},
        {"type": 3},
        {"type": "progress"},
        {"type": "progress", "data": None},
        {"type": "progress", "data": {"value": "x", "max": 0, "prompt_id": run.prompt_id}},
        {"type": "progress_state", "data": {"prompt_id": run.prompt_id, "nodes": []}},
        {"type": "executing", "data": {"node": None, "prompt_id": other}},
        {"type": "execution_success", "data": {"prompt_id": other}},
        {"type": "executed", "data": {"node": 7, "output": "none", "prompt_id": run.prompt_id}},
        {"type": "from the future", "data": {"prompt_id": run.prompt_id}},
        {"type": "huge", "data": "x" * HUGE},
    ]
    for message in ("not json {", "", *map(json.dumps, wrong)):
        run.hub.send_raw(message, run.client_id)
    for blob in (b"", b"\0", os.urandom(4096)):
        run.hub.send_raw(blob, run.client_id)


MISHAPS: dict[str, Callable[[Run], None]] = {
    "execution_error": raise_error,
    "oom": run_out_of_memory,
    "segfault": crash,
    "kill": be_killed,
    "hang": hang,
    "freeze": freeze,
    "ws_drop": drop_sockets,
    "ws_refuse": refuse_sockets,
    "ws_garbage": send_garbage,
}


def strike(run: Run, step: int) -> None:
    """Play the fault whose step this is; it strikes once the step has been shown."""
    here = "node" not in run.fault.details and step == run.fault.get("at", 3)
    if here and run.fault.kind in MISHAPS:
        MISHAPS[run.fault.kind](run)


def strike_text(run: Run, number: int) -> None:
    """Play the fault of a prompt that renders nothing: 0 as the encoder is loaded, 1 at the first
    text.
    """
    default = {"text": 1, "hold": 0}.get(run.event)
    here = "node" not in run.fault.details and number == run.fault.get("at", default)
    if default is not None and here and run.fault.kind in MISHAPS:
        MISHAPS[run.fault.kind](run)


def damage(run: Run, class_type: str, inputs: dict[str, Any], *, done: bool) -> None:
    """A bit of a conditioning's file turns, before it is read or once it is written."""
    if run.fault.kind == "damaged" and class_type == (SAVE_NODE if done else LOAD_NODE):
        file = Path(folder_paths.get_folder_paths("ltx_worker_conditioning")[0], inputs["key"])
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)


def strike_node(run: Run, class_type: str) -> None:
    """Play the fault that waits for this class of node."""
    if run.fault.get("node", None) == class_type and run.fault.kind in MISHAPS:
        MISHAPS[run.fault.kind](run)
