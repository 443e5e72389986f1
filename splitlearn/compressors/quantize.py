"""Uniform quantisation (QU)."""

from collections.abc import Iterator
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from splitlearn.compressors.base import Compressor, check_lengths, check_range, register, view_as
from splitlearn.compressors.bits import pack_spans, packed_nbytes, unpack_spans
from splitlearn.compressors.blocks import empty, scratch, spans
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
        x = x.view(-1)
        ends = torch.stack(x.aminmax()).to(torch.promote_types(x.dtype, torch.float32))
        return [ends, pack_spans(self._codes(x, ends), x.numel(), self.bits, x.device)], (self.bits,)

    def _codes(self, x: Tensor, ends: Tensor) -> Iterator[Tensor]:
        ends, scale = _computable(ends, ends[1] - ends[0])
        # A constant map has a step of 0: any positive divisor gives it the code 0.
        step = _step(ends, self.bits)
        step = torch.where(step > 0, step, 1)
        steps = scratch(x.numel(), ends.dtype, x.device)
        whole_steps = scratch(x.numel(), torch.int32, x.device)
        for span in spans(x.numel(), x.device):
            size = span.stop - span.start
            here = steps[:size].copy_(x[span])
            if scale != 1:
                here.mul_(scale)
            here.sub_(ends[0]).div_(step).round_().clamp_(0, 2**self.bits - 1)
            yield whole_steps[:size].copy_(here).to(torch.uint8)  # fast, where straight to uint8 is not

    def restore(self, sections: list[Tensor], payload: Payload) -> Tensor:
        bits = payload.params[0]
        if bits != self.bits:
            raise PayloadError(f"has codes of {bits} bits; this compressor has bits={self.bits}")
        dtype = torch.promote_types(payload.dtype, torch.float32)
        check_lengths(sections, 2 * dtype.itemsize, packed_nbytes(payload.numel, bits))
        ends = view_as(sections[0], dtype)
        ends, scale = _computable(ends, _step(ends, bits) * (2**bits - 1) + ends[0])
        step = _step(ends, bits)
        out = empty(payload.numel, payload.dtype, ends.device)
        steps = scratch(payload.numel, ends.dtype, ends.device)
        for span, codes in unpack_spans(sections[1], bits, payload.numel):
            here = steps[: codes.numel()].copy_(codes).mul_(step).add_(ends[0])
            if scale != 1:
                here.clamp_(ends[0], ends[1]).div_(scale)
            out[span] = here
        return out

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        return self.bits * prod(shape)


def _step(ends: Tensor, bits: int) -> Tensor:
    levels = 2**bits - 1
    return ends[1] / levels - ends[0] / levels


def _computable(ends: Tensor, widest: Tensor) -> tuple[Tensor, float]:
    """The ends to compute with, and what they are scaled by. `widest` is the largest result on the way.

    Where single precision does not hold it, double precision does; where that does not, quarters of the values do.
    """
    if widest.isfinite():
        return ends, 1
    return (ends.double(), 1) if ends.dtype == torch.float32 else (ends / 4, 1 / 4)
