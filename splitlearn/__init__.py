"""splitlearn: split learning over torch.distributed.rpc with a compressed uplink."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splitlearn import compressors
    from splitlearn.exchange.layer import compress, mask_sparsify, receive, send
    from splitlearn.segments import split, with_bottleneck

__all__ = ["compress", "compressors", "mask_sparsify", "receive", "send", "split", "with_bottleneck"]

# Loaded when they are asked for: torch takes seconds, and a Ctrl-C meanwhile is to be heard.
_HOMES = dict.fromkeys(("compress", "mask_sparsify", "receive", "send"), "exchange.layer")
_HOMES |= dict.fromkeys(("split", "with_bottleneck"), "segments")


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(f"splitlearn.{_HOMES[name]}"), name)
    if name == "compressors":
        return import_module("splitlearn.compressors")
    if name == "cut":
        raise AttributeError("splitlearn.cut is gone since version 0.2: splitlearn.exchange has both halves of a step")
    raise AttributeError(f"module 'splitlearn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
