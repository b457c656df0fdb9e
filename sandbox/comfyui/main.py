"""A ComfyUI look-alike for people and tests without a GPU: same flags, API, logs and habits.

Started like the real one, in this folder: python main.py --port 8188 --disable-auto-launch
LOOKALIKE_* variables (script.py) say how long things take and what goes wrong.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import resource
import sys
import threading
import time

from options import Folders, parse_options
from packs import import_packs
from script import Fault, Script, segfault

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
    from serving import serve

    serve(options, folders, script, packs)


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
    """Everything before the port is touched, as slow as the imports of the real one.

    Our own, a web server above all, are most of what a start costs here: they come behind it.
    """
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
        from serving import serve_as_stranger

        serve_as_stranger(options.port)
    return fault


if __name__ == "__main__":
    faulthandler.enable(all_threads=False)
    # A scripted crash should not fill the disk with core files.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
