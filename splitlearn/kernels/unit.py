"""Numbers brought to -1 to 1, in double precision or in single, so that what is computed of them is finite, and back.

Sums, products and transforms of float32 values that were computed in float64 and rounded at the end are the same on
every device and machine, but for a rare tie: what codecs of linear algebra need for bytes that do not depend on it.
"""

import torch
from torch import Tensor


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


def scaled(x: Tensor) -> tuple[Tensor, float]:
    """A tensor with its largest magnitude at 1, in float32, and what that stands for."""
    scale = float(torch.stack(x.aminmax()).abs().max()) or 1.0
    wide = torch.promote_types(x.dtype, torch.float32)
    # By a tensor: CUDA would multiply by the reciprocal of a number.
    return (x.to(wide) / torch.tensor(scale, dtype=wide, device=x.device)).float(), scale


def rescaled(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Inverse of `scaled`, finite whatever comes in."""
    limit = torch.finfo(dtype).max
    wide = x.to(torch.promote_types(dtype, torch.float32))
    return (wide * scale).clamp_(-limit, limit).nan_to_num_(0).to(dtype)
