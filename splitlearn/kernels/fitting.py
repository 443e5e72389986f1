"""Levels that are fitted to a map instead of even ones, and the choice of ratio and width for a budget of bytes.

How it works: a sample of some thousand values, sorted, stands for the map. Levels that minimise the squared error are
those of Lloyd and Max: each is the mean of the values that are nearest to it. With running sums over the sorted sample,
a round of that takes one search of the cell borders. The budget's choice goes over widths, and for each finds the
largest share of top values that the budget has room for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from splitlearn.kernels import zstd
from splitlearn.kernels.bits import pack
from splitlearn.kernels.threshold import ranked

SAMPLE = 1 << 14
ROUNDS = 20
SETTLED = 1e-3  # of the threshold; a round that moves no level by more is the last
RUN = 1 << 12  # neighbouring values, to see what zstd makes of a mask beyond its entropy
NUM_RUNS = 8
FIRST_KEPT = 0.01  # the share of top values to see it at
SEARCH_STEPS = 7


def sample_of(x: Tensor, by_magnitude: bool) -> np.ndarray:
    """About SAMPLE of the values of a 1-D tensor, or their magnitudes, evenly spread over it, sorted, as float64."""
    return np.sort(ranked(x[:: _stride(x.numel())], by_magnitude).double().cpu().numpy())


def runs_of(x: Tensor, by_magnitude: bool) -> list[np.ndarray]:
    """A few runs of at most RUN neighbours, spread over a 1-D tensor, or their magnitudes, as float64."""
    starts = np.linspace(0, max(0, x.numel() - RUN), NUM_RUNS if x.numel() > NUM_RUNS * RUN else 1).astype(int)
    return [ranked(x[start : start + RUN], by_magnitude).double().cpu().numpy() for start in starts.tolist()]


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


def plan(sample: np.ndarray, runs: list[np.ndarray], budget_bits: float, value_bits: int) -> Plan:
    """The plan of least squared error whose codes and top values take at most `budget_bits` an element.

    Args:
        sample: magnitudes, sorted.
        runs: of neighbouring magnitudes, if the codes will be compressed; else none.
        budget_bits: for codes and top values, without signs.
        value_bits: bits of a top value.
    """
    scale = sample[-1] or 1.0  # else the squares of large values overflow
    sample, runs = sample / scale, [run / scale for run in runs]
    best, least = Plan(1 / len(sample), 1), np.inf
    for bits in range(1, 9):
        # The codes' entropy times what zstd takes of it in the runs stands for the size of the mask.
        share = _zstd_share(_Trial(sample, FIRST_KEPT, bits), runs) if runs else None
        low, high = 1 / len(sample), min(0.5, budget_bits / value_bits)
        trial = _Trial(sample, low, bits)
        if trial.width(share) + low * value_bits > budget_bits:
            break  # and so would be wider codes
        for _ in range(SEARCH_STEPS):
            middle = _Trial(sample, (low * high) ** 0.5, bits)
            if middle.width(share) + middle.kept * value_bits <= budget_bits:
                low, trial = middle.kept, middle
            else:
                high = middle.kept
        if trial.error < least:
            best, least = Plan(trial.kept, bits), trial.error
    return best


class _Trial:
    """What a plan comes to on the sample."""

    def __init__(self, sample: np.ndarray, kept: float, bits: int):
        self.kept, self.bits = kept, bits
        num_low = len(sample) - max(1, round(kept * len(sample)))
        low = sample[:num_low]
        self.threshold = sample[num_low] or 1.0
        self.levels = lloyd_max(low / self.threshold, 2**bits - 1) * self.threshold
        ends = _cells(low, self.levels)
        counts = np.diff(ends)
        sums = np.diff(np.concatenate([[0.0], np.cumsum(low)])[ends])
        self.error = float((low**2).sum() - 2 * (self.levels * sums).sum() + (self.levels**2 * counts).sum())
        self.entropy = _entropy(np.append(counts, len(sample) - num_low))

    def width(self, zstd_share: float | None) -> float:
        """Bits that a code takes: its own if there is no zstd."""
        return float(self.bits) if zstd_share is None else min(float(self.bits), zstd_share * self.entropy)


def _zstd_share(trial: _Trial, runs: list[np.ndarray]) -> float:
    """Size of the runs' packed codes after zstd over the entropy of the sample's codes."""
    num_bits = 0
    for run in runs:
        codes = np.searchsorted((trial.levels[1:] + trial.levels[:-1]) / 2, run, side="right")
        codes[run >= trial.threshold] = 2**trial.bits - 1
        packed = pack(torch.from_numpy(codes.astype(np.uint8)), trial.bits)
        frame = zstd.compress(packed)
        num_bits += 8 * (packed if frame is None else frame).numel()
    num_codes = sum(map(len, runs))
    return num_bits / num_codes / trial.entropy if trial.entropy > 0 else 1.0


def _entropy(counts: np.ndarray) -> float:
    """Bits a symbol."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def fitted_levels(x: Tensor, thresholds: Tensor, num_levels: int, by_magnitude: bool) -> Tensor:
    """Levels for the values below the threshold, as shares of it, the same for all rows: (num_levels,) float32, CPU.

    Args:
        x: (rows, n), contiguous.
        thresholds: (rows, 1), above 0.
        by_magnitude: the levels are for |x|.
    """
    stride = _stride(x.numel())
    rows = torch.arange(0, x.numel(), stride, device=x.device) // x.shape[1]
    shares = ranked(x.view(-1)[::stride], by_magnitude).double() / thresholds.view(-1).double()[rows]
    shares = np.sort(shares[shares < 1].cpu().numpy())
    return torch.from_numpy(lloyd_max(shares, num_levels)).float()
