"""Starts launch.py as a user would, in a session of its own, so that what it leaves behind can be found."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from forked import LAUNCH, ROOT, Forked

from splitlearn.saved import metrics  # noqa: F401  for tests, beside `summary`

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TINY = ["data.max_train_samples=64", "data.max_test_samples=32", "batch_size=16", "epochs=1", "log.tensorboard=false"]


def slow(*values: object):
    """Values of a parametrized test that are for those who run the slow ones."""
    return pytest.param(*values, marks=pytest.mark.slow)


def torchrun(num_ranks: int) -> list[str]:
    """The command that starts launch.py under torchrun, at a port of its own."""
    return [*TORCHRUN, "--nproc-per-node", str(num_ranks), "--master-port", str(a_free_port()), str(ROOT / "launch.py")]


def a_free_port() -> int:
    """A port of this machine that stays free until it is used.

    It is outside the ranges that systems draw outgoing connections' ports from (Linux: 32768 and more), of which one
    that is free now may be taken by any connection that a test beside this one opens.
    """
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", secrets.choice(range(15000, 29000)))) as listener:
            return listener.getsockname()[1]


@contextmanager
def started(command: list[str], cwd: Path, anew: bool = False, **environment: str):
    """A running command, with its output in cwd/out.txt; its whole session is killed at the end.

    Of one that starts with LAUNCH nothing is imported again, unless `anew`.
    """
    environment, out = {**os.environ, "OMP_NUM_THREADS": "1", **environment}, cwd / "out.txt"
    if command[: len(LAUNCH)] == LAUNCH and not anew:
        process = Forked(command[len(LAUNCH) :], cwd, out, environment)
    else:
        with open(out, "wb") as file:
            process = subprocess.Popen(
                command, cwd=cwd, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment
            )
    try:
        yield process
    finally:
        for pid in session(process.pid):
            with suppress(ProcessLookupError):  # it has ended since
                os.kill(pid, signal.SIGKILL)
        process.wait()


def run(
    command: list[str], cwd: Path, timeout_s: float = 120, anew: bool = False, **environment: str
) -> tuple[int, str]:
    """Exit status and output of a command, which must end in time and leave no process behind."""
    with started(command, cwd, anew, **environment) as process:
        status = process.wait(timeout_s)
        assert not left_over(process.pid), "processes are left"
    return status, (cwd / "out.txt").read_text()


def session(leader: int) -> list[int]:
    """Pids of the living processes of a session."""
    return [pid for pid, (_, sid) in living().items() if sid == leader]


def children(parent: int) -> list[int]:
    """Pids of the living processes that a process has started."""
    return [pid for pid, (ppid, _) in living().items() if ppid == parent]


def living() -> dict[int, tuple[int, int]]:
    """Parent and session of every living process."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid, _, sid = stat.read_text().rsplit(")", 1)[1].split()[:4]
        except (OSError, ValueError):
            continue  # ended meanwhile
        if state not in "ZX":
            found[int(stat.parent.name)] = int(ppid), int(sid)
    return found


def left_over(leader: int, within_s: float = 5.0) -> list[int]:
    """Processes of a session that are still there after `within_s`."""
    deadline = time.monotonic() + within_s
    while (pids := session(leader)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return pids


def wait_for(path: Path, *texts: str, timeout_s: float = 90, times: int = 1) -> None:
    """Waits until a file, which need not exist yet, contains one of some texts so many times."""
    deadline = time.monotonic() + timeout_s
    while not path.exists() or max(map(path.read_text().count, texts)) < times:
        assert time.monotonic() < deadline, f"{path} has no {' or '.join(texts)}:\n{path.read_text()[-2000:]}"
        time.sleep(0.05)


def job_folders(cwd: Path) -> list[Path]:
    """The folders of all jobs that were run below `cwd`, in order."""
    return sorted(path.parent for path in cwd.rglob("metrics.jsonl"))


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())
