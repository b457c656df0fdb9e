"""The sandbox and a worker behind one local page: drop pictures, get a film; until Ctrl-C.

With COMFYUI_DIR and COMFYUI_PYTHON set, that ComfyUI renders instead of the look-alike.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientTimeout, web

from sandbox.client import ROOT, Hosted
from sandbox.demo import (
    FRAMES,
    PROMPTS,
    SHOWN,
    STILLS,
    DemoFailed,
    extract_frames,
    sandbox,
    worker_environ,
)
from sandbox.hosted import LARGEST_FRAME
from sandbox.launch import Running, worker_command
from sandbox.studio_words import (
    Refused,
    checked_job,
    describe_worker,
    picture_kind,
    tell_film,
    tell_progress,
)

PAGE = ROOT / "sandbox" / "page"
PORT = 8765
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MOST_JOBS_SHOWN = 30
PACE = {"HEARTBEAT_INTERVAL_S": "0.5", "POLL_INTERVAL_S": "1"}
EVENTS_S = 20.0
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:;"
    " frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
LOOKALIKE = (
    "Films are made by the look-alike, which only dissolves one picture into the next. Set"
    " COMFYUI_DIR and COMFYUI_PYTHON to render with your ComfyUI."
)
RENDERER = "" if os.environ.get("COMFYUI_DIR") else LOOKALIKE
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Studio:
    """What the page shows, and what it may do: add pictures and jobs, cancel jobs, nothing else."""

    def __init__(self, hosted: Hosted, worker: Running, folder: Path) -> None:
        self._hosted, self._worker, self._folder = hosted, worker, folder
        self._pictures: set[str] = set()
        self._beat: dict[str, Any] = {}
        self._beat_at = time.monotonic()
        self._progress: dict[str, dict[str, Any]] = {}
        self._stills: dict[str, asyncio.Task[int]] = {}
        # One at a time: the renderer needs the processor more.
        self._drawing = asyncio.Lock()

    def app(self, port: int) -> web.Application:
        app = web.Application(middlewares=[only_from_here(port)], client_max_size=LARGEST_FRAME)
        for path, name in (("/", "index.html"), ("/style.css",) * 2, ("/page.js",) * 2):
            app.router.add_get(path, partial(send_file, PAGE / name.lstrip("/")))
        for name in STILLS:
            app.router.add_get(f"/samples/{name}", partial(send_file, FRAMES / name))
        app.router.add_get("/api/samples", show_samples)
        app.router.add_get("/api/state", self._show_state)
        app.router.add_post("/api/pictures", self._add_picture)
        app.router.add_post("/api/jobs", self._add_job)
        app.router.add_post("/api/jobs/{job}/cancel", self._cancel_job)
        app.router.add_get("/films/{job}.mp4", self._send_film)
        app.router.add_get("/films/{job}/{number:\\d+}.png", self._send_still)
        app.cleanup_ctx.append(self._listening)
        app.on_response_prepare.append(add_headers)
        return app

    async def _listening(self, _app: web.Application) -> AsyncIterator[None]:
        timeout = ClientTimeout(total=EVENTS_S + 10)
        async with ClientSession(f"{self._hosted.url}/control/", timeout=timeout) as self._session:
            listener = asyncio.create_task(self._follow_worker())
            yield
            for task in (listener, *self._stills.values()):
                task.cancel()

    async def _follow_worker(self) -> None:
        seq = 0
        while True:
            query = {"kind": "heartbeat", "after": seq, "timeout": EVENTS_S}
            for event in (await self._ask("GET", "events", params=query))["events"]:
                seq, self._beat, self._beat_at = event["seq"], event["data"], time.monotonic()
                if event["job"]:
                    self._progress[event["job"]] = event["data"]["progress"]

    async def _ask(self, method: str, path: str, **kw: Any) -> Any:
        async with self._session.request(method, path, **kw) as answer:
            answer.raise_for_status()
            return await answer.json()

    # What there is to see

    async def _show_state(self, _request: web.Request) -> web.Response:
        jobs = (await self._ask("GET", "jobs"))["jobs"]
        waiting = [job["id"] for job in jobs if job["state"] == "queued"]
        shown = [
            {"title": f"Film {number}", **self._describe(job, waiting)}
            for number, job in enumerate(jobs, 1)
        ]
        worker = describe_worker(
            self._worker.process.poll(), time.monotonic() - self._beat_at, self._beat
        )
        newest = shown[: -MOST_JOBS_SHOWN - 1 : -1]
        return web.json_response({"worker": worker, "renderer": RENDERER, "jobs": newest})

    def _describe(self, job: dict[str, Any], waiting: list[str]) -> dict[str, Any]:
        stage, outcome = job["stageData"], job["outcome"] or {}
        shown = {
            "id": job["id"],
            "state": job["state"],
            "prompts": stage["clipPrompts"],
            "watermark": stage["watermark"],
        }
        if job["state"] == "queued":
            ahead = waiting.index(job["id"])
            return shown | {"words": f"Waiting, {ahead} before it" if ahead else "Waiting, next"}
        if job["state"] == "claimed":
            progress = self._progress.get(job["id"], {})
            return shown | {"words": tell_progress(progress), "progress": progress}
        if job["state"] == "completed":
            return shown | {"words": tell_film(outcome), **self._film_parts(job)}
        if job["state"] == "cancelled":
            return shown | {"words": "The film was cancelled."}
        error = {name: outcome["error"][name] for name in ("code", "message")}
        return shown | {"words": "The film could not be made.", "error": error}

    def _film_parts(self, job: dict[str, Any]) -> dict[str, Any]:
        name, clips = job["id"], len(job["stageData"]["clipPrompts"])
        if name not in self._stills:
            self._stills[name] = asyncio.create_task(self._draw_stills(name, clips))
        drawn = self._stills[name]
        ready = drawn.done() and not drawn.cancelled() and not drawn.exception()
        count = drawn.result() if ready else 0
        stills = [f"/films/{name}/{number + 1}.png" for number in range(count)]
        return {"film": f"/films/{name}.mp4", "stills": stills, "shown": list(SHOWN)}

    async def _draw_stills(self, job: str, clips: int) -> int:
        """The contact sheet's pictures, kept in a folder of the job; how many there are."""
        folder = self._folder / job
        folder.mkdir(parents=True)
        film = await asyncio.to_thread(self._hosted.blob_path, job)
        async with self._drawing:
            try:
                return len(await asyncio.to_thread(extract_frames, film, clips, folder))
            except (DemoFailed, subprocess.SubprocessError) as error:
                print(f"studio: no contact sheet of {job}: {error}", file=sys.stderr)
                return 0

    async def _send_film(self, request: web.Request) -> web.StreamResponse:
        try:
            film = await asyncio.to_thread(self._hosted.blob_path, request.match_info["job"])
        except (LookupError, RuntimeError):
            raise Refused("There is no such film.", 404) from None
        return web.FileResponse(film, headers={"Content-Type": "video/mp4"})

    async def _send_still(self, request: web.Request) -> web.StreamResponse:
        job, number = request.match_info["job"], int(request.match_info["number"])
        still = self._folder / job / f"{number:02}.png"
        if job not in self._stills or not still.is_file():
            raise Refused("There is no such picture.", 404)
        return web.FileResponse(still)

    # What there is to do

    async def _add_picture(self, request: web.Request) -> web.Response:
        if (request.content_length or 0) > LARGEST_FRAME:
            raise Refused("The picture is larger than 64 MB.", 413)
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise Refused("The picture is larger than 64 MB.", 413) from None
        kind = picture_kind(body)
        if kind is None:
            raise Refused("This is no JPEG, PNG or WebP picture.", 415)
        name = f"{secrets.token_hex(12)}.{kind}"
        headers = {"Content-Type": f"image/{kind}"}
        await self._ask("PUT", f"frames/{name}", data=body, headers=headers)
        self._pictures.add(name)
        return web.json_response({"name": name}, status=201)

    async def _add_job(self, request: web.Request) -> web.Response:
        try:
            given = await request.json()
        except ValueError:
            raise Refused("The job is not JSON.") from None
        pictures, prompts, watermark = checked_job(given, self._pictures)
        stage = {
            "frames": [f"{self._hosted.url}/frames/{name}" for name in pictures],
            "clipPrompts": prompts,
            "watermark": watermark,
        }
        job = {"id": f"film-{secrets.token_hex(6)}", "stageData": stage}
        return web.json_response(await self._ask("POST", "jobs", json=job), status=201)

    async def _cancel_job(self, request: web.Request) -> web.Response:
        job = request.match_info["job"]
        if not re.fullmatch(r"film-[0-9a-f]{12}", job):
            raise Refused("There is no such film.", 404)
        return web.json_response(await self._ask("POST", f"jobs/{job}/cancel"))


