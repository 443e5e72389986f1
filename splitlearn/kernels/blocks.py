"""Going over a large tensor in blocks that stay in the processor's cache, and the few things numpy does faster there.

Why: fresh memory is the dearest part of a pass over a map, as the system has to find and clear every page of it, and
the main memory the next. Steps that are chained block by block, in scratch memory that each block uses again, stay in
the cache, so that an encoder of ten steps costs a few copies of the map. On other devices a block is large, as there
each step costs a launch. What is computed does not depend on the blocks.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

CPU_BLOCK = 1 << 19  # elements; two megabytes of float32. Below, the calls cost more than the cache saves
DEVICE_BLOCK = 1 << 24


def block_size(device: torch.device) -> int:
    return CPU_BLOCK if device.type == "cpu" else DEVICE_BLOCK


def spans(numel: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover `numel` elements in order. All start at a multiple of eight."""
    size = block_size(device)
    for start in range(0, numel, size):
        yield slice(start, min(start + size, numel))


def blocks(num_rows: int, row_length: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Slices of rows and of columns that cover a (num_rows, row_length) tensor in order.

    A block is some whole rows or a part of one row: either way it is contiguous.
    """
    height = max(1, block_size(device) // row_length)
    for top in range(0, num_rows, height):
        for columns in spans(row_length, device):
            yield slice(top, min(top + height, num_rows)), columns


def scratch(numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for one block of a tensor of `numel` elements."""
    return empty(min(numel, block_size(device)), dtype, device)


def empty(numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """torch.empty for a large result. On the CPU it asks numpy, which asks the system for huge pages: with those, to
    write to fresh memory for the first time takes a fraction of the time."""
    if device.type != "cpu":
        return torch.empty(numel, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(numel * dtype.itemsize, dtype=np.uint8)).view(dtype)


def per_element(row_values: Tensor, row_length: int, span: slice) -> Tensor:
    """The value of its row, of `row_values` (rows, 1), for every element of a span of a (rows, row_length) tensor."""
    first, last = span.start // row_length, (span.stop - 1) // row_length
    values = row_values[first : last + 1].expand(-1, row_length).reshape(-1)  # without a copy if it is one row
    return values[span.start - first * row_length : span.stop - first * row_length]


def at_least(x: Tensor, bound: Tensor | float, out: Tensor) -> Tensor:
    """x ≥ bound, in the torch.bool scratch memory `out`."""
    out = out[: x.numel()].view(x.shape)
    if x.device.type != "cpu":
        return torch.ge(x, bound, out=out)
    np.greater_equal(x.numpy(), bound.numpy() if isinstance(bound, Tensor) else bound, out=out.numpy())
    return out  # in a quarter of the time that torch takes


def places(mask: Tensor) -> Tensor:
    """Ascending int64 positions in `mask.view(-1)` of what is true."""
    if mask.device.type != "cpu":
        return mask.view(-1).nonzero().view(-1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def split_at(positions: Tensor, numel: int) -> tuple[Tensor, ...]:
    """Ascending positions in a tensor of `numel` elements, cut up by its spans; each part counts from its span on."""
    starts = torch.arange(0, numel, block_size(positions.device), device=positions.device)
    parts = positions.tensor_split(torch.searchsorted(positions, starts[1:]).cpu())
    return tuple(part - start for part, start in zip(parts, starts.tolist(), strict=True))
