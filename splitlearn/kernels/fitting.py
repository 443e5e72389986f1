"""Levels that are fitted to a map instead of even ones.

How it works: a sample of some thousand values, sorted, stands for the map. Levels that minimise the squared error are
those of Lloyd and Max: each is the mean of the values that are nearest to it. With running sums over the sorted sample,
a round of that takes one search of the cell borders.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from splitlearn.kernels.jit import compiled
from splitlearn.kernels.sampling import stride
from splitlearn.kernels.threshold import ranked

SAMPLE = 1 << 14
ROUNDS = 20
SETTLED = 1e-3  # of the threshold; a round that moves no level by more is the last
RUN = 1 << 12  # neighbouring values, to see what zstd makes of a mask beyond its entropy
NUM_RUNS = 8


def sample_of(x: Tensor, by_magnitude: bool) -> np.ndarray:
    """About SAMPLE of the values of a 1-D tensor, or their magnitudes, evenly spread over it, sorted, as float64."""
    return np.sort(ranked(x[:: stride(x.numel(), SAMPLE)], by_magnitude).double().cpu().numpy())


def runs_of(x: Tensor, by_magnitude: bool) -> list[np.ndarray]:
    """A few runs of at most RUN neighbours, spread over a 1-D tensor, or their magnitudes, as float64."""
    starts = np.linspace(0, max(0, x.numel() - RUN), NUM_RUNS if x.numel() > NUM_RUNS * RUN else 1).astype(int)
    return [ranked(x[start : start + RUN], by_magnitude).double().cpu().numpy() for start in starts.tolist()]


def lloyd_max(values: np.ndarray, num_levels: int, from_zero: bool = False) -> np.ndarray:
    """Levels (num_levels,), ascending, of least squared error for `values` in [0, 1], sorted, (n,); the first of them 0
    if `from_zero`.

    Source: Lloyd 1982, "Least squares quantization in PCM"; Max 1960.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return _settled(values, sums, np.arange(num_levels) / num_levels, from_zero)


@compiled
def cells(values, levels):
    """Where in the sorted values the cells of the levels begin and end: (levels + 1,)."""
    ends = np.zeros(levels.size + 1, np.int64)
    ends[1:-1] = np.searchsorted(values, (levels[1:] + levels[:-1]) / 2)
    ends[-1] = values.size
    return ends


@compiled
def _settled(values, sums, levels, from_zero):
    """The levels moved to the means of their cells until they stay; `sums`: of the values before each."""
    for _ in range(ROUNDS):
        ends, shift = cells(values, levels), 0.0
        moved = levels.copy()
        for i in range(levels.size):
            if ends[i + 1] > ends[i]:
                moved[i] = (sums[ends[i + 1]] - sums[ends[i]]) / (ends[i + 1] - ends[i])
        if from_zero:
            moved[0] = 0
        for i in range(levels.size):
            shift = max(shift, abs(moved[i] - levels[i]))
        levels = moved
        if shift < SETTLED:
            break
    for i in range(1, levels.size):
        levels[i] = max(levels[i], levels[i - 1])
    return levels


def entropy(counts: np.ndarray) -> float:
    """Bits a symbol."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def fitted_levels(
    x: Tensor, thresholds: Tensor, num_levels: int, by_magnitude: bool, from_zero: bool = False
) -> Tensor:
    """Levels for the values below the threshold, as shares of it, the same for all rows: (num_levels,) float32, CPU.

    Args:
        x: (rows, n), contiguous.
        thresholds: (rows, 1), above 0.
        by_magnitude: the levels are for |x|.
        from_zero: the first of them is 0.
    """
    every = stride(x.numel(), SAMPLE)
    rows = torch.arange(0, x.numel(), every, device=x.device) // x.shape[1]
    shares = ranked(x.view(-1)[::every], by_magnitude).double() / thresholds.view(-1).double()[rows]
    shares = np.sort(shares[shares < 1].cpu().numpy())
    return torch.from_numpy(lloyd_max(shares, num_levels, from_zero)).float()
