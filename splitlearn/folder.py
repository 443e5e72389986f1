"""A run's folder: no two runs get the same one, and one process at a time writes into it.

The lock is the operating system's (flock), which ends with the process that holds it, however that ends. On NFS it
holds between machines; where a file system has none, nothing keeps two runs apart.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from itertools import count
from pathlib import Path

from splitlearn.errors import Busy, writing_to

LOCK = ".lock"
LAUNCHER = ".torchrun"  # whose run it is
PROC = Path("/proc")
LONGEST = 255  # bytes of a file's name


@contextmanager
def held(folder: Path, note: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Makes a run's folder, and keeps other processes from writing into it. `note` tells where that is not possible.

    Raises:
        Busy: another process writes into it.
        UserError: nobody can.
    """
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = _lock(folder / LOCK, note)
    try:
        yield
    finally:
        with suppress(OSError):
            if _is_at(file, folder / LOCK):  # while it is held: after that it may be another's
                (folder / LOCK).unlink()
        file.close()


def _lock(path: Path, note: Callable[[str], None]):
    """The lock's file, open and locked."""
    while True:
        file = open(path, "a+")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise Busy(
                f"{path.parent} is being written to by {holder}: wait until that run has ended, stop it, or choose"
                " another folder with hydra.run.dir"
            ) from None
        except OSError as error:
            note(f"{path} cannot be locked ({error.strerror}): see to it that no other run writes into this folder")
        if _is_at(file, path):
            break
        file.close()  # who held it has removed it meanwhile
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _is_at(file, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def own_folder(wanted: Path, launcher: str | None) -> Path:
    """Makes a folder that no other run has: `wanted`, or with -2, -3, … at its end.

    Args:
        wanted: the folder.
        launcher: names the torchrun that started this process, whose ranks, started again, get the same folder.
    """
    if launcher:
        for path in wanted.parent.glob(f"*/{LAUNCHER}"):
            if path.read_text() == launcher:
                return path.parent
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if folder.is_dir():
                continue
            raise
        if launcher:
            (folder / LAUNCHER).write_text(launcher)
        return folder


def unusable(folder: Path) -> str | None:
    """Why no run can write into a folder that is there, or be made; None where one can."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        return f"{there} is a file, not a folder"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"this user may not write into {there}"
    return None


def started_at(form: str) -> str:
    """When this run was started; under torchrun when torchrun was, so that ranks that it restarts find their folder."""
    moment = launcher_started()[0] if "TORCHELASTIC_RUN_ID" in os.environ else time.time()
    return datetime.fromtimestamp(round(moment)).strftime(form)


def launcher_started() -> tuple[float, str]:
    """When the process that started this one was started, as of time.time(), and as the system always writes it."""
    try:
        uptime = float((PROC / "uptime").read_text().split()[0])
        ticks = (PROC / str(os.getppid()) / "stat").read_text().rsplit(")", 1)[1].split()[19]
        return time.time() - uptime + int(ticks) / os.sysconf("SC_CLK_TCK"), ticks
    except OSError:  # not Linux
        command = ["ps", "-o", "lstart=", "-p", str(os.getppid())]
        text = subprocess.check_output(command, text=True, env={**os.environ, "LC_ALL": "C"}).strip()
        return datetime.strptime(text, "%a %b %d %H:%M:%S %Y").timestamp(), text


def fitting(path: str) -> str:
    """A path of folders, of which those with a longer name than file systems have end in a hash of it."""
    return "/".join(map(_fitting, path.split("/")))


def _fitting(name: str) -> str:
    if len(os.fsencode(name)) <= LONGEST:
        return name
    end = "-" + hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return os.fsencode(name)[: LONGEST - len(end)].decode(errors="ignore") + end


@cache
def new_folder(form: str) -> str:
    """A folder of this process's own, named after its start; under torchrun of torchrun's own."""
    launcher = None
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = f"{os.environ['TORCHELASTIC_RUN_ID']} {socket.gethostname()} {os.getppid()} {launcher_started()[1]}"
    wanted = Path(started_at(form))
    try:
        folder = own_folder(wanted, launcher)
    except OSError as error:
        sys.exit(f"{wanted} cannot be made ({error.strerror}): choose another folder with hydra.run.dir")
    atexit.register(remove_if_empty, folder.absolute())
    return str(folder)


def remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
