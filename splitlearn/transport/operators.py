"""WARNING: this reaches into torch's C++ library by raw pointers, and what it takes away is gone from the whole
process until its end: torch.jit.script does not work after. Import it only to close a process that listens for RPC.

Why: a message may call any operator of torch's registry by its name, aten::save(item, filename) for one, and no public
switch forbids it. So `take_away_operators` calls a function of libtorch_cpu.so by its mangled name, with pointers that
it reads out of pybind11's objects. That is checked with torch 2.11 to 2.15 on Linux. It looks at what it is about to
pass on, and where torch keeps its parts elsewhere it replaces the operators for files alone, and says so.

Eager torch does not use the registry but to look up torch.ops.<namespace>.<operator> for the first time, which is done
here before. An operator that is called then fails within torch, which logs it.
"""

from __future__ import annotations

import ctypes
import warnings
from functools import partial
from pathlib import Path

import torch
import torchvision  # noqa: F401  has operators of its own
from torch import library as torch_library

from splitlearn.transport.guard import log, refuse

FILE_OPERATORS = {  # that the dispatcher knows, and where their kernels are registered
    "aten::from_file": "CPU",
    "aten::from_file.out": "CompositeExplicitAutograd",
    "image::read_file": "CompositeExplicitAutograd",
    "image::write_file": "CompositeExplicitAutograd",
}

_replaced: list[torch_library.Library] = []  # what each has registered lasts as long as it does


def take_away_operators() -> None:
    """Empties the registry that messages call operators from by their name."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        deregister = library._ZN5torch3jit18deregisterOperatorERKN3c1014FunctionSchemaE
        deregister.argtypes, deregister.restype = [ctypes.c_void_p], None
        schemas = look_up_operators()
        pointers = [ctypes.c_void_p.from_address(id(schema) + object.__basicsize__).value for schema in schemas]
        for schema, pointer in zip(schemas, pointers, strict=True):  # pybind11 keeps it behind Python's own fields
            text = ctypes.string_at(ctypes.c_void_p.from_address(pointer).value, len(schema.name))
            if text != schema.name.encode():  # of a FunctionSchema, the first field
                raise AttributeError("FunctionSchema")
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


def look_up_operators() -> list[torch.FunctionSchema]:
    """Finds all of torch.ops while the registry has them, and returns it. Quick where it has been done before a fork.

    Raises:
        AttributeError: torch keeps it elsewhere.
    """
    schemas = torch._C._jit_get_all_schemas()
    for name in {schema.name for schema in schemas}:
        namespace, operator = name.split("::")
        packet = getattr(getattr(torch.ops, namespace), operator, None)
        if isinstance(packet, torch._ops.OpOverloadPacket):
            for overload in packet.overloads():
                getattr(packet, overload)
    return schemas


def _replace_file_operators() -> None:
    """Replaces the operators that read or write files, as far as the dispatcher knows them, by one that refuses."""
    if _replaced:
        return
    for operator, key in FILE_OPERATORS.items():
        namespace, name = operator.split("::")
        library = torch_library.Library(namespace, "IMPL")
        _replaced.append(library)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there was a kernel
            library.impl(name, partial(_refuse_operator, operator), key)


def _refuse_operator(operator: str, *_args, **_kwargs):
    refuse("operator", operator)
    raise RuntimeError(f"{operator} is not allowed here")
