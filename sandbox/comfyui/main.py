"""A ComfyUI look-alike for people and tests without a GPU: same flags, API, logs and habits.

Started like the real one, in this folder: python main.py --port 8188 --disable-auto-launch
LOOKALIKE_* variables (script.py) say how long things take and what goes wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import logging
import os
import resource
import signal
import sys
import threading
import time

# aiohttp reads every certificate authority of the machine when it is imported, in every process.
os.environ |= {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}

from aiohttp import web
from engine import Engine
from hub import Hub
from mishaps import segfault
from options import Folders, parse_options
from packs import import_packs
from routes import make_app
from script import Fault, Script
from state import State

log = logging.getLogger(__name__)

COLOURS = {"INFO": 32, "WARNING": 33, "ERROR": 31, "CRITICAL": 35, "DEBUG": 36}
BOOT_LOG = (
    "Checkpoint files will always be loaded safely.",
    "Device: cuda:0 {gpu} : cudaMallocAsync",
    "Using pytorch attention",
    "ComfyUI version: {version}.0",
    "Import times for custom nodes:",
    "   0.0 seconds: {here}/custom_nodes/ComfyUI-GGUF",
    "   0.1 seconds: {here}/custom_nodes/ComfyUI-VideoHelperSuite",
    "   0.2 seconds: {here}/custom_nodes/ComfyUI-KJNodes",
)


def main() -> None:
    version = os.environ.get("LOOKALIKE_VERSION", "0.27")
    options = parse_options(sys.argv[1:], version)
    set_up_logging(options, version)
    script = Script(os.environ, options.port)
    folders = Folders.of(options)
    folders.prepare()
    fault = boot(options, script)
    packs = import_packs(options, Folders.home(options), broken=fault.kind == "pack_broken")
    if options.quick_test_for_ci:
        return
    asyncio.run(serve(options, State(options, folders, script, packs)))


def set_up_logging(options: argparse.Namespace, version: str) -> None:
    """0.27 colours its log, terminal or not."""
    stream = sys.stdout if options.log_stdout else sys.stderr
    handler = logging.StreamHandler(stream)
    if version != "0.21":
        handler.setFormatter(ColouredFormatter())
    logging.basicConfig(level=options.verbose, handlers=[handler])
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


class ColouredFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname
        return f"\x1b[{COLOURS.get(level, 0)}m[{level}]\x1b[0m {super().format(record)}"


def boot(options: argparse.Namespace, script: Script) -> Fault:
    """Everything before the port is touched, as slow as the imports of the real one."""
    fault = script.report("boot") or Fault("none")
    for line in BOOT_LOG:
        log.info(line.format(gpu=script.gpu_name, version=script.version, here=os.getcwd()))
        time.sleep(script.times.boot / len(BOOT_LOG))
    if fault.kind == "slow":
        time.sleep(float(fault.get("seconds", 10)))
    elif fault.kind == "crowded":
        script.crowd(float(fault.get("seconds", 10)))
    elif fault.kind == "hang":
        threading.Event().wait()
    elif fault.kind == "segfault":
        segfault()
    elif fault.kind == "exit":
        log.error(fault.get("message", "ModuleNotFoundError: No module named 'torch'"))
        sys.exit(int(fault.get("rc", 1)))
    elif fault.kind == "stranger":
        web.run_app(make_stranger(), host="127.0.0.1", port=options.port, handle_signals=False)
    return fault


def make_stranger() -> web.Application:
    """Some other program on our port: 200 and a page, whatever is asked."""

    async def greet(request: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><h1>It works!</h1>", content_type="text/html")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", greet)
    return app


async def serve(options: argparse.Namespace, state: State) -> None:
    """Listen until SIGINT. SIGTERM ends the process, as it does the real one."""
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


if __name__ == "__main__":
    faulthandler.enable(all_threads=False)
    # A scripted crash should not fill the disk with core files.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
