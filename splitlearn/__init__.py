"""splitlearn: split learning over torch.distributed.rpc with a compressed uplink."""

from splitlearn import compressors
from splitlearn.functions import compress, cut, mask_sparsify
from splitlearn.segments import split

__all__ = ["compress", "compressors", "cut", "mask_sparsify", "split"]
