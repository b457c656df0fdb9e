"""A typed client for the sandbox's control endpoint: for tests, the demo and the benches."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import quote

import requests

from sandbox.hosted import DEFAULT_SECRET, DEFAULT_TOKEN

ROOT = Path(__file__).resolve().parent.parent
LONGEST_POLL_S = 20.0
PORTS = range(16384, 32768)  # the kernel gives higher ones
# For the many short-lived processes: OpenBLAS would start threads at every import, OpenSSL would
# read every certificate of the system, and nobody here multiplies matrices or speaks TLS.
LIGHT = {"OPENBLAS_NUM_THREADS": "1", "SSL_CERT_FILE": os.devnull}

Event = dict[str, Any]


class Process(Protocol):
    """What is asked of a process here: a subprocess.Popen is one."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | Any: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: signal.Signals, /) -> None: ...
    def kill(self) -> None: ...


class NothingHappened(AssertionError, TimeoutError):
    """The event waited for did not come; the message lists the last ones that did."""


def free_port() -> int:
    """One that nobody has now, and that nobody is given before it is used.

    Each process of ours gets the next in turn, whatever its TMPDIR is.
    """
    with Path(f"/tmp/ltx-ports-{os.getuid()}").open("a+") as last:
        fcntl.flock(last, fcntl.LOCK_EX)
        last.seek(0)
        port = int(last.read() or PORTS[0])
        while True:
            port = PORTS[(port + 1) % len(PORTS)]
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                break
        last.truncate(0)
        last.write(str(port))
    return port


