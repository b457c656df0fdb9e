"""From the opened port to the end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping

# aiohttp reads every certificate authority of the machine when it is imported, in every process.
os.environ |= {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}

from aiohttp import web
from engine import Engine
from hub import Hub
from options import Folders
from packs import Node
from routes import make_app
from script import Script
from state import State

log = logging.getLogger(__name__)


def serve_as_stranger(port: int) -> None:
    """Some other program on our port: 200 and a page, whatever is asked."""

    async def greet(request: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><h1>It works!</h1>", content_type="text/html")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", greet)
    web.run_app(app, host="127.0.0.1", port=port, handle_signals=False)


def serve(
    options: argparse.Namespace, folders: Folders, script: Script, packs: Mapping[str, Node]
) -> None:
    """Listen until SIGINT. SIGTERM ends the process, as it does the real one."""
    asyncio.run(serve_until_interrupted(options, State(options, folders, script, packs)))


async def serve_until_interrupted(options: argparse.Namespace, state: State) -> None:
    script = state.script
    if script.times.term:
        signal.signal(signal.SIGTERM, lambda number, _: die_slowly(number, script.times.term))
    hub = Hub()
    engine = Engine(state, hub)
    runner = web.AppRunner(make_app(engine), access_log=None)
    await runner.setup()
    interrupted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
    await listen(runner, options)
    publishing = asyncio.create_task(hub.publish())
    threading.Thread(target=engine.work, daemon=True).start()
    await asyncio.to_thread(script.report, "ready")
    await interrupted.wait()
    publishing.cancel()
    stop(state.folders, script)


def die_slowly(number: int, seconds: float) -> None:
    """From the first signal on it is dying: another one changes nothing."""
    signal.signal(number, signal.SIG_IGN)
    time.sleep(seconds)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


async def listen(runner: web.AppRunner, options: argparse.Namespace) -> None:
    log.info("Starting server\n")
    for address in options.listen.split(","):
        try:
            await web.TCPSite(runner, address, options.port).start()
        except OSError:
            log.error(
                "Port %d is already in use on address %s. Please close the other application or"
                " use a different port.",
                options.port,
                address,
            )
            sys.exit(1)
        log.info("To see the GUI go to: http://%s:%d", address, options.port)


def stop(folders: Folders, script: Script) -> None:
    log.info("\nStopped server")
    time.sleep(script.times.stop)
    folders.wipe_temp()
    script.report("exit", reason="SIGINT")
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Not sys.exit: the worker thread may be in the middle of a frame and is not waited for.
    os._exit(0)
