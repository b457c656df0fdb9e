"""What the kernel tells of one process, without its children."""

from __future__ import annotations

import os
import re
from pathlib import Path


def status(pid: int, field: str) -> int:
    """Of /proc/pid/status: VmHWM and VmRSS in kB, Threads."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{field}:\s*(\d+)", text, re.MULTILINE)
    assert found, field
    return int(found[1])


def megabytes(pid: int, field: str = "VmRSS") -> float:
    """Resident memory; VmHWM is the most it ever was."""
    return status(pid, field) / 1024


def cpu_seconds(pid: int) -> float:
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
