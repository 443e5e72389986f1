"""Errors that a user can mend. Each is one sentence that names the config key or the peer, and what to do."""

import errno
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """A mistake in the configuration or surroundings of a run. `launch.py` prints it without a traceback.

    Attributes:
        is_told: the server tells the user of it, so that another rank on the same console need not.
    """

    is_told = False

    def __init__(self, message: str = "", *args: object):
        # A process that loads data puts its traceback before the sentence.
        super().__init__(message.rsplit("UserError: ", 1)[-1].strip(), *args)


class PeerError(UserError):
    """Another process of the run stopped, is gone, does not answer, or comes with what does not fit."""


class Busy(UserError):
    """Another process writes into a run's folder, and what becomes of the run there is for that one to say."""


class Stopped(UserError):
    """The run was asked to end and did, with a checkpoint.

    Attributes:
        signal: the number of the signal that asked.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message, signal)
        self.signal = signal

    def __str__(self) -> str:
        return self.args[0]


class Interrupted(KeyboardInterrupt):
    """A second signal came after the one that asked the run to end, which is to be at once now.

    Attributes:
        signal: its number.
    """

    def __init__(self, signal: int):
        super().__init__("interrupted")
        self.signal = signal


class Rejoin(Exception):
    """The server was started anew or went on without this client, which has to join again."""


class PayloadError(ValueError):
    """Bytes that are not a payload of the expected codec."""


class NonFiniteError(ValueError):
    """A tensor that is to be compressed holds NaN or Inf."""


def typed(key: str, folder: Path) -> str:
    """key=folder, as one types it in a shell."""
    return shlex.quote(f"{key}={folder}")


def cannot_write(what: str, folder: Path, error: OSError) -> UserError:
    """The error of what, such as "a file cannot be written", happened in a run's folder."""
    if error.errno in (errno.ENOENT, errno.ESTALE):
        remedy = "the folder was removed while the run wrote into it; start the run again"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "let this user write there, or choose another folder with hydra.run.dir"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        remedy = "something else is in its place: move it away, or choose another folder with hydra.run.dir"
    elif error.errno == errno.ENAMETOOLONG:
        remedy = "choose a folder with a shorter name with hydra.run.dir"
    else:
        is_begun = os.path.exists(folder / ".hydra" / "overrides.yaml")
        remedy = f"go on with {typed('resume', folder)}" if is_begun else "start the run again"
        remedy = f"make room there, then {remedy}"
    return UserError(f"{what} ({error.strerror or error}): {remedy}")


@contextmanager
def writing_to(folder: Path, run: Path | None = None) -> Iterator[None]:
    """
    Args:
        folder: where a run writes.
        run: its own folder, where that is another one.

    Raises:
        UserError: a file in `folder` cannot be written, mostly because the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(f"{folder} cannot be written to", run or folder, error) from None