class Hosted:
    """One sandbox process. Leaving the context, or `stop`, ends it; its state folder stays."""

    def __init__(
        self,
        state: Path,
        *,
        port: int = 0,
        secret: str = DEFAULT_SECRET,
        blob_token: str = DEFAULT_TOKEN,
        frames: Path | None = None,
        lease_s: float = 60,
    ) -> None:
        self.state = state
        self.secret = secret
        self.blob_token = blob_token
        self.url = ""
        self._port = port
        self._frames = frames
        self._lease_s = lease_s
        self._process: Process | None = None

    def __enter__(self) -> Hosted:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # The process

    @property
    def blob_api_url(self) -> str:
        return f"{self.url}/api/blob"

    @property
    def comfyui_control_url(self) -> str:
        """Where a ComfyUI look-alike reports its events and learns its next fault."""
        return f"{self.url}/control/comfyui"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the sandbox is not running"
        return self._process.pid

    @property
    def log(self) -> Path:
        return self.state / "hosted.log"

    def start(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = process = subprocess.Popen(
                self._command(),
                cwd=ROOT,
                env={**os.environ, **LIGHT},
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert process.stdout is not None
        with process.stdout as output:
            self._arrive(output.readline())

    def _arrive(self, line: bytes) -> None:
        if not line:
            self.stop()
            raise RuntimeError(f"the sandbox did not start:\n{self.log.read_text()[-2000:]}")
        self.url = json.loads(line)["url"]
        # A restart is an outage and a recovery of one address, so the port is kept.
        self._port = int(self.url.rpartition(":")[2])

    def worker_settings(self) -> dict[str, str]:
        """For a worker of this sandbox; what renders and where its state is comes on top."""
        return {
            "API_URL": self.url,
            "VIDEOGEN_WORKER_SECRET": self.secret,
            "BLOB_READ_WRITE_TOKEN": self.blob_token,
            "VERCEL_BLOB_API_URL": self.blob_api_url,
            "BLOB_ACCESS": "public",
            "WATERMARK_PATH": str(ROOT / "sandbox" / "frames" / "watermark.png"),
            "FRAME_HOSTS": "127.0.0.1",
        }

    def lookalike_settings(self) -> dict[str, str]:
        """For a worker that renders with the look-alike."""
        return {
            "COMFYUI_DIR": str(ROOT / "sandbox" / "comfyui"),
            "COMFYUI_PYTHON": sys.executable,
            "COMFYUI_URL": f"http://localhost:{free_port()}",
            "LOOKALIKE_CONTROL_URL": self.comfyui_control_url,
        }

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "sandbox.hosted", *self._arguments()]

    def _arguments(self) -> list[str]:
        arguments = ["--state", str(self.state.absolute()), "--port", str(self._port)]
        arguments += ["--lease-s", str(self._lease_s)]
        arguments += ["--secret", self.secret, "--blob-token", self.blob_token]
        if self._frames:
            arguments += ["--frames", str(self._frames.absolute())]
        return arguments

    def stop(self) -> int | None:
        """Ask the process to end; its exit code, or None when there was no process."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return process.returncode

    @contextmanager
    def outage(self) -> Iterator[None]:
        self.kill()
        try:
            yield
        finally:
            self.start()

    # Jobs and what became of them

    def add_job(
        self,
        frames: Sequence[str],
        prompts: Sequence[str],
        watermark: bool = False,
        **kw: Any,
    ) -> str:
        stage = {"frames": list(frames), "clipPrompts": list(prompts), "watermark": watermark}
        return self.add_stage(stage, **kw)

    def add_stage(self, stage_data: Any, **kw: Any) -> str:
        """Queue a job whatever its stage data; `kw` are `id`, `maxAttempts` and `raw`."""
        job: str = self._call("POST", "jobs", {"stageData": stage_data, **kw})["id"]
        return job

    def job(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self._call("GET", f"jobs/{quote(job, safe='')}")
        return found

    def jobs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("GET", "jobs")["jobs"]
        return found

    def cancel(self, job: str) -> bool:
        cancelled: bool = self._call("POST", f"jobs/{quote(job, safe='')}/cancel")["cancelled"]
        return cancelled

    def blobs(self) -> dict[str, dict[str, Any]]:
        """Every stored blob by its pathname, each with the `file` that holds its bytes."""
        return {blob["pathname"]: blob for blob in self._call("GET", "blobs")["blobs"]}

    def blob_path(self, job: str) -> Path:
        """The file on this disk that holds the film a job was completed with."""
        outcome = self.job(job)["outcome"]
        if not outcome or "outputUrl" not in outcome:
            raise LookupError(f"job {job} has no film: {outcome}")
        address = outcome["outputUrl"].partition("?")[0]
        return next(Path(blob["file"]) for blob in self.blobs().values() if blob["url"] == address)

    def put_frame(self, name: str, content: bytes, content_type: str = "image/png") -> str:
        url = f"{self.url}/control/frames/{quote(name, safe='')}"
        answer = self._send("PUT", url, data=content, headers={"Content-Type": content_type})
        return f"{self.url}{answer['path']}"

    # Watching

    def wait(
        self,
        kind: str,
        job: str | None = None,
        after: int | None = None,
        timeout: float = 30,
        where: Callable[[Event], bool] | None = None,
    ) -> Event:
        """The first event of a kind (fnmatch), from the beginning or after a `seq`."""
        seq, deadline = after or 0, time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            found = self.events(kind, job, seq, max(0.0, min(left, LONGEST_POLL_S)))
            for event in found:
                if where is None or where(event):
                    return event
            seq = found[-1]["seq"] if found else seq
            if left <= 0:
                raise NothingHappened(self._missing(kind, job, timeout))

    def wait_outcome(self, job: str, timeout: float = 40) -> Event:
        """The `complete` or `fail` event of a job."""
        ends = ("complete", "fail")
        return self.wait("*", job, timeout=timeout, where=lambda event: event["kind"] in ends)

    def _missing(self, kind: str, job: str | None, timeout: float) -> str:
        recent = self.events(after=max(0, self.now() - 200))
        last = [event for event in recent if event["kind"] != "pending"][-20:]
        lines = [
            f"  {event['seq']} {event['kind']} {event['job']} {event['data']}" for event in last
        ]
        return "\n".join(
            [f"no {kind!r} of job {job} within {timeout:g} s; the last events:", *lines]
        )

    def events(
        self, kind: str = "*", job: str | None = None, after: int = 0, timeout: float = 0
    ) -> list[Event]:
        query = {"kind": kind, "after": after, "timeout": timeout, **({"job": job} if job else {})}
        url = f"{self.url}/control/events"
        found: list[Event] = self._send("GET", url, params=query, timeout=timeout + 10)["events"]
        return found

    def now(self) -> int:
        """The `seq` of the latest event, to wait for what happens after it."""
        url = f"{self.url}/control/events"
        last: int = self._send("GET", url, params={"kind": "", "timeout": 0})["last"]
        return last

    def requests(self, match: str = "*", after: int = 0) -> list[dict[str, Any]]:
        url = f"{self.url}/control/requests"
        found: list[dict[str, Any]] = self._send(
            "GET", url, params={"match": match, "after": after}
        )["requests"]
        return found

    # Interfering

    def fault(self, match: str, *, times: int = 1, after: int = 0, **action: Any) -> None:
        one = {"match": match, "times": times, "after": after, "action": action}
        self._call("POST", "faults", [one])

    def clear_faults(self) -> None:
        self._call("DELETE", "faults")

    def set_options(self, **options: Any) -> None:
        self._call("POST", "options", options)

    def script_comfyui(self, *steps: dict[str, Any]) -> None:
        self._call("POST", "comfyui/script", list(steps))

    def clear_comfyui_script(self) -> None:
        self._call("DELETE", "comfyui/script")

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        return self._send(method, f"{self.url}/control/{path}", json=body)

    @staticmethod
    def _send(method: str, url: str, timeout: float = 30, **kw: Any) -> Any:
        with requests.Session() as session:
            session.trust_env = False
            response = session.request(method, url, timeout=timeout, **kw)
        if not response.ok:
            raise RuntimeError(f"{method} {url}: {response.status_code} {response.text[:500]}")
        return response.json()
