"""Levels that are fitted to a map instead of even ones, and the choice of ratio and width for a budget of bytes.

How it works: a sample of some thousand values, sorted, stands for the map. Levels that minimise the squared error are
those of Lloyd and Max: each is the mean of the values that are nearest to it. With running sums over the sorted sample,
a round of that takes one search of the cell borders. How many bits the codes will take after a lossless stage is their
entropy in the sample. The budget's choice goes over widths, and for each finds the largest share of top values that the
budget has room for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SAMPLE = 1 << 14
ROUNDS = 20
SETTLED = 1e-3  # of the threshold; a round that moves no level by more is the last
ENTROPY_OVERHEAD = 1.05  # what zstd needs beyond the entropy of the codes
SEARCH_STEPS = 6


def sample_of(magnitudes: Tensor) -> np.ndarray:
    """About SAMPLE of the values of a 1-D tensor, evenly spread over it, sorted, as float64."""
    return np.sort(magnitudes[:: _stride(magnitudes.numel())].double().cpu().numpy())


def _stride(numel: int) -> int:
    return max(1, numel // SAMPLE) | 1  # odd, so as not to run along one column of the maps


def lloyd_max(values: np.ndarray, num_levels: int) -> np.ndarray:
    """Levels (num_levels,), ascending, of least squared error for `values` in [0, 1], sorted, (n,).

    Source: Lloyd 1982, "Least squares quantization in PCM"; Max 1960.
    """
    levels = np.arange(num_levels) / num_levels
    sums = np.concatenate([[0.0], np.cumsum(values)])
    for _ in range(ROUNDS):
        ends = _cells(values, levels)
        counts = np.diff(ends)
        moved = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), levels)
        shift = np.abs(moved - levels).max(initial=0)
        levels = moved
        if shift < SETTLED:
            break
    return np.maximum.accumulate(levels)


def _cells(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Where in the sorted values the cells of the levels begin and end: (levels + 1,)."""
    borders = np.searchsorted(values, (levels[1:] + levels[:-1]) / 2)
    return np.concatenate([[0], borders, [len(values)]])


@dataclass(frozen=True)
class Plan:
    """A choice for one map: `kept`, the share of the values that are kept, and `bits`, the width of a code."""

    kept: float
    bits: int


def plan(sample: np.ndarray, budget_bits: float, value_bits: int, lossless: bool) -> Plan:
    """The plan of least squared error whose codes and top values take at most `budget_bits` an element.

    Args:
        sample: magnitudes, sorted.
        budget_bits: for codes and top values, without signs.
        value_bits: bits of a top value.
        lossless: whether the codes will be compressed to their entropy.
    """
    squares = np.concatenate([[0.0], np.cumsum(sample**2)])
    best, least = Plan(1 / len(sample), 1), np.inf
    for bits in range(1, 9):
        low, high = 1 / len(sample), min(0.5, budget_bits / value_bits)
        cost, error = _try(sample, squares, low, bits, value_bits, lossless)
        if cost > budget_bits:
            break  # and so would be wider codes
        found = Plan(low, bits)
        for _ in range(SEARCH_STEPS):
            middle = (low * high) ** 0.5
            cost, middle_error = _try(sample, squares, middle, bits, value_bits, lossless)
            if cost <= budget_bits:
                low, found, error = middle, Plan(middle, bits), middle_error
            else:
                high = middle
        if error < least:
            best, least = found, error
    return best


def _try(
    sample: np.ndarray, squares: np.ndarray, kept: float, bits: int, value_bits: int, lossless: bool
) -> tuple[float, float]:
    """Bits an element and squared error of a plan."""
    num_low = len(sample) - max(1, round(kept * len(sample)))
    low = sample[:num_low]
    threshold = sample[num_low] or 1.0
    levels = lloyd_max(low / threshold, 2**bits - 1) * threshold
    ends = _cells(low, levels)
    counts, sums = np.diff(ends), np.diff(np.concatenate([[0.0], np.cumsum(low)])[ends])
    error = squares[num_low] - 2 * (levels * sums).sum() + (levels**2 * counts).sum()
    width = float(bits)
    if lossless:
        shares = np.append(counts, len(sample) - num_low) / len(sample)
        shares = shares[shares > 0]
        width = min(width, ENTROPY_OVERHEAD * float(-(shares * np.log2(shares)).sum()))
    return width + kept * value_bits, float(error)


def fitted_levels(magnitudes: Tensor, thresholds: Tensor, num_levels: int) -> Tensor:
    """Levels for the values below the threshold, as shares of it, the same for all rows: (num_levels,) float32, CPU.

    Args:
        magnitudes: (rows, n).
        thresholds: (rows, 1), above 0.
    """
    flat, row_length = magnitudes.reshape(-1), magnitudes.shape[1]
    stride = _stride(flat.numel())
    rows = torch.arange(0, flat.numel(), stride, device=flat.device) // row_length
    shares = flat[::stride].double() / thresholds.view(-1).double()[rows]
    shares = np.sort(shares[shares < 1].cpu().numpy())
    return torch.from_numpy(lloyd_max(shares, num_levels)).float()
