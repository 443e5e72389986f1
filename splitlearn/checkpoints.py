"""Checkpoints: a run's whole state in one file a time, that is there complete or not at all.

A file is a magic line, the SHA-256 of the rest, and the state as torch.save writes it, read with weights_only. It is
written beside its place, flushed to the disk and renamed, in a thread of its own while training goes on.

What is in a state: both segments and optimizers, where in which epoch the run is, what was measured so far, and the
configuration. No random generator's state: every step draws from streams of its own (see seeds.py), so that the place
in the run says it all.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any

import torch

from splitlearn.errors import UserError

MAGIC = b"splitlearn checkpoint 1\n"
PATTERN = "step-*.pt"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: of the checkpoints alone; made with the first one.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self._writing: threading.Thread | None = None
        self._error: OSError | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Starts to write the state after `step` steps, once the one before is written. It must not change any more.

        Raises:
            UserError: this or an earlier state could not be written.
        """
        self.wait()
        # Not a daemon: a run that ends has its last checkpoint.
        self._writing = threading.Thread(target=self._write, args=(step, state), name="checkpoint")
        self._writing.start()

    def wait(self) -> None:
        """Until the last state is on the disk."""
        if self._writing is not None:
            self._writing.join()
        if self._error is not None:
            raise UserError(
                f"a checkpoint cannot be written to {self.folder} ({self._error.strerror}): make room there, then go"
                f" on with resume={self.folder.parent}"
            )

    def latest(self) -> dict[str, Any] | None:
        """The newest state that is whole, None where there is none; warns of those that are not."""
        for path in sorted(self.folder.glob(PATTERN), reverse=True):
            try:
                return read(path)
            except (OSError, ValueError) as error:
                warnings.warn(f"{path}: {error}; the checkpoint before it is used", stacklevel=2)
        return None

    def clear(self) -> None:
        """Removes all, for a run that starts over."""
        for path in self.folder.glob("step-*"):  # unfinished ones too
            path.unlink()

    def _write(self, step: int, state: dict[str, Any]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob("*.unfinished"):  # of a process that was killed
                path.unlink()
            write(self.folder / PATTERN.replace("*", f"{step:09}"), state)
            for path in sorted(self.folder.glob(PATTERN))[: -self.keep]:
                path.unlink()
        except OSError as error:
            self._error = error


def write(path: Path, state: dict[str, Any]) -> None:
    """Writes a state, so that at any moment there is a whole file or none."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    unfinished = path.with_suffix(".unfinished")
    with open(unfinished, "wb") as file:
        file.writelines((MAGIC, hashlib.sha256(content).digest(), content))
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the new name
    finally:
        os.close(directory)


def read(path: Path) -> dict[str, Any]:
    """Reads a state onto the CPU.

    Raises:
        ValueError: the file is not a whole checkpoint.
    """
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError("not a checkpoint of this version")
        digest, content = file.read(hashlib.sha256().digest_size), file.read()
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("torn or corrupted: its checksum is wrong")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError("it holds more than tensors and plain values") from None
