"""The top values of a map at full precision or with fewer bits."""

import torch
from torch import Tensor

from splitlearn.errors import PayloadError
from splitlearn.kernels.sections import view_as

VALUES = ("full", "bf16", "fp16", "uint8")
SHORT_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
STEPS = 255


def bits_of(values: str, full_bits: int) -> int:
    """Bits of one top value."""
    return {"full": full_bits, "bf16": 16, "fp16": 16, "uint8": 8}[values]


def pack_values(tops: Tensor, values: str) -> list[Tensor]:
    """Sections for the top values (k,): themselves, shorter floats, or for uint8 the ends of their magnitudes (float32)
    and even steps between them. Signs are left out with uint8."""
    if values == "full":
        return [tops]
    if values == "uint8":
        magnitudes = tops.to(torch.promote_types(tops.dtype, torch.float32)).abs()
        limit = torch.finfo(torch.float32).max
        ends = torch.stack(magnitudes.aminmax()).clamp_(max=limit).float()
        low, step = _grid(ends)
        steps = (magnitudes - low).div_(torch.where(step > 0, step, 1)).round_().clamp_(0, STEPS)
        return [ends, steps.to(torch.uint8)]
    return [_clamped(tops, SHORT_DTYPES[values])]


def unpack_values(sections: list[Tensor], values: str, dtype: torch.dtype) -> Tensor:
    """Inverse of `pack_values`: (k,) of `dtype`.

    Raises:
        PayloadError: a value is not finite.
    """
    if values == "uint8":
        ends = view_as(sections[0], torch.float32)
        if not bool(ends.isfinite().all()):
            raise PayloadError("has top values that are not finite")
        low, step = _grid(ends.to(torch.promote_types(dtype, torch.float32)))
        magnitudes = view_as(sections[1], torch.uint8).to(low.dtype).mul_(step).add_(low)
        return magnitudes.clamp_(max=torch.finfo(dtype).max).to(dtype)  # the largest may be rounded up beyond it
    if values == "full":
        return view_as(sections[0], dtype)
    return _clamped(view_as(sections[0], SHORT_DTYPES[values]), dtype)


def _clamped(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` in another dtype, of which the largest number stands for what is beyond it."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    limit = min(torch.finfo(dtype).max, torch.finfo(values.dtype).max)
    return values.clamp(-limit, limit).to(dtype)


def _grid(ends: Tensor) -> tuple[Tensor, Tensor]:
    return ends[0], (ends[1] - ends[0]) / STEPS
