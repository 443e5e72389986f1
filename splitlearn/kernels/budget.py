"""The choice of ratio and width of a mask for a budget of bits: planned on a sample, mended by what payloads take.

How it works: a sample of some thousand values, sorted, stands for the map. For some numbers of levels, shares of top
values and kinds of those it says the error, the top values' own rounding with it, and what the codes would take. The
plan is the one of least error that fits. What an encoder and a lossless stage really take differs from that, by much
where a map has outlying channels or heavy tails, so that the plan is carried out and measured, the estimate for that
width is moved to what was found, and the next plan is made, until a payload is within the budget and close to it, or no
plan is left that is new.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from splitlearn.kernels import zstd
from splitlearn.kernels.bits import pack
from splitlearn.kernels.fitting import cells, entropy, lloyd_max, runs_of, sample_of
from splitlearn.kernels.threshold import ranked
from splitlearn.kernels.topvalues import FINER, HEAD_NBYTES, bits_of, pack_values, unpack_values

THINNED = 4  # of the sample that levels are fitted to, every such value
SHARES = 10  # of top values, tried on the sample for each number of levels
BETWEEN = 40  # and read off between each two of them
MOST_KEPT = 0.5
FIRST_KEPT = 0.01  # the share of top values at which zstd is tried on runs of neighbours
WHOLE_WIDTHS = tuple(2**bits - 1 for bits in range(1, 9))
FITTED = (1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15, 20, 25, 31, 45, 63, 90, 127, 180, 255)  # numbers of levels, if coded
HOPELESS = 1.5  # times the budget: levels that take as much at least are not looked at, nor are more of them
TRIES, FREE_TRIES = 12, 7  # after so many, only the share of top values changes
AIM, CLOSE = 0.985, 0.96  # of the budget: what a plan may take, and what a payload must at least to be the last
Made = TypeVar("Made")


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        kept: share of the values that are top values.
        levels: number of levels for the others.
        values: kind of the top values, see topvalues.py.
        error: squared, of the sample; its logarithm.
        cost: estimated bits an element.
    """

    kept: float
    levels: int
    values: str
    error: float = 0.0
    cost: float = 0.0

    @property
    def bits(self) -> int:
        """Width of a code: of one for each level, and one for the top values."""
        return self.levels.bit_length()


@dataclass(frozen=True)
class About:
    """
    Attributes:
        signed: whether values are ranked by magnitude, codes that are not 0 have a sign bit beside them, and 0 is zero.
        fitted: whether levels are fitted, or even.
        values: kind of the top values; a finer one is taken where that pays.
        lossless: the lossless stage, see lossless.py.
    """

    signed: bool
    fitted: bool
    values: str
    lossless: str


def meet(
    rows: Tensor, about: About, budget_bits: float, make: Callable[[int, Plan], tuple[Made, float]]
) -> tuple[Made, float]:
    """The payload of least error, of those tried, that takes at most the budget, and what it takes.

    Where none does, as where a small tensor's side information is more than that, it is the smallest that was tried.

    Args:
        rows: (rows, n), contiguous; each keeps as many values.
        about: the payload's form.
        budget_bits: bits an element.
        make: from the number of top values of a row and the plan, a payload and the bits an element that it takes.
    """
    planner, tried = _Planner(rows, about, budget_bits), set()
    best = smallest = None
    for i in range(TRIES):
        plan = planner.best(best[0] if best and i >= FREE_TRIES else None)
        k = max(1, int(plan.kept * rows.shape[1]))
        if (k, plan.levels, plan.values) in tried:
            break
        tried.add((k, plan.levels, plan.values))
        made, taken = make(k, plan)
        if smallest is None or taken < smallest[1]:
            smallest = made, taken
        if taken <= budget_bits and (best is None or plan.error < best[0].error):
            best = plan, made, taken
        if CLOSE * budget_bits <= taken <= budget_bits:
            break
        planner.learn(plan, taken)
    return smallest if best is None else best[1:]


