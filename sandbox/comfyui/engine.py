"""The queue and the thread that works through it, as ComfyUI's prompt worker does."""

from __future__ import annotations

import logging
import threading
import time

from execution import Execution
from hub import Hub
from run import Item
from slots import Json
from state import State

log = logging.getLogger(__name__)


class Engine:
    def __init__(self, state: State, hub: Hub) -> None:
        self.state = state
        self.script = state.script
        self.hub = hub
        self.changed = threading.Condition()
        self.pending: list[Item] = []
        self.running: Item | None = None
        self.history: dict[str, Json] = {}
        self.free_requests: set[str] = set()
        self.client_id: str | None = None  # of the running prompt, or of the last one

    # What the routes call.

    def submit(self, item: Item) -> None:
        with self.changed:
            self.pending.append(item)
            self._tell_status()
            self.changed.notify()

    def delete(self, prompt_id: str) -> bool:
        with self.changed:
            kept = [item for item in self.pending if item.prompt_id != prompt_id]
            found = len(kept) < len(self.pending)
            self.pending = kept
            if found:
                self._tell_status()
        return found

    def clear(self) -> None:
        with self.changed:
            self.pending = []
            self._tell_status()

    def interrupt(self, prompt_id: str | None = None) -> bool:
        """Without an id whatever runs; with one only that prompt, and only while it runs."""
        running = self.running.prompt_id if self.running else None
        heard = prompt_id is None or prompt_id == running
        if heard:
            self.state.interrupted.set()
        return heard

    def ask_to_free(self, *, unload_models: bool, free_memory: bool) -> None:
        wishes = {"unload_models": unload_models, "free_memory": free_memory}
        with self.changed:
            self.free_requests |= {wish for wish, given in wishes.items() if given}
            # Nobody may be waiting: then the wish stays until the next prompt is over.
            self.changed.notify()

    def queue_remaining(self) -> int:
        return len(self.pending) + (self.running is not None)

    def status(self) -> Json:
        return {"exec_info": {"queue_remaining": self.queue_remaining()}}

    # What the worker thread does.

    def work(self) -> None:
        while True:
            item = self._next()
            if not item:
                self._heed_free_requests()
            else:
                outcome = self._execute(item)
                self.script.report("done", promptId=item.prompt_id, status=outcome)
                # Collecting garbage: a /free that comes in here finds nobody waiting.
                time.sleep(self.script.times.settle)

    def _next(self) -> Item | None:
        """The next prompt, or None when something else woke us."""
        with self.changed:
            if not self.pending:
                self.changed.wait()
            if not self.pending:
                return None
            item = min(self.pending, key=lambda one: one.number)
            self.pending.remove(item)
            self.running = item
            self._tell_status()
            return item

    def _execute(self, item: Item) -> str:
        started = time.monotonic()
        self.state.interrupted.clear()
        self.state.leak()
        self.client_id = item.extra_data.get("client_id")
        self.script.report("start", promptId=item.prompt_id)
        execution = Execution(self.state, self.hub, item)
        outcome = execution.play()
        self.state.last_node = None
        time.sleep(self.script.times.history)
        if item.fault.kind != "no_history":
            self.history[item.prompt_id] = execution.history_entry(outcome)
        # Before the end is told, so that a client's /free comes either in time or surely too late.
        self._heed_free_requests()
        with self.changed:
            self.running = None
            self._tell_status()
        if self.client_id is not None:
            data = {"node": None, "prompt_id": item.prompt_id}
            self.hub.send("executing", data, self.client_id)
        log.info("Prompt executed in %.2f seconds", time.monotonic() - started)
        return outcome

    def _heed_free_requests(self) -> None:
        with self.changed:
            wishes, self.free_requests = self.free_requests, set()
        if not wishes:
            return
        self.state.unload()
        if "free_memory" in wishes:
            self.state.cache.clear()
        self.script.report("free", wishes=sorted(wishes))

    def _tell_status(self) -> None:
        self.hub.send("status", {"status": self.status()})
