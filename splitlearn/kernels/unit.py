"""Numbers brought to -1 to 1, in double precision or in single, so that what is computed of them is finite, and back.

Sums, products and transforms of float32 values that were computed in float64 and rounded at the end are the same on
every device and machine, but for a rare tie: what codecs of linear algebra need for bytes that do not depend on it.
"""

import math

import torch
from torch import Tensor

from splitlearn.kernels.blocks import block_size, empty


def to_unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """x divided by its largest magnitude, float64, and that, 0-d float64; 1 where all is zero."""
    x = x.double()
    scale = torch.stack(x.aminmax()).abs().max()
    scale = torch.where(scale > 0, scale, 1)
    return x / scale, scale


def from_unit(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x·scale, rounded to `dtype`; what goes beyond its largest number becomes that."""
    limit = torch.finfo(dtype).max
    return (x * scale).clamp_(-limit, limit).to(dtype)


def scaled(x: Tensor, scale: float | None = None) -> tuple[Tensor, float]:
    """A tensor with its largest magnitude at 1, in float32, contiguous, and what that stands for.

    `scale` is that magnitude, if it is known (see `largest`).
    """
    scale = largest(x) if scale is None else scale
    wide = torch.promote_types(x.dtype, torch.float32)
    out = empty(x.numel(), torch.float32, x.device).view(x.shape)
    # By a tensor: CUDA would multiply by the reciprocal of a number.
    return torch.div(x.to(wide), torch.tensor(scale, dtype=wide, device=x.device), out=out), scale


def largest(x: Tensor) -> float:
    """The largest magnitude, or 1 where all is zero."""
    return float(torch.stack(x.aminmax()).abs().max()) or 1.0


def rescaled(x: Tensor, scale: float, dtype: torch.dtype, least: float = -math.inf) -> Tensor:
    """Inverse of `scaled`, finite whatever comes in, and not below `least`; contiguous."""
    limit, wide = torch.finfo(dtype).max, torch.promote_types(dtype, torch.float32)
    out = empty(x.numel(), wide, x.device).view(x.shape)
    x, pieces = torch.atleast_1d(x), torch.atleast_1d(out)
    step = max(1, block_size(x.device) * len(x) // max(1, x.numel()))
    for part, found in zip(x.split(step), pieces.split(step), strict=True):
        torch.mul(part.to(wide), scale, out=found).clamp_(max(-limit, least), limit).nan_to_num_(0)
    return out.to(dtype)
