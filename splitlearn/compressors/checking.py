"""What an option or a tensor has to be."""

import math
from fractions import Fraction

import torch
from torch import Tensor

from splitlearn.errors import NonFiniteError, PayloadError


def check_finite(x: Tensor, witness: float | None = None) -> None:
    """Raises NonFiniteError if `x` holds NaN or Inf. Each element is looked at only if `witness` is not finite.

    Args:
        witness: a number that NaN and Inf in `x` show up in. None for the sum, which takes a pass over `x`.
    """
    if witness is None:
        witness = x.sum(dtype=torch.promote_types(x.dtype, torch.float32)).item()
    if not math.isfinite(witness) and not x.isfinite().all():
        raise NonFiniteError(f"{int(x.isnan().sum())} NaN and {int(x.isinf().sum())} Inf in a tensor of {x.numel()}")


def is_as_sent(tensor: Tensor) -> bool:
    """Whether a tensor that arrived is plain: dense, on the CPU, and without a gradient."""
    return tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.requires_grad


def check_lengths(sections: list[Tensor], *lengths: int) -> None:
    """Raises PayloadError unless the sections have these lengths in bytes."""
    found = tuple(section.numel() for section in sections)
    if found != lengths:
        raise PayloadError(f"has sections of {found} bytes where its shape and parameters ask for {lengths}")


def check_range(name: str, value, low, high, *, high_open: bool = False) -> None:
    """Raises ValueError unless low ≤ value ≤ high, or < high if `high_open`."""
    if not (low <= value < high if high_open else low <= value <= high):
        raise ValueError(f"{name}={value} is out of range: choose {low} ≤ {name} {'<' if high_open else '≤'} {high}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value} is unknown: choose {' or '.join(choices)}")


def num_kept(ratio: float, numel: int) -> int:
    """k = ⌊(1-ratio)·numel⌋, at least 1: exact for the decimal that the user wrote, where floats would lose one."""
    return max(1, int((1 - Fraction(str(ratio))) * numel))
