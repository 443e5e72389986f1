"""The exact k largest of many, fast.

How it works: a sample of every 64th value brackets the k-th largest from below; the few values that reach the bracket
contain all of the k largest for certain if there are at least k of them, so that selecting among them is exact. Where a
sample misleads (fewer than k reach it), the whole is searched.
"""

import math

import torch
from torch import Tensor

STRIDE = 64
SMALL = 1 << 14  # below this, bracketing costs more than it saves


def kth_largest(x: Tensor, k: int) -> Tensor:
    """The k-th largest value of each row of `x` (rows, n), 1 ≤ k ≤ n: (rows,) of the same dtype."""
    if x.shape[0] == 1 and x.numel() >= SMALL:
        flat = x.view(-1)
        sample = flat[::STRIDE]
        expected_rank = k * sample.numel() / flat.numel()
        rank = math.ceil(expected_rank + 4 * math.sqrt(expected_rank) + 4)
        if rank < sample.numel():
            reaching = flat[flat >= _select(sample.unsqueeze(0), rank)]
            if reaching.numel() >= k:
                x = reaching.unsqueeze(0)
    return _select(x, k)


def _select(x: Tensor, k: int) -> Tensor:
    return torch.kthvalue(x, x.shape[1] - k + 1, dim=1).values


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Exactly k entries of every row, the largest; of equal values the first are taken.

    Args:
        x: (rows, n).
        k: 1 ≤ k ≤ n.

    Returns:
        Their positions in `x.view(-1)`, ascending, (rows·k,) int64; and each row's k-th largest value, (rows,).
    """
    threshold = kth_largest(x, k)
    positions = (x >= threshold.unsqueeze(1)).view(-1).nonzero().view(-1)
    num_rows, row_length = x.shape
    if positions.numel() > num_rows * k:  # more values than needed equal a threshold: drop the last of them
        rows = positions // row_length
        tied = x.view(-1)[positions] == threshold[rows]
        num_tied = torch.bincount(rows[tied], minlength=num_rows)
        num_above = torch.bincount(rows[~tied], minlength=num_rows)
        rank = tied.cumsum(0) - (num_tied.cumsum(0) - num_tied)[rows]  # of a tied value among those of its row, from 1
        positions = positions[~tied | (rank <= (k - num_above)[rows])]
    return positions, threshold
