"""What a basis is fitted to: the second moments of a sender's maps of late, and in a share those of their gradients.

How it works: each map and each gradient counts alike, by moments over their trace. An orthonormal basis of a mixture of
the two takes the directions first in which either has its energy, so that what the loss depends on arrives, and its
gradient with it; both ends do with it what they do with any basis.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from splitlearn.kernels import bases
from splitlearn.kernels.channels import by_channel

KEEP = 0.9, 0.99  # of the moments, from one map to the next; the more, the fewer columns a map has
FIRST_FITS = 1, 4, 16  # maps
COLUMNS = 4096  # that moments are taken of, or 16 for each channel


def of(matrix: Tensor) -> Tensor:
    """(C, C) float32 of (C, M)."""
    return bases.second_moments(matrix, max(COLUMNS, 16 * len(matrix)))


def next_fit(step: int, refresh: int) -> int:
    """The first step after this one at which a basis is fitted."""
    return min(fit for fit in (*FIRST_FITS, (step // refresh + 1) * refresh) if fit > step)


def learned(state: dict[str, Any] | None, matrix: Tensor, refresh: int, bits: int, weighted: float) -> dict[str, Any]:
    """A sender's state (see basis.py) after another map, (C, M) float32: with a new basis where it is time for one."""
    num_channels, num_columns = matrix.shape
    found = of(matrix)
    if state is None or len(state["moments"]) != num_channels:
        step, moments, before = 1, found, None
        state = {"number": 0, "debt": 0.0}
    else:
        step, before = state["step"] + 1, state["integers"]
        keep = _kept(num_channels, num_columns, step)
        moments = keep * state["moments"] + (1 - keep) * found
    state = {**state, "step": step, "moments": moments}
    if step == next_fit(step - 1, refresh):
        fitted_to = moments.lerp(state["gradients"], weighted) if "gradients" in state else moments
        vectors = bases.eigenvectors(fitted_to, before)
        state |= {"number": state["number"] + 1, "sent": 0, "integers": bases.to_integers(vectors, bits)}
    return state


def with_gradient(state: dict[str, Any], gradient: Tensor) -> dict[str, Any]:
    """The same after the gradient of a map has come, of its shape; one that is zero or not finite tells nothing."""
    rows = by_channel(gradient).float()
    found = of(rows / rows.abs().amax())
    if found.shape != state["moments"].shape or not (found.isfinite().all() and found.trace() > 0):
        return state
    before = state.get("gradients", found)
    keep = _kept(*rows.shape, state["step"])
    return {**state, "gradients": keep * before + (1 - keep) * found}


def _kept(num_channels: int, num_columns: int, step: int) -> float:
    """The share of what was known that stays, after so many maps."""
    return min(max(KEEP[0], 1 - num_columns / (16 * num_channels)), KEEP[1], (step - 1) / step)
