"""Uniform quantisation (QU)."""

from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from splitlearn.compressors.base import Compressor, check_lengths, check_range, register, view_as
from splitlearn.compressors.bits import pack, packed_nbytes, unpack
from splitlearn.compressors.payload import Payload
from splitlearn.errors import PayloadError


@register("qu")
class UniformQuantizer(Compressor):
    """Rounds every value to the nearest of 2^bits even levels between the minimum and the maximum.

    Sections: minimum and maximum (float32; float64 for float64), codes of `bits` bits.

    Args:
        bits: width of a code, 1 to 8.

    Source: baseline QU of the MS paper (ECAI 2024).
    """

    codec: ClassVar[int] = 1
    bits: int = 3

    def __post_init__(self):
        check_range("bits", self.bits, 1, 8)

    def sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        x = x.view(-1).to(torch.promote_types(x.dtype, torch.float32))
        ends = torch.stack(x.aminmax())
        x = x.to(_working_dtype(ends))
        # A constant map has a step of 0: any positive divisor gives it the code 0.
        step = _step(ends, self.bits)
        codes = (x - ends[0].to(x.dtype)).div_(torch.where(step > 0, step, 1)).round_().clamp_(0, 2**self.bits - 1)
        return [ends, pack(codes.to(torch.uint8), self.bits)], (self.bits,)

    def restore(self, sections: list[Tensor], payload: Payload) -> Tensor:
        bits = payload.params[0]
        if bits != self.bits:
            raise PayloadError(f"has codes of {bits} bits; this compressor has bits={self.bits}")
        dtype = torch.promote_types(payload.dtype, torch.float32)
        check_lengths(sections, 2 * dtype.itemsize, packed_nbytes(payload.numel, bits))
        ends = view_as(sections[0], dtype)
        codes = unpack(sections[1], bits, payload.numel).to(_working_dtype(ends))
        return codes.mul_(_step(ends, bits)).add_(ends[0].to(codes.dtype)).to(payload.dtype)

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        return self.bits * prod(shape)


def _step(ends: Tensor, bits: int) -> Tensor:
    low, high = ends.to(_working_dtype(ends))
    return (high - low) / (2**bits - 1)


def _working_dtype(ends: Tensor) -> torch.dtype:
    """Double precision for ranges that single precision does not hold."""
    return ends.dtype if (ends[1] - ends[0]).isfinite() else torch.float64
