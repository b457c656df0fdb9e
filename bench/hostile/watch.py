"""What must not be seen of a worker: secrets, wherever they might show, and what it writes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

WATCH_S = 0.1
SECRET = "pa+ss/wo&rd=?%41~!x\"'(z)"
TOKEN = "vercel_blob_rw_Sandbox0Store1234_0123456789abcdefSecret"
PROXY_PASSWORD = "proxy-pass-5f0e7a"
WRITES = "open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat"


def forms(secret: str) -> set[bytes]:
    """The ways in which a secret may be seen."""
    texts = {secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]}
    texts |= {base64.b64encode(secret.encode()).decode().rstrip("=")}
    return {text.encode() for text in texts}


SECRETS = {name: forms(name) for name in (SECRET, TOKEN, PROXY_PASSWORD)}


def secrets_in(content: bytes, known: Sequence[str] = ()) -> int:
    """How many secrets are in a text, but for those that belong there."""
    found = [name for name in SECRETS if any(form in content for form in SECRETS[name])]
    return len([name for name in found if name not in known])


class Watch:
    """Looks all the time at a worker's children and its state folder for what must not be there."""

    def __init__(self, process: Path, state: Path) -> None:
        self.process, self.state = process, state
        self.children: set[str] = set()
        self.seen: Counter[str] = Counter()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        turn = 0
        while not self.ended.wait(WATCH_S):
            self._look_at_children(self.process)
            turn += 1
            if turn % 10 == 0:
                self.look_at_files()

    def _look_at_children(self, parent: Path) -> None:
        with contextlib.suppress(OSError):
            for pid in (parent / "task" / parent.name / "children").read_text().split():
                child = Path("/proc") / pid
                command = (child / "cmdline").read_bytes()
                if command == (parent / "cmdline").read_bytes():
                    continue  # not a program of its own yet
                self.seen["command lines"] += secrets_in(command)
                self.seen["environments"] += secrets_in((child / "environ").read_bytes())
                self.children.add((child / "comm").read_text().strip())
                self._look_at_children(child)

    def look_at_files(self) -> None:
        # Not rglob(), which minds a folder that goes away.
        found = [Path(top) / name for top, _, names in os.walk(self.state) for name in names]
        for path in found:
            with contextlib.suppress(OSError):
                if path.is_file() and path.stat().st_size < 2**22:
                    self.seen["state folder"] += secrets_in(path.read_bytes())
                self.seen["files that others may read"] += bool(path.stat().st_mode & 0o077)

    def stop(self) -> None:
        self.ended.set()
        self.thread.join()
        self.look_at_files()


def paths_written(calls: str) -> set[str]:
    """Of an strace of WRITES: files that were made, changed or moved."""
    found = set[str]()
    for line in calls.splitlines():
        if "open" in line and not re.search(r"O_(WRONLY|RDWR|CREAT|TMPFILE)", line):
            continue
        named = re.findall(r'(?:\w+<([^>]*)>, )?"((?:[^"\\]|\\.)*)"', line)
        found |= {os.path.normpath(os.path.join(folder, path)) for folder, path in named}
    return found
