"""What a command line becomes before Hydra reads it: for a run that goes on, for folders of any name, for a client."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from splitlearn.errors import UserError, typed
from splitlearn.folder import unusable
from splitlearn.started import WORDS, Start
from splitlearn.words import FOLDERS, flags_first, quoted, readable, unquoted

SWEEPS = "hydra.mode=MULTIRUN"


def read(argv: list[str]) -> list[str]:
    """The command line for Hydra.

    Raises:
        UserError: a word of it cannot be read, or a folder that it names cannot be used.
    """
    argv = [argv[0], *flags_first(readable(go_on(argv)[1:]))]
    if not is_client():  # which writes nowhere
        check_folders(argv)
    if is_sweep(argv):
        argv.append(SWEEPS)  # Hydra 1.4 takes it from no file that is chosen
    return argv


def is_client() -> bool:
    """Whether this process is a client's, by `role` or else by torchrun's rank; others set RANK too."""
    words = [word.lstrip("+") for word in sys.argv]
    roles = [word.partition("=")[2].strip("'\"") for word in words if word.startswith("role=")]
    if roles and roles[-1] not in ("", "null"):
        return roles[-1] == "client"
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0"


def go_on(argv: list[str]) -> list[str]:
    """The command line, with resume=<folder> replaced by what that run was started with; the rest comes after.

    A client on another machine, which does not have the folder, has to be given the run's options again.
    """
    folders = [word.split("=", 1)[1] for word in argv if word.startswith("resume=")]
    if not folders or folders[-1] in ("auto", "never", ""):
        return argv
    folder = Path(os.path.expanduser(folders[-1]))
    if not os.path.exists(folder) and folders[-1][0] == folders[-1][-1] in "'\"":
        folder = Path(folders[-1][1:-1])  # quoted for Hydra
    now = [word for word in argv[1:] if not word.startswith("resume=")]
    if is_sweep(now):
        raise UserError(f"resume={folder} goes on with one run: leave out what makes a sweep of it, -m or sweep=")
    if (elsewhere := [word for word in now if word.startswith(FOLDERS)]) and not is_client():
        raise UserError(f"resume={folder} goes on in that folder: leave {elsewhere[-1]} out")
    start = _start_of(folder)
    words = start.then(now) if start else now
    # A job of a sweep goes on alone, and stays the one that it is in that sweep's table.
    number = [f"hydra.job.num={start.job}"] if start and start.job is not None else []
    return [argv[0], *words, f"hydra.run.dir={quoted(str(folder))}", "hydra.mode=RUN", *number]


def is_sweep(words: Sequence[str]) -> bool:
    """Whether a command line's words start several runs."""
    if modes := [word for word in words if word.startswith("hydra.mode=")]:
        return modes[-1] == SWEEPS
    words = [word for word in words if word not in ("sweep=", "sweep=null")]
    return any(word == "-m" or word.startswith(("--m", "sweep=")) for word in words)


def _start_of(folder: Path) -> Start | None:
    """What the run in a folder was started with; None where a client, whose machine it need not be on, has it not."""
    try:
        return Start.of(folder)
    except OSError as error:
        if is_client():
            return None
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise UserError(
                f"resume={folder} cannot be read ({error.strerror}): give a folder that this user may read and write"
            ) from None
    if (folder / "config.yaml").exists():
        path = folder / WORDS
        gone = f"{path} is not whole" if path.exists() else f"there is no {path} any more"
        raise UserError(
            f"resume={folder}: {gone}, with the options that this run was started with: give them again, with"
            f" {typed('hydra.run.dir', folder)}"
        )
    raise UserError(f"resume={folder}: no run was started in that folder; there is no {folder / WORDS}")


def check_folders(argv: list[str]) -> None:
    """
    Raises:
        UserError: a folder that is given to write into cannot be, or nothing would heed it.
    """
    heeded = FOLDERS[is_sweep(argv)]
    for word in argv:
        key, _, folder = word.lstrip("+").partition("=")
        if key not in FOLDERS:
            continue
        if key != heeded:
            remedy = "leave -m or sweep= out" if is_sweep(argv) else "add -m"
            raise UserError(f"{word} is not heeded here: the folder is {heeded}=<folder>; say so, or {remedy}")
        if "${" in folder:  # Hydra is to say what it is
            continue
        if not unquoted(folder).strip():
            raise UserError(f"{word} is blank: name a folder, or leave it out")
        if why := unusable(Path(unquoted(folder))):
            raise UserError(f"{word}: {why}; choose another folder")


def write_nothing() -> tempfile.TemporaryDirectory:
    """Sends the folder that Hydra makes for this rank away: a run has one folder, the server's."""
    folder = tempfile.TemporaryDirectory(prefix="splitlearn-")
    sys.argv += [f"hydra.run.dir={folder.name}", f"hydra.sweep.dir={folder.name}", "hydra.output_subdir=null"]
    sys.argv += ["hydra/hydra_logging=none"]
    return folder
