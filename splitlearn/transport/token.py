"""The token that all ranks of a run have, and what is signed with it."""

import hashlib
import hmac
import os

from splitlearn import private

TOKEN_VARIABLE = "SPLITLEARN_TOKEN"


def read_token(file: str) -> bytes:
    """The token of this user's runs: from SPLITLEARN_TOKEN, else from a private file, which is made if it is missing.

    Raises:
        UserError: as private.read.
    """
    if token := os.environ.get(TOKEN_VARIABLE):
        return private.long_enough(token.encode(), TOKEN_VARIABLE)
    return private.read(file, "rpc.token_file", f"set {TOKEN_VARIABLE}")


def sign(token: bytes, *what: object) -> str:
    """The signature of `what`, words and numbers."""
    return hmac.new(token, repr(what).encode(), hashlib.sha256).hexdigest()


def is_signed(signature: object, token: bytes, *what: object) -> bool:
    return isinstance(signature, str) and hmac.compare_digest(signature.encode(), sign(token, *what).encode())
