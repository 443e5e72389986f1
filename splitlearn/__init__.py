"""splitlearn: split learning over torch.distributed.rpc with a compressed uplink."""

from splitlearn import compressors
from splitlearn.exchange.layer import compress, mask_sparsify, receive, send
from splitlearn.segments import split

__all__ = ["compress", "compressors", "mask_sparsify", "receive", "send", "split"]


def __getattr__(name: str):
    if name == "cut":
        raise AttributeError("splitlearn.cut is gone since version 0.2: splitlearn.exchange has both halves of a step")
    raise AttributeError(f"module 'splitlearn' has no attribute {name!r}")
