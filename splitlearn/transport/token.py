"""The token that all ranks of a run have, and what is signed with it."""

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from splitlearn.errors import UserError

TOKEN_VARIABLE = "SPLITLEARN_TOKEN"
MIN_TOKEN_NBYTES = 16  # who watches a sign-in can try tokens on what he saw


def read_token(file: str) -> bytes:
    """The token of this user's runs: from SPLITLEARN_TOKEN, else from a private file, which is made if it is missing.

    Raises:
        UserError: others can read the file, it cannot be read or made, or the token is short.
    """
    if token := os.environ.get(TOKEN_VARIABLE):
        return _long_enough(token.encode(), TOKEN_VARIABLE)
    path = Path(file).expanduser()
    try:
        if not path.exists():
            _make_token(path)
        about = path.stat()
        if about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) & 0o077:
            raise UserError(f"rpc.token_file={file} is not private: chmod 600 it, or set {TOKEN_VARIABLE}")
        return _long_enough(path.read_bytes().strip(), f"rpc.token_file={file}")
    except OSError as error:
        raise UserError(
            f"rpc.token_file={file} cannot be used ({error.strerror}): mend it, or set {TOKEN_VARIABLE}"
        ) from None


def _long_enough(token: bytes, source: str) -> bytes:
    if len(token) < MIN_TOKEN_NBYTES:
        raise UserError(
            f"the token of {source} has {len(token)} bytes and could be guessed: give {MIN_TOKEN_NBYTES} or more random"
            " ones, such as `openssl rand -hex 32` prints"
        )
    return token


def _make_token(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    unfinished.touch(mode=0o600, exist_ok=False)
    unfinished.write_text(secrets.token_hex(32) + "\n")
    try:
        os.link(unfinished, path)  # fails if another rank was faster; then that one counts
    except FileExistsError:
        pass
    finally:
        unfinished.unlink()


def sign(token: bytes, *what: object) -> str:
    """The signature of `what`, words and numbers."""
    return hmac.new(token, repr(what).encode(), hashlib.sha256).hexdigest()


def is_signed(signature: object, token: bytes, *what: object) -> bool:
    return isinstance(signature, str) and hmac.compare_digest(signature.encode(), sign(token, *what).encode())
