"""What a command line becomes before Hydra reads it: for a run that goes on, for folders of any name, for a client."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from splitlearn.errors import UserError, typed
from splitlearn.folder import unusable
from splitlearn.words import FOLDERS, quoted, readable, unquoted


def read(argv: list[str]) -> list[str]:
    """The command line for Hydra.

    Raises:
        UserError: a word of it cannot be read, or a folder that it names cannot be used.
    """
    argv = [argv[0], *readable(go_on(argv)[1:])]
    if not is_client():  # which writes nowhere
        check_folders(argv)
    is_sweep = any(word.startswith("sweep=") and word not in ("sweep=", "sweep=null") for word in argv)
    if is_sweep and not any(word.startswith("hydra.mode=") for word in argv):
        argv.append("hydra.mode=MULTIRUN")  # Hydra 1.4 takes it from no file that is chosen
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
    overrides, found = folder / ".hydra" / "overrides.yaml", _started_with(folder)
    if found is None and not is_client():
        if (folder / "config.yaml").exists():
            raise UserError(
                f"resume={folder}: there is no {overrides} any more, with the options that this run was started with:"
                f" give them again, with {typed('hydra.run.dir', folder)}"
            )
        raise UserError(f"resume={folder}: no run was started in that folder; there is no {overrides}")
    now = [word for word in argv[1:] if not word.startswith("resume=")]
    given = {"resume", "role", "client.index", *(word.split("=")[0] for word in now)}
    before, number = found or ([], None)
    before = [word for word in before if word.split("=")[0] not in given]
    # A job of a sweep goes on alone, and stays the one that it is in that sweep's table.
    number = [] if number is None else [f"hydra.job.num={number}"]
    return [argv[0], *before, *now, f"hydra.run.dir={quoted(str(folder))}", "hydra.mode=RUN", *number]


def _started_with(folder: Path) -> tuple[Sequence[str], int | None] | None:
    """The words that the run in a folder was started with, and which job of a sweep it is; None where none is there."""
    try:
        return OmegaConf.load(folder / ".hydra" / "overrides.yaml"), job_number(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if is_client():  # of whose machine the folder need not be
            return None
        raise UserError(
            f"resume={folder} cannot be read ({error.strerror}): give a folder that this user may read and write"
        ) from None


def job_number(folder: Path) -> int | None:
    """Which job of a sweep the run in a folder is; None for one that was started alone."""
    path = folder / ".hydra" / "hydra.yaml"
    return OmegaConf.select(OmegaConf.load(path), "hydra.job.num") if path.exists() else None  # None for ??? too


def check_folders(argv: list[str]) -> None:
    """
    Raises:
        UserError: the folder that the run is given to write into cannot be.
    """
    for word in argv:
        key, _, folder = word.partition("=")
        if key in FOLDERS and "${" not in folder and (why := unusable(Path(unquoted(folder)))):
            raise UserError(f"{word}: {why}; choose another folder")


def write_nothing() -> tempfile.TemporaryDirectory:
    """Sends the folder that Hydra makes for this rank away: a run has one folder, the server's."""
    folder = tempfile.TemporaryDirectory(prefix="splitlearn-")
    sys.argv += [f"hydra.run.dir={folder.name}", f"hydra.sweep.dir={folder.name}", "hydra.output_subdir=null"]
    sys.argv += ["hydra/hydra_logging=none"]
    return folder
