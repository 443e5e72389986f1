"""The exact k largest of many, fast.

How it works: a sample of the values of a row brackets its k-th largest from below; the few values that reach the
bracket contain all of the k largest for certain if there are at least k of them, so that selecting among them is exact.
Where a sample misleads (fewer than k reach the bracket), the whole row is searched.
"""

import math

import numpy as np
import torch
from torch import Tensor

from splitlearn.kernels.blocks import at_least, blocks, places, scratch

STRIDE = 61  # primes, so that a sample does not run along one column of the feature maps
SHORT_STRIDE = 17  # of short rows, whose samples would be too small to bracket closely
SHORT = 1 << 18
SMALL = 1 << 14  # below this, bracketing costs more than it saves


def largest(x: Tensor, k: int, by_magnitude: bool = False) -> tuple[Tensor, Tensor]:
    """Exactly k entries of every row, the largest; of equal values the first are taken.

    Args:
        x: (rows, n), contiguous.
        k: 1 ≤ k ≤ n.
        by_magnitude: rank by |x| instead of by x.

    Returns:
        Their positions in `x.view(-1)`, ascending, (rows·k,) int64; and the k-th largest value (or magnitude) of each
        row, (rows, 1), in at least float32.
    """
    num_rows, row_length = x.shape
    bound = _bracket(x, k, by_magnitude)
    positions, values, counts = _reaching(x, bound, k, by_magnitude)
    misled = counts < k
    if misled.any():
        bound[misled] = _select(ranked(x[misled], by_magnitude), k)
        positions, values, counts = _reaching(x, bound, k, by_magnitude)
    threshold = _select(_padded(values, counts), k)

    # Every row's k largest are among `positions`; drop what is below its threshold, then the last of what equals it.
    bound = threshold.view(-1).repeat_interleave(counts) if num_rows > 1 else threshold.view(-1)
    kept = places(at_least(values, bound, out=torch.empty_like(values, dtype=torch.bool)))
    positions = positions.index_select(0, kept)
    if positions.numel() > num_rows * k:
        rows = positions // row_length
        tied = values[kept] == threshold.view(-1)[rows]
        num_tied = torch.bincount(rows[tied], minlength=num_rows)
        num_above = torch.bincount(rows[~tied], minlength=num_rows)
        rank = tied.cumsum(0) - (num_tied.cumsum(0) - num_tied)[rows]  # of a tied value among those of its row, from 1
        positions = positions[~tied | (rank <= (k - num_above)[rows])]
    return positions, threshold


def ranked(x: Tensor, by_magnitude: bool) -> Tensor:
    """What `x` is ranked by: its values or their magnitudes, in at least float32."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x.abs() if by_magnitude else x


def count_per_row(positions: Tensor, num_rows: int, row_length: int) -> Tensor:
    """How many of the ascending `positions` in a (num_rows, row_length) tensor are in each row: (num_rows,) int64."""
    ends = torch.arange(1, num_rows + 1, device=positions.device) * row_length
    return torch.searchsorted(positions, ends).diff(prepend=ends.new_zeros(1))


def _bracket(x: Tensor, k: int, by_magnitude: bool) -> Tensor:
    """A value a row, (rows, 1), that most likely a few more than k of its values reach."""
    row_length = x.shape[1]
    sample = x[:, :: STRIDE if row_length > SHORT else SHORT_STRIDE]
    expected_rank = k * sample.shape[1] / row_length
    rank = math.ceil(expected_rank + 4 * math.sqrt(expected_rank) + 4)
    if x.numel() < SMALL or rank >= sample.shape[1]:
        return _select(ranked(x, by_magnitude), k)
    return _select(ranked(sample, by_magnitude), rank)


def _select(x: Tensor, k: int) -> Tensor:
    """The k-th largest value of each row of `x`: (rows, 1)."""
    index = x.shape[1] - k
    if x.device.type != "cpu":
        return torch.kthvalue(x, index + 1, dim=1, keepdim=True).values
    return torch.from_numpy(np.partition(x.numpy(), index, axis=1)[:, index : index + 1].copy())


def _reaching(x: Tensor, bound: Tensor, k: int, by_magnitude: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Positions in `x.view(-1)` of the values that reach `bound`, ascending, these values as they are ranked, and how
    many each row has."""
    room = torch.full(bound.shape, k, device=x.device)
    mask = scratch(x.numel(), torch.bool, x.device)
    found, values = [], []
    for rows, columns in blocks(*x.shape, x.device):
        block = ranked(x[rows, columns], by_magnitude)
        reach = at_least(block, bound[rows], out=mask)
        here = places(reach)
        if here.numel() > reach.numel() // 4:
            # Most likely many values equal the bound, as where a map is nearly all zeros. As the first are taken, a
            # row never needs more than k of them: the others would only take memory and time.
            tied = block == bound[rows]
            rank = tied.cumsum(1)
            here = places(reach & (~tied | (rank <= room[rows])))
            room[rows] -= rank[:, -1:]
        values.append(block.view(-1).index_select(0, here))
        found.append(here.add_(rows.start * x.shape[1] + columns.start))
    positions = torch.cat(found)
    return positions, torch.cat(values), count_per_row(positions, *x.shape)


def _padded(values: Tensor, counts: Tensor) -> Tensor:
    """Runs of values, `counts` of them a row, as a matrix, filled up with -Inf."""
    if counts.numel() == 1:
        return values.unsqueeze(0)
    is_value = torch.arange(int(counts.max()), device=values.device) < counts.unsqueeze(1)
    return values.new_full(is_value.shape, -math.inf).masked_scatter_(is_value, values)
