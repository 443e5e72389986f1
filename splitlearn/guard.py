"""Who may call a rank, and what may be said to it.

RPC by itself runs whatever reaches its port: pickles that name any function, and torch's operators by name. Within
`closed`, a message can name only the project's own functions, plain tensors and numbers, and the operators that touch
files are gone. And every call must be signed with a token that all ranks have: HMAC-SHA256 over what the call is, so
that the token itself is never sent.

What stays open: nothing is encrypted, an operator that only computes can still be called by name, and random bytes can
end the process. So a network that others can reach needs a tunnel or a firewall (see docs/reliability.md).
"""

from __future__ import annotations

import builtins
import hashlib
import hmac
import io
import logging
import os
import pickle
import secrets
import stat
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torchvision  # noqa: F401  has operators of its own
from torch.distributed.rpc import internal

from splitlearn.errors import UserError

TOKEN_VARIABLE = "SPLITLEARN_TOKEN"
FILE_OPERATORS = {  # and where their kernels are registered
    "aten::from_file": "CPU",
    "aten::from_file.out": "CompositeExplicitAutograd",
    "image::read_file": "CompositeExplicitAutograd",
    "image::write_file": "CompositeExplicitAutograd",
}

log = logging.getLogger("splitlearn")
refusals: Counter[str] = Counter()  # of this process, by what was refused


def refuse(what: str, detail: str) -> None:
    """Counts and logs something that was refused."""
    refusals[what] += 1
    log.warning("refused %s: %s", what, detail)


# Tokens


def read_token(file: str) -> bytes:
    """The token of this user's runs: from SPLITLEARN_TOKEN, else from a private file, which is made if it is missing.

    Raises:
        UserError: others can read the file, or it cannot be read or made.
    """
    if token := os.environ.get(TOKEN_VARIABLE):
        return token.encode()
    path = Path(file).expanduser()
    try:
        if not path.exists():
            _make_token(path)
        about = path.stat()
        if about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) & 0o077:
            raise UserError(f"rpc.token_file={file} is not private: chmod 600 it, or set {TOKEN_VARIABLE}")
        return path.read_bytes().strip()
    except OSError as error:
        raise UserError(
            f"rpc.token_file={file} cannot be used ({error.strerror}): mend it, or set {TOKEN_VARIABLE}"
        ) from None


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


# Messages


@contextmanager
def closed(functions: list[Callable]):
    """Lets messages name only these functions, in this process, until the end of the `with`.

    Raises:
        UserError: this version of torch keeps its parts elsewhere.
    """
    for name in ("_internal_rpc_pickler", "_InternalRPCPickler", "_thread_local_tensor_tables", "_unpickler"):
        if not hasattr(internal, name):
            raise UserError(
                f"torch {torch.__version__} has no torch.distributed.rpc.internal.{name}, which keeps strangers from"
                " running code here: use torch 2.11 to 2.15"
            )
    before = internal._internal_rpc_pickler
    internal._internal_rpc_pickler = _Pickler(functions)
    _take_away_file_operators()
    try:
        yield
    finally:
        internal._internal_rpc_pickler = before


class _Pickler(internal._InternalRPCPickler):
    def __init__(self, functions: list[Callable]):
        super().__init__()
        self._allowed = {
            ("torch.distributed.rpc.internal", "PythonUDF"): internal.PythonUDF,
            ("torch.distributed.rpc.internal", "RemoteException"): internal.RemoteException,
            # A tensor travels as getattr(_InternalRPCPickler, "_tensor_receiver")(its number).
            ("torch.distributed.rpc.internal", "_InternalRPCPickler"): internal._InternalRPCPickler,
            ("builtins", "getattr"): _get_tensor_receiver,
            **{(function.__module__, function.__qualname__): function for function in functions},
        }

    def deserialize(self, binary_data: bytes, tensor_table: list):
        tables = internal._thread_local_tensor_tables
        tables.recv_tables = tensor_table
        try:
            return _Unpickler(binary_data, self._allowed).load()
        finally:
            del tables.recv_tables


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, allowed: dict):
        super().__init__(io.BytesIO(data))
        self._allowed = allowed

    def find_class(self, module: str, name: str):
        if (module, name) in self._allowed:
            return self._allowed[module, name]
        found = getattr(builtins, name, None) if module == "builtins" else None
        if isinstance(found, type) and issubclass(found, Exception):
            return found  # what an answer says that a call raised
        refuse("message", f"it names {module}.{name}")
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a message")


def _get_tensor_receiver(owner: object, name: str):
    if owner is internal._InternalRPCPickler and name == "_tensor_receiver":
        return internal._InternalRPCPickler._tensor_receiver
    refuse("message", f"it asks for attribute {name}")
    raise pickle.UnpicklingError(f"attribute {name} is not allowed in a message")


_library: list[torch.library.Library] = []


def _take_away_file_operators() -> None:
    """Replaces the operators that read or write files, which a message can call by name, by one that refuses."""
    if _library:
        return
    for operator, key in FILE_OPERATORS.items():
        namespace, name = operator.split("::")
        library = torch.library.Library(namespace, "IMPL")
        _library.append(library)  # what it registers lasts as long as it does
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there was a kernel
            library.impl(name, partial(_refuse_operator, operator), key)


def _refuse_operator(operator: str, *_args, **_kwargs):
    refuse("operator", operator)
    raise RuntimeError(f"{operator} is not allowed here")
