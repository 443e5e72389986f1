"""What klt does with the components of a map beside coding them: how many are worth it, and what is left of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from splitlearn.compressors.basis import Plan
from splitlearn.compressors.trace import Trace, weights_of
from splitlearn.kernels import stepping, steps


def num_worthwhile(plan: Plan, symbols: np.ndarray, least: float) -> int:
    """Components up to the last that has so many symbols, (K, F, S, m), that its vector is worth its bits."""
    found = steps.num_beyond(symbols).sum(1)
    enough = (found >= max(1, least)).nonzero()[0]
    known = found[: plan.sent].nonzero()[0]
    return min(plan.most, max(int(last[-1]) + 1 if len(last) else 1 for last in (enough, known)))


def traced(shape: torch.Size, basis: Tensor | None, block: int, packed: stepping.Packed, values: Tensor) -> Trace:
    """The sender's trace: with the gains, which it alone can know."""
    number = len(packed.symbols)
    gains = steps.gains(values[:number], packed.symbols, packed.table.float())
    basis = None if basis is None else basis[:number]
    return Trace(shape, basis, block, weights_of(packed.symbols), gains)


def some_samples(shape: torch.Size, matrix: Tensor) -> tuple[Tensor, torch.Size]:
    """As many samples of a map, (C, M), as a step is looked for on, and what their shape is as a map."""
    samples = matrix.view(len(matrix), shape[0], -1)
    _, by = stepping.surplus_of(matrix.numel(), shape[0])
    part = samples[:, ::by]
    return part.reshape(len(matrix), -1), torch.Size((part.shape[1], *shape[1:]))
