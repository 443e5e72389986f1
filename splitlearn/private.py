"""Secrets in private files of this user's, each made when it is first wanted."""

import os
import secrets
import stat
from pathlib import Path

from splitlearn.errors import UserError

MIN_NBYTES = 16  # who has seen something made with a secret can try others on it


def read(file: str, key: str, otherwise: str = "") -> bytes:
    """The secret in a private file, which is made if it is missing.

    Args:
        file: may begin with ~.
        key: the config key that names it.
        otherwise: what else a user can do, in words.

    Raises:
        UserError: others can read the file, it cannot be read or made, or the secret is short.
    """
    path, otherwise = Path(os.path.expanduser(file)), f", or {otherwise}" * bool(otherwise)
    try:
        if not path.exists():
            _make(path)
        about = path.stat()
        if about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) & 0o077:
            raise UserError(f"{key}={file} is not private: chmod 600 it{otherwise}")
        return long_enough(path.read_bytes().strip(), f"{key}={file}")
    except OSError as error:
        raise UserError(f"{key}={file} cannot be used ({error.strerror}): mend it{otherwise}") from None


def long_enough(secret: bytes, source: str) -> bytes:
    """The secret itself.

    Raises:
        UserError: it could be guessed.
    """
    if len(secret) < MIN_NBYTES:
        raise UserError(
            f"the secret of {source} has {len(secret)} bytes and could be guessed: give {MIN_NBYTES} or more random"
            " ones, such as `openssl rand -hex 32` prints"
        )
    return secret


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    unfinished.touch(mode=0o600, exist_ok=False)
    try:
        unfinished.write_text(secrets.token_hex(32) + "\n")
        os.link(unfinished, path)  # fails if another rank was faster; then that one counts
    except FileExistsError:
        pass
    finally:
        unfinished.unlink()
