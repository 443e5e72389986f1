"""What an option or a tensor has to be, and what the methods of a codec have to give."""

import math
from fractions import Fraction
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from splitlearn.compressors.payload import MAX_SECTIONS, NUM_PARAMS
from splitlearn.errors import NonFiniteError, PayloadError, UserError


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


# Of a codec, in what its class is called: whoever wrote it is told what to mend.


def check_bits(codec: str, bits: Any) -> float:
    """What `formula_bits` gave; raises UserError if that is no number."""
    if not isinstance(bits, Real) or not 0 <= bits < math.inf:
        raise UserError(f"{codec}.formula_bits gave {bits}: it has to give a number of bits, at least 0")
    return bits


def check_sections(codec: str, made: Any) -> tuple[list[Tensor], tuple[int, ...]]:
    """What `to_sections` gave; raises UserError if no payload can have it."""
    gave = f"{codec}.to_sections gave"
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], list):
        raise UserError(f"{gave} {_kind(made)}: it has to give a list of tensors and a tuple of parameter bytes")
    sections, params = made
    if others := [section for section in sections if not isinstance(section, Tensor)]:
        raise UserError(f"{gave} {_kind(others[0])} as a section: each has to be a tensor")
    if len(sections) > MAX_SECTIONS:
        raise UserError(f"{gave} {len(sections)} sections: a payload has room for {MAX_SECTIONS}")
    try:
        fits = len(bytes(tuple(params))) <= NUM_PARAMS
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise UserError(f"{gave} the parameters {params}: up to {NUM_PARAMS} whole numbers, 0 to 255, are possible")
    return sections, tuple(params)


def check_values(codec: str, found: Any, numel: int, dtype: torch.dtype) -> Tensor:
    """What `from_sections` gave; raises UserError if it is not so many values of this dtype.

    Not PayloadError, which is for bytes that `from_sections` refuses: what it took, it has to decode.
    """
    if not isinstance(found, Tensor) or found.numel() != numel or found.dtype != dtype:
        kind = f"{found.numel()} values of {found.dtype}" if isinstance(found, Tensor) else _kind(found)
        raise UserError(
            f"{codec}.from_sections gave {kind} for a payload of {numel} values of {dtype}: it has to give a tensor of"
            " payload.numel values of payload.dtype"
        )
    return found


def _kind(value: Any) -> str:
    """Of what type it is: "None", "(list, tuple)", "ndarray"."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_kind, value))})"
    return "None" if value is None else type(value).__name__
