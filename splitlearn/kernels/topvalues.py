"""The top values of a map at full precision or with fewer bits."""

import math

import torch
from torch import Tensor

from splitlearn.errors import PayloadError
from splitlearn.kernels.sections import view_as

VALUES = ("full", "bf16", "fp16", "uint8")
HEAD_NBYTES = {"full": 0, "bf16": 0, "fp16": 4, "uint8": 8}  # of what comes before the values, in a section of its own
FINER = {"uint8": ("uint8", "fp16", "full"), "bf16": ("bf16", "full"), "fp16": ("fp16", "full"), "full": ("full",)}
STEPS = 255
HALF_EXPONENT = 15  # of fp16's largest power of two
EXPONENTS = (-100, 100)  # of scales


def bits_of(values: str, full_bits: int) -> int:
    """Bits of one top value."""
    return {"full": full_bits, "bf16": 16, "fp16": 16, "uint8": 8}[values]


def pack_values(tops: Tensor, values: str) -> list[Tensor]:
    """Sections for the top values (k,): themselves; as bf16; for fp16 a power of two (float32), as gradients are too
    small for it, and the values divided by it; for uint8 the ends of their magnitudes (float32) and even steps between
    them. Signs are left out with uint8."""
    if values == "full":
        return [tops]
    if values == "uint8":
        magnitudes = tops.to(torch.promote_types(tops.dtype, torch.float32)).abs()
        limit = torch.finfo(torch.float32).max
        ends = torch.stack(magnitudes.aminmax()).clamp_(max=limit).float()
        low, step = _grid(ends)
        steps = (magnitudes - low).div_(torch.where(step > 0, step, 1)).round_().clamp_(0, STEPS)
        return [ends, steps.to(torch.uint8)]
    if values == "fp16":
        scale = _power_of_two(tops)
        return [scale, clamped(tops / scale.to(torch.promote_types(tops.dtype, torch.float32)), torch.float16)]
    return [clamped(tops, torch.bfloat16)]


def unpack_values(sections: list[Tensor], values: str, dtype: torch.dtype) -> Tensor:
    """Inverse of `pack_values`: (k,) of `dtype`.

    Raises:
        PayloadError: an end or a scale is not a finite number.
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
    if values == "fp16":
        scale = view_as(sections[0], torch.float32)
        if not bool(scale.isfinite().all()):
            raise PayloadError("has a scale that is not finite")
        wide = torch.promote_types(dtype, torch.float32)
        return clamped(view_as(sections[1], torch.float16).to(wide) * scale.to(wide), dtype)
    return clamped(view_as(sections[0], torch.bfloat16), dtype)


def _power_of_two(tops: Tensor) -> Tensor:
    """(1,) float32: with which the largest magnitude comes near the end of fp16."""
    exponent = math.frexp(float(tops.abs().max()))[1] - HALF_EXPONENT
    return torch.tensor([2.0 ** min(max(exponent, EXPONENTS[0]), EXPONENTS[1])], device=tops.device)


def clamped(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`values`, finite, in another dtype, of which the largest number stands for what is beyond it."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    limit = min(torch.finfo(dtype).max, torch.finfo(values.dtype).max)
    return values.clamp(-limit, limit).to(dtype)


def _grid(ends: Tensor) -> tuple[Tensor, Tensor]:
    return ends[0], (ends[1] - ends[0]) / STEPS
