"""The sealed unpickler: a message can name the project's own functions and plain tensors, and nothing else."""

from __future__ import annotations

import builtins
import io
import pickle
import pickletools
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch.distributed.rpc import internal

from splitlearn.console import legible
from splitlearn.errors import UserError
from splitlearn.transport.guard import MAX_DETAIL, refuse
from splitlearn.transport.operators import take_away_operators


@contextmanager
def closed(functions: list[Callable]):
    """Lets messages name only these functions, in this process, until the end of the `with`.

    Operators are taken from them for good (see operators.py).

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
    take_away_operators()
    try:
        yield
    finally:
        internal._internal_rpc_pickler = before


class _Forbidden(pickle.UnpicklingError):
    """Something that a message may not ask for, and that was refused."""


def _forbid(what: str) -> _Forbidden:
    refuse("message", why := f"{legible(what, MAX_DETAIL)} is not allowed in a message")
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
