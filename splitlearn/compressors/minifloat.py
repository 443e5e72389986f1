"""Minifloats (MF): floating-point numbers of 2 to 8 bits, with one scale for the tensor.

How it works: a code is a sign, an exponent E of e bits and a mantissa M of m bits. With bias = 2^(e-1)-1 it stands for
±(1 + M/2^m)·2^(E-bias) where E > 0, and for ±M/2^m·2^(1-bias) where E = 0. No code is kept for infinity or NaN, which
are never encoded, so that the range is up to twice that of FP8. The scale is a power of two, which leaves mantissas as
they are, and the smallest one with which the largest magnitude is within the codes' range.

A value v with 2^p ≤ v < 2^(p+1), or p = 1-bias for all that are smaller, lies among codes 2^(p-m) apart: it is r of
those, rounded, and its code is r + (p-1+bias)·2^m. With r = 2^(m+1) that is the first code of the next exponent. In the
middle of two codes the even r is taken: that is the even code or, without a mantissa, the larger of two powers of two.
"""

import math
from collections.abc import Iterator
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from splitlearn.compressors.base import Compressor, check_lengths, check_range, register
from splitlearn.compressors.payload import Payload
from splitlearn.errors import PayloadError
from splitlearn.kernels.bits import pack_spans, packed_nbytes, unpack_spans
from splitlearn.kernels.blocks import empty, scratch, spans
from splitlearn.kernels.scopes import largest_magnitudes
from splitlearn.kernels.sections import view_as

WHOLE = {torch.float32: torch.int32, torch.float64: torch.int64}


@register("mf")
class Minifloat(Compressor):
    """Rounds every value to the nearest floating-point number of few bits; in the middle of two, to the even.

    Sections: the scale (float32; float64 for float64), codes of 1 + exponent_bits + mantissa_bits bits.

    Args:
        exponent_bits: 1 to 5; with 1 the codes are evenly spaced.
        mantissa_bits: 0 to 6; with the sign and the exponent a code has at most 8 bits.

    Source: "FP8 Formats for Deep Learning", arXiv:2209.05433, without its codes for infinity and NaN.
    """

    codec: ClassVar[int] = 6
    exponent_bits: int = 4
    mantissa_bits: int = 3

    def __post_init__(self):
        super().__post_init__()
        check_range("exponent_bits", self.exponent_bits, 1, 5)
        check_range("mantissa_bits", self.mantissa_bits, 0, 6)
        if self._bits > 8:
            raise ValueError(
                f"exponent_bits={self.exponent_bits} and mantissa_bits={self.mantissa_bits} make codes of {self._bits}"
                " bits with the sign: choose at most 8"
            )

    @property
    def _bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def _bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    def magnitudes(self) -> Tensor:
        """(2^(exponent_bits + mantissa_bits),) float64, ascending from 0: what the codes without sign stand for."""
        exponents = torch.arange(2**self.exponent_bits, dtype=torch.float64).unsqueeze(1)
        fractions = torch.arange(2**self.mantissa_bits, dtype=torch.float64) / 2**self.mantissa_bits
        return (((exponents > 0) + fractions) * 2.0 ** (exponents.clamp(min=1) - self._bias)).view(-1)

    def to_sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        scale = self._scale(x)
        codes = pack_spans(self._codes(x.view(-1), scale), x.numel(), self._bits, x.device)
        return [scale, codes], (self.exponent_bits, self.mantissa_bits)

    def _scale(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        fraction, exponent = math.frexp(largest_magnitudes(x, "batch").item())
        top_fraction, top_exponent = math.frexp(self.magnitudes()[-1].item())
        exponent += (fraction > top_fraction) - top_exponent
        smallest = math.frexp(torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps)[1] - 1
        return torch.tensor([math.ldexp(1.0, max(exponent, smallest))], dtype=dtype, device=x.device)

    def _codes(self, x: Tensor, scale: Tensor) -> Iterator[Tensor]:
        # The bits of a float with only its exponent left are those of the power of two below it.
        whole = WHOLE[scale.dtype]
        exponent_only = torch.tensor(math.inf, dtype=scale.dtype).view(whole).item()
        lowest = torch.tensor(2.0 ** (1 - self._bias), dtype=scale.dtype).view(whole).item()
        shift = round(-math.log2(torch.finfo(scale.dtype).eps)) - self.mantissa_bits
        top_code = 2 ** (self._bits - 1) - 1
        values = scratch(x.numel(), scale.dtype, x.device)
        powers = scratch(x.numel(), whole, x.device)
        for span in spans(x.numel(), x.device):
            size = span.stop - span.start
            here = values[:size].copy_(x[span]).div_(scale)
            negative = here.signbit()
            power = torch.bitwise_and(here.abs_().view(whole), exponent_only, out=powers[:size]).clamp_(min=lowest)
            here.div_(power.view(scale.dtype)).mul_(2**self.mantissa_bits).round_()  # half to even
            codes = power.sub_(lowest).bitwise_right_shift_(shift).add_(here.to(whole)).clamp_(max=top_code)
            yield codes.add_(negative, alpha=top_code + 1).to(torch.uint8)

    def from_sections(self, sections: list[Tensor], payload: Payload) -> Tensor:
        exponent_bits, mantissa_bits, *_ = payload.params
        if (exponent_bits, mantissa_bits) != (self.exponent_bits, self.mantissa_bits):
            raise PayloadError(
                f"has codes of {exponent_bits} exponent bits and {mantissa_bits} mantissa bits; this compressor has"
                f" exponent_bits={self.exponent_bits}, mantissa_bits={self.mantissa_bits}"
            )
        dtype = torch.promote_types(payload.dtype, torch.float32)
        check_lengths(sections, dtype.itemsize, packed_nbytes(payload.numel, self._bits))
        scale = view_as(sections[0], dtype)
        # A magnitude near the largest of its dtype may have been rounded up beyond it.
        values = (self.magnitudes().to(scale) * scale).clamp_(max=torch.finfo(payload.dtype).max)
        values = torch.cat((values, -values)).to(payload.dtype)
        out = empty(payload.numel, payload.dtype, scale.device)
        for span, codes in unpack_spans(sections[1], self._bits, payload.numel):
            torch.index_select(values, 0, codes.int(), out=out[span])
        return out

    def code_bits(self, params: tuple[int, ...]) -> tuple[int, ...]:
        return (self._bits,)

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        return self._bits * prod(shape) + value_bits