def only_from_here(port: int) -> Any:
    """A web page elsewhere, or a name made to point here, can use nothing of this."""
    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.headers.get("Host") not in hosts:
                raise Refused("This page answers to its own address only.", 403)
            origin = request.headers.get("Origin")
            harmless = origin is None and request.method in ("GET", "HEAD")
            if not harmless and origin != f"http://{request.host}":
                raise Refused("This was not sent by this page.", 403)
            return await handler(request)
        except Refused as refused:
            return web.json_response({"error": str(refused)}, status=refused.status)

    return guard


async def add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


async def send_file(path: Path, _request: web.Request) -> web.StreamResponse:
    return web.FileResponse(path)


async def show_samples(_request: web.Request) -> web.Response:
    pictures = [f"/samples/{name}" for name in STILLS]
    return web.json_response({"pictures": pictures, "prompts": PROMPTS})


def start_worker(hosted: Hosted, state: Path) -> Running:
    """A worker that serves the queue and says what it does on this terminal."""
    # What the environment says of the look-alike's pace and of the size wins.
    own = {k: v for k, v in os.environ.items() if k.startswith(("LOOKALIKE_", "VIDEO_SIZE"))}
    env = {**worker_environ(hosted, state, "studio-worker"), **PACE, **own}
    return Running(worker_command("run"), env, start_new_session=True)


