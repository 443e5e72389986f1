"""Processes of runs, from /proc (Linux)."""

import time
from collections.abc import Callable
from pathlib import Path


def children(parent: int) -> list[int]:
    """Pids of the living processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid = stat.read_text().rsplit(")", 1)[1].split()[:2]
        except (OSError, ValueError):
            continue  # ended meanwhile
        if int(ppid) == parent and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def resident_mb(pid: int) -> float:
    """Memory that a process holds, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6


def wait_until(condition: Callable[[], object], within_s: float) -> bool:
    """Whether a condition came true in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
