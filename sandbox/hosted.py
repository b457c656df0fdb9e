"""The hosted side as one process: queue API, Vercel Blob, frame host and control endpoint."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from aiohttp import web

from sandbox.blob import BlobApi
from sandbox.blob_store import BlobStore
from sandbox.control import Control
from sandbox.faults import ConnectionDropped, Faults, Handler, inflict
from sandbox.frame_host import FrameHost
from sandbox.journal import JSON_LIMIT, Journal, Options, open_database
from sandbox.queue_api import QueueApi

DEFAULT_SECRET = "sandbox-secret-1234567890"
DEFAULT_TOKEN = "vercel_blob_rw_Sandbox0Store1234_0123456789abcdefSecret"
LARGEST_FRAME = 64 * 1024 * 1024


@dataclass(frozen=True)
class Settings:
    state: Path
    host: str
    port: int
    secret: str
    blob_token: str
    frames: Path | None
    lease_s: float


def parse_settings(argv: Sequence[str] | None = None) -> Settings:
    parser = argparse.ArgumentParser(prog="python -m sandbox.hosted", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder of the database")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--secret", default=DEFAULT_SECRET)
    parser.add_argument("--blob-token", default=DEFAULT_TOKEN)
    parser.add_argument("--frames", type=Path, help="folder of pictures to serve")
    parser.add_argument("--lease-s", type=float, default=60)
    return Settings(**vars(parser.parse_args(argv)))


class Hosted:
    """Wires the parts to one database and passes every request through the journal."""

    def __init__(self, settings: Settings) -> None:
        settings.state.mkdir(parents=True, exist_ok=True)
        self._db = db = open_database(settings.state / "hosted.sqlite3")
        self._faults = faults = Faults()
        self._journal = journal = Journal(db)
        options = Options(db, settings.lease_s)
        store = BlobStore(db, journal, options, settings.blob_token, settings.state / "blobs")
        blob = BlobApi(db, journal, options, store, settings.blob_token)
        queue = QueueApi(db, journal, options, store, settings.secret)
        frames = FrameHost(db, journal, settings.frames)
        control = Control(journal, options, faults, queue, store, frames)
        self.app = web.Application(
            middlewares=[self._observe, answer_errors_in_json], client_max_size=LARGEST_FRAME
        )
        for part in (queue, blob, frames, control):
            self.app.add_routes(part.routes())
        self.app.on_shutdown.append(self._release_pollers)
        self.app.on_cleanup.append(self._close)

    @web.middleware
    async def _observe(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/control/"):
            return await handler(request)
        self._journal.begin(request)
        try:
            response = await self._answer(request, handler)
        except (ConnectionDropped, ConnectionError, web.RequestPayloadError):
            # Nobody is left to read this; aiohttp only needs something to throw away.
            return web.Response(status=499)
        self._journal.end(request, response.status)
        return response

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        fault = self._faults.take(f"{request.method} {request.path}")
        if fault is None:
            await self._note_json(request)
            return await handler(request)
        self._journal.emit("fault", path=request.path, match=fault.match, action=fault.action)
        if not {"stopReading", "reset"} & fault.action.keys():
            await self._note_json(request)
        return await inflict(fault.action, request, handler)

    async def _note_json(self, request: web.Request) -> None:
        """Read a small JSON body ahead, so that it is on record whatever answers the request."""
        if carries_json(request):
            body = await request.read()
            self._journal.note_body(request, len(body), body)

    async def _release_pollers(self, _app: web.Application) -> None:
        self._journal.close()

    async def _close(self, _app: web.Application) -> None:
        self._db.close()


def carries_json(request: web.Request) -> bool:
    # What is stored is streamed to disk by its handler, whatever type it claims to be.
    stored = request.method == "PUT" or request.headers.get("x-mpu-action") == "upload"
    small = 0 < (request.content_length or 0) <= JSON_LIMIT
    return small and not stored and request.content_type == "application/json"


@web.middleware
async def answer_errors_in_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        body = {"error": {"code": error.reason, "message": f"{request.method} {request.path}"}}
        return web.json_response(body, status=error.status)


async def serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    hosted = Hosted(settings)
    runner = web.AppRunner(hosted.app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, settings.host, settings.port)
    await site.start()
    port = runner.addresses[0][1]
    print(json.dumps({"url": f"http://{settings.host}:{port}"}), flush=True)
    await stop.wait()
    await runner.cleanup()


def main(argv: Sequence[str] | None = None) -> None:
    asyncio.run(serve(parse_settings(argv)))


def main_of_fork(argv: Sequence[str], output: Connection, log: Path) -> None:
    """`main` in a process that has imported everything already, with the pipes of a fresh one."""
    with log.open("ab") as errors:
        os.dup2(errors.fileno(), 2)
    os.dup2(output.fileno(), 1)
    output.close()
    main(argv)


if __name__ == "__main__":
    main()