async def serve(studio: Studio, door: socket.socket) -> None:
    """Until a signal asks to stop."""
    stop = asyncio.Event()
    for number in STOPS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    port = door.getsockname()[1]
    runner = web.AppRunner(studio.app(port), access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    await web.SockSite(runner, door).start()
    print(f"Open http://127.0.0.1:{port}/ in a browser; Ctrl-C stops everything.", flush=True)
    await stop.wait()
    print("Stopping.", flush=True)
    await runner.cleanup()


def run_studio(port: int) -> None:
    with (
        # Bound first: a port that is taken is told before anything else has started.
        socket.create_server(("127.0.0.1", port)) as door,
        tempfile.TemporaryDirectory(prefix="ltx-studio-") as name,
        sandbox(Path(name)) as hosted,
        start_worker(hosted, Path(name) / "worker") as worker,
    ):
        asyncio.run(serve(Studio(hosted, worker, Path(name) / "stills"), door))
        catch_stops()


def catch_stops() -> None:
    for number in STOPS:
        signal.signal(number, signal.default_int_handler)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sandbox.studio", description=__doc__)
    parser.add_argument("--port", type=int, default=PORT, help="0 takes a free one")
    port = parser.parse_args().port
    catch_stops()
    try:
        run_studio(port)
    except KeyboardInterrupt:
        return 130
    except (RuntimeError, OSError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        told = f"port {port} is taken; choose another with --port" if taken else error
        print(f"studio: {told}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
