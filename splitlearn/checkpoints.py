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
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from splitlearn.errors import UserError, cannot_write

MAGIC = b"splitlearn checkpoint 2\n"
PATTERN = "step-*.pt"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: of the checkpoints alone; made with the first one.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self._writer = Writer()

    def save(self, step: int, state: dict[str, Any], after: Callable[[], None] = lambda: None) -> None:
        """Starts to write the state after `step` steps, once the one before is written. It must not change any more.

        Args:
            step: how many.
            state: of the run.
            after: waits for what has to be on the disk before.

        Raises:
            UserError: this or an earlier state could not be written.
        """
        self.wait()
        self._writer.start(self._write, step, state, after)

    def wait(self) -> None:
        """Until the last state is on the disk. Raises as `save` does."""
        try:
            self._writer.wait()
        except OSError as error:
            raise cannot_write(f"a checkpoint cannot be written to {self.folder}", self.folder.parent, error) from None

    def close(self) -> None:
        """Until nothing is being written any more, also after an error."""
        self._writer.close()

    def latest(self) -> dict[str, Any] | None:
        """The newest state that is whole, None where there is no checkpoint; warns of newer ones that are not.

        Raises:
            UserError: there are checkpoints, and none is whole.
        """
        broken = []
        paths = sorted(self.folder.glob(PATTERN), reverse=True)
        for path in paths:
            try:
                state = read(path)
            except FileNotFoundError:
                if sorted(self.folder.glob(PATTERN), reverse=True) != paths:
                    return self.latest()  # the run goes on, and has written a newer one in its place
                broken.append(f"{path}: it leads nowhere")
            except (OSError, ValueError) as error:
                broken.append(f"{path}: {error}")
            else:
                for one in broken:
                    warnings.warn(f"{one}; the checkpoint before it is used", stacklevel=2)
                return state
        if broken:  # nothing is deleted that somebody may mend
            raise UserError(
                f"no checkpoint of the run is whole ({'; '.join(broken)}): put one back from a copy, or start over with"
                " resume=never"
            )
        return None

    def clear(self) -> None:
        """Removes all, for a run that starts over."""
        for path in self.folder.glob("step-*"):  # unfinished ones too
            path.unlink()

    def _write(self, step: int, state: dict[str, Any], after: Callable[[], None]) -> None:
        after()
        self.folder.mkdir(exist_ok=True)  # the run's own is there, or was removed
        for path in self.folder.glob("*.unfinished"):  # of a process that was killed
            path.unlink()
        newest = self.folder / PATTERN.replace("*", f"{step:09}")
        write(newest, state)
        for path in self.folder.glob(PATTERN):
            if path.name > newest.name:  # `latest` has passed it over: it must not stay in the place of a whole one
                path.rename(path.with_suffix(".damaged"))
        for path in sorted(self.folder.glob(PATTERN))[: -self.keep]:
            path.unlink()


class Writer:
    """Writes in a thread of its own; `wait` raises what fails there. Not a daemon: what was started is written."""

    def __init__(self):
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def start(self, write: Callable[..., None], *args: Any) -> None:
        """Starts to write. The one before has to be over."""

        def run() -> None:
            try:
                write(*args)
            except Exception as error:  # for the main thread
                self._error = error

        self._thread = threading.Thread(target=run, name="writer")
        self._thread.start()

    def close(self) -> None:
        """Until nothing is being written any more, also after an error."""
        if self._thread is not None:
            self._thread.join()

    def wait(self) -> None:
        self.close()
        if self._error is not None:
            raise self._error


def write(path: Path, state: dict[str, Any]) -> None:
    """Writes a state, so that at any moment there is a whole file or none."""
    content = serialized(state)
    write_whole(path, MAGIC, hashlib.sha256(content).digest(), content)


def serialized(state: Any) -> memoryview:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def write_whole(path: Path, *parts: bytes | memoryview) -> None:
    """Writes a file, so that at any moment, power cuts included, there is the whole file or the one before."""
    write_all({path: parts})


def write_all(files: Mapping[Path, Iterable[bytes | memoryview]], removed: Iterable[Path] = ()) -> None:
    """Writes files, each as `write_whole` does: all of them, or where one does not find room, none.

    `removed` are files that they make obsolete; these go before any of the new ones is there.
    """
    unfinished = {path.with_suffix(".unfinished"): path for path in files}
    try:
        for temporary, path in unfinished.items():
            with open(temporary, "wb") as file:
                file.writelines(files[path])
                file.flush()
                os.fsync(file.fileno())
        for path in removed:
            path.unlink(missing_ok=True)
        for temporary, path in unfinished.items():
            temporary.rename(path)
    except OSError:
        for temporary in unfinished:
            with suppress(OSError):
                temporary.unlink()  # it takes the room that is missing
        raise
    for folder in {path.parent for path in files}:
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)  # the new names
        finally:
            os.close(directory)


def write_texts(folder: Path, texts: Mapping[str, str], removed: Iterable[Path] = ()) -> None:
    """Writes texts, by the names of their files in a folder, as `write_all` does; none that is there already."""
    files = {folder / name: [text.encode()] for name, text in texts.items()}
    files = {path: parts for path, parts in files.items() if not path.exists() or path.read_bytes() != parts[0]}
    for path in files:
        path.parent.mkdir(exist_ok=True)
    write_all(files, removed)


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