class _Planner:
    def __init__(self, rows: Tensor, about: About, budget_bits: float):
        flat, num_rows = rows.view(-1), len(rows)
        scale = ranked(flat, about.signed).amax().item() or 1.0  # else the squares of large values overflow
        sample = sample_of(flat, about.signed) / scale
        sample = sample[len(sample) // 2 % THINNED :: THINNED] if len(sample) > THINNED**6 else sample
        runs = [run / scale for run in runs_of(flat, about.signed)] if about.lossless == "zstd" else []
        self._aim = AIM * budget_bits
        self._off: dict[int, float] = {}  # what codes of a width take beyond the estimate
        self._curves: list[tuple[int, str, np.ndarray, np.ndarray]] = []  # levels, values, errors, costs

        least = min(max(1 / len(sample), num_rows / flat.numel()), MOST_KEPT)
        shares = np.geomspace(least, MOST_KEPT, SHARES)
        self._kept = np.geomspace(least, MOST_KEPT, BETWEEN * (SHARES - 1) + 1)
        kinds = FINER[about.values]
        rounding = {kind: np.array([_rounding(_tops(sample, kept), kind) for kept in shares]) for kind in kinds}
        of_entropy: dict[int, float] = {}
        for levels in FITTED if about.fitted and about.lossless != "none" else WHOLE_WIDTHS:
            trials = [_Trial(sample, kept, levels, about) for kept in shares]
            if runs and trials[0].bits not in of_entropy:
                of_entropy[trials[0].bits] = _zstd_share(_Trial(sample, FIRST_KEPT, levels, about), runs)
            of_codes = np.array([trial.cost(of_entropy.get(trial.bits, 1.0)) for trial in trials])
            if of_codes.min() > HOPELESS * budget_bits and self._curves:
                break
            errors = np.array([trial.error for trial in trials])
            for kind in kinds:
                side = (8 * HEAD_NBYTES[kind] + 32 * about.fitted * (2 ** trials[0].bits - 1)) / flat.numel()
                costs = of_codes + shares * bits_of(kind, 8 * rows.element_size()) + side
                whole = np.log(np.maximum(errors + rounding[kind], 1e-300))
                found = (np.interp(np.log(self._kept), np.log(shares), curve) for curve in (whole, costs))
                self._curves.append((levels, kind, *found))

    def best(self, like: Plan | None) -> Plan:
        """Of least error within the budget; of least cost if nothing is. `like`: whose levels and values it has."""
        fits, least = None, None
        for levels, kind, errors, costs in self._curves:
            if like and (levels, kind) != (like.levels, like.values):
                continue
            costs = costs + self._off.get(levels.bit_length(), 0.0)
            within = np.where(costs <= self._aim, errors, np.inf)
            for i, chosen in ((int(costs.argmin()), "least"), (int(within.argmin()), "fits")):
                plan = Plan(float(self._kept[i]), levels, kind, float(errors[i]), float(costs[i]))
                if chosen == "least" and (least is None or plan.cost < least.cost):
                    least = plan
                if chosen == "fits" and within[i] < np.inf and (fits is None or plan.error < fits.error):
                    fits = plan
        return fits or least

    def learn(self, plan: Plan, taken: float) -> None:
        """`taken`: bits an element of a payload that was made by this plan."""
        self._off[plan.bits] = self._off.get(plan.bits, 0.0) + taken - plan.cost


def _tops(sample: np.ndarray, kept: float) -> np.ndarray:
    return sample[len(sample) - max(1, round(kept * len(sample))) :]


class _Trial:
    """What levels and a share of top values come to on the sample, but for the top values' own rounding."""

    def __init__(self, sample: np.ndarray, kept: float, num_levels: int, about: About):
        tops = _tops(sample, kept)
        low = sample[: len(sample) - len(tops)]
        self.bits, self.coded, self.threshold = num_levels.bit_length(), about.lossless != "none", tops[0] or 1.0
        levels = np.arange(num_levels) / num_levels
        if about.fitted:
            levels = lloyd_max(low / self.threshold, num_levels, from_zero=about.signed)
        self.levels = levels * self.threshold
        ends = cells(low, self.levels)
        counts = np.diff(ends)
        sums = np.diff(np.concatenate([[0.0], np.cumsum(low)])[ends])
        error = float((low**2).sum() - 2 * (self.levels * sums).sum() + (self.levels**2 * counts).sum())
        self.error = max(error, 0.0)
        self.entropy = entropy(np.append(counts, len(tops)))
        self.signs = 1 - counts[0] / len(sample) if about.signed else 0.0

    def cost(self, of_entropy: float) -> float:
        """Bits an element of codes and signs; `of_entropy`: what a lossless stage takes of the codes' entropy."""
        return (min(float(self.bits), of_entropy * self.entropy) if self.coded else self.bits) + self.signs


def _rounding(tops: np.ndarray, values: str) -> float:
    """The squared error of top values of this kind, the largest of which is 1 in the map."""
    whole = torch.from_numpy(np.append(tops, 1.0))
    sections = [section.view(-1).view(torch.uint8) for section in pack_values(whole, values)]
    return float((unpack_values(sections, values, whole.dtype) - whole)[:-1].square().sum())


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
