"""Going over a large tensor in blocks that stay in the processor's cache, and the few things numpy does faster there.

Why: a pass over a whole map costs as much as copying it, and a temporary as large as the map costs more, as the system
has to find fresh memory for it. Steps that are chained block by block read and write the cache instead, so that an
encoder of ten steps costs a few copies. On other devices a block is large, as there each step costs a launch.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

CPU_BLOCK = 1 << 17  # elements; half a megabyte of float32, so that a few of them fit a core's second-level cache
DEVICE_BLOCK = 1 << 24


def blocks(num_rows: int, row_length: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Slices of rows and of columns that cover a (num_rows, row_length) tensor in order.

    A block is some whole rows or a part of one row: either way it is contiguous, and a row's own number (a threshold,
    say) is found by the slice of rows.
    """
    size = CPU_BLOCK if device.type == "cpu" else DEVICE_BLOCK
    height = max(1, size // row_length)
    for top in range(0, num_rows, height):
        for left in range(0, row_length, size):
            yield slice(top, min(top + height, num_rows)), slice(left, min(left + size, row_length))


def at_least(x: Tensor, bound: Tensor | float) -> Tensor:
    """x ≥ bound, as torch.bool."""
    if x.device.type != "cpu":
        return x >= bound
    if isinstance(bound, Tensor):
        bound = bound.numpy()
    return torch.from_numpy(np.greater_equal(x.numpy(), bound))  # a quarter of the time that torch takes


def places(mask: Tensor) -> Tensor:
    """Ascending int64 positions in `mask.view(-1)` of what is true."""
    if mask.device.type != "cpu":
        return mask.view(-1).nonzero().view(-1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def to_codes(values: Tensor) -> Tensor:
    """Floats of 0 to 255, rounded down to integers. They are int32, which torch turns floats into several times faster
    than into uint8; copying them into a uint8 tensor costs next to nothing."""
    return values.to(torch.int32)
