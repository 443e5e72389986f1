"""Who may call a rank, and what may be said to it.

RPC by itself runs whatever reaches its port: pickles that name any function, and torch's operators by name. Within
`closed`, a message can name only the project's own functions, plain tensors and numbers, and no operator at all. And
every call must be signed: HMAC-SHA256 over what the call is, with a key that comes of the token that all ranks have and
of what was drawn when the client signed in (see frontdesk.py). The token itself is never sent.

What stays open: nothing is encrypted, and random bytes can end the process. So a network that others can reach needs a
tunnel or a firewall (see docs/reliability.md).
"""

from __future__ import annotations

import builtins
import ctypes
import hashlib
import hmac
import io
import logging
import os
import pickle
import pickletools
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
MIN_TOKEN_NBYTES = 16  # who watches a sign-in can try tokens on what he saw
FILE_OPERATORS = {  # that the dispatcher knows, and where their kernels are registered
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
    _take_away_operators()
    try:
        yield
    finally:
        internal._internal_rpc_pickler = before


class _Forbidden(pickle.UnpicklingError):
    """Something that a message may not ask for, and that was refused."""


def _forbid(what: str) -> _Forbidden:
    refuse("message", why := f"{what} is not allowed in a message")
    return _Forbidden(why)


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
            # BUILD sets attributes of what is named, so also of the allowed classes and functions. No call needs it.
            if any(opcode.name == "BUILD" for opcode, *_ in pickletools.genops(binary_data)):
                raise _forbid("setting an attribute")
            return _Unpickler(binary_data, self._allowed).load()
        except Exception as error:
            if not isinstance(error, _Forbidden):
                refuse("message", str(error))
            raise
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
        raise _forbid(f"{module}.{name}")


def _get_tensor_receiver(owner: object, name: str):
    if owner is internal._InternalRPCPickler and name == "_tensor_receiver":
        return internal._InternalRPCPickler._tensor_receiver
    raise _forbid(f"attribute {name}")


_library: list[torch.library.Library] = []


def _take_away_operators() -> None:
    """Empties the registry that messages call operators from by their name, aten::save(item, filename) for one.

    Eager torch does not use it, but to look up torch.ops.<namespace>.<operator> for the first time, which is done here
    before. Only torch.jit.script does not work after. What is called then fails within torch, which logs it.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        deregister = library._ZN5torch3jit18deregisterOperatorERKN3c1014FunctionSchemaE
        deregister.argtypes, deregister.restype = [ctypes.c_void_p], None
        schemas = torch._C._jit_get_all_schemas()
        pointers = [ctypes.c_void_p.from_address(id(schema) + object.__basicsize__).value for schema in schemas]
        for schema, pointer in zip(schemas, pointers, strict=True):  # pybind11 keeps it behind Python's own fields
            text = ctypes.string_at(ctypes.c_void_p.from_address(pointer).value, len(schema.name))
            if text != schema.name.encode():  # of a FunctionSchema, the first field
                raise AttributeError("FunctionSchema")
        _look_up_operators({schema.name for schema in schemas})
        for pointer in pointers:
            deregister(pointer)
    except (AttributeError, OSError):
        pass
    if any(torch._C._jit_get_schemas_for_operator(name) for name in ("aten::save", "aten::from_file", "aten::ones")):
        log.warning(
            "torch %s keeps its operators elsewhere: strangers who reach this process can call them, aten::save among"
            " them, which writes files; let only your machines reach it, or use torch 2.11 to 2.15",
            torch.__version__,
        )
        _replace_file_operators()


def _look_up_operators(names: set[str]) -> None:
    for name in names:
        namespace, operator = name.split("::")
        packet = getattr(getattr(torch.ops, namespace), operator, None)
        if isinstance(packet, torch._ops.OpOverloadPacket):
            for overload in packet.overloads():
                getattr(packet, overload)


def _replace_file_operators() -> None:
    """Replaces the operators that read or write files, as far as the dispatcher knows them, by one that refuses."""
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
