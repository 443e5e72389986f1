"""Numbers brought to -1 to 1 in double precision, so that whatever is computed of them is finite, and back.

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
