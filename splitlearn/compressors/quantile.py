"""Normal quantisation (NQ): the levels lie where bell-shaped values do.

How it works: 2^b levels at evenly spaced probabilities of the normal distribution are used about equally often by
values of that distribution, close together around zero and far apart in the tails. As in NF4 the outermost levels are
scaled to ±1, which stand for the largest magnitude, and zero is a level, so that what a ReLU cut off stays zero: of the
2^b levels 2^(b-1) are positive and one less is negative.
"""

from collections.abc import Iterator
from math import prod
from statistics import NormalDist
from typing import ClassVar

import torch
from torch import Tensor

from splitlearn.compressors.base import Compressor, check_choice, check_lengths, check_range, register
from splitlearn.compressors.payload import Payload
from splitlearn.kernels.bits import pack_spans, packed_nbytes, unpack_spans
from splitlearn.kernels.blocks import empty, scratch, spans
from splitlearn.kernels.scopes import SCOPES, check_bits_and_scope, largest_magnitudes, layout, per_value
from splitlearn.kernels.sections import view_as


@register("nq")
class NormalQuantizer(Compressor):
    """Rounds every value to the nearest of 2^bits quantiles of a normal distribution, scaled to the largest magnitude.

    Sections: the largest magnitude (float32; float64 for float64), or that of each sample or row; codes of `bits` bits.

    Args:
        bits: width of a code, 1 to 8; with 1 the levels are plus and minus the largest magnitude.
        scope: "batch" for one scale, "sample" for one a sample (dimension 0), "row" for one a token of (B, T, C), all
            but the last dimension.

    Source: "QLoRA", NeurIPS 2023, Sect. 3, 4-bit NormalFloat (NF4), here for other widths and without its blocks.
    """

    codec: ClassVar[int] = 5
    bits: int = 4
    scope: str = "batch"

    def __post_init__(self):
        super().__post_init__()
        check_range("bits", self.bits, 1, 8)
        check_choice("scope", self.scope, ("batch", "sample", "row"))

    def to_sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        scales = largest_magnitudes(x, self.scope).to(torch.promote_types(x.dtype, torch.float32))
        codes = pack_spans(self._codes(x, scales), x.numel(), self.bits, x.device)
        return [scales, codes], (self.bits, SCOPES.index(self.scope))

    def _codes(self, x: Tensor, scales: Tensor) -> Iterator[Tensor]:
        scales = torch.where(scales > 0, scales, 1)
        _, row_length = layout(x.shape, self.scope)
        levels = normal_levels(self.bits).to(x.device)
        middles = ((levels[1:] + levels[:-1]) / 2).to(scales.dtype)
        x = x.view(-1)
        shares = scratch(x.numel(), scales.dtype, x.device)
        codes = scratch(x.numel(), torch.int32, x.device)
        for span in spans(x.numel(), x.device):
            size = span.stop - span.start
            here = shares[:size].copy_(x[span]).div_(per_value(scales, row_length, span))
            yield torch.bucketize(here, middles, out_int32=True, out=codes[:size]).to(torch.uint8)

    def from_sections(self, sections: list[Tensor], payload: Payload) -> Tensor:
        check_bits_and_scope(payload.params, self.bits, self.scope, "scales")
        dtype = torch.promote_types(payload.dtype, torch.float32)
        num_groups, row_length = layout(payload.shape, self.scope)
        check_lengths(sections, num_groups * dtype.itemsize, packed_nbytes(payload.numel, self.bits))
        scales = view_as(sections[0], dtype)
        levels = normal_levels(self.bits).to(scales)
        out = empty(payload.numel, payload.dtype, scales.device)
        for span, codes in unpack_spans(sections[1], self.bits, payload.numel):
            out[span] = levels.index_select(0, codes.int()).mul_(per_value(scales, row_length, span))
        return out

    def code_bits(self, params: tuple[int, ...]) -> tuple[int, ...]:
        return (self.bits,)

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        return self.bits * prod(shape) + value_bits * layout(shape, self.scope)[0]


def normal_levels(bits: int) -> Tensor:
    """(2^bits,) float64, ascending from -1 to 1."""
    if bits == 1:
        return torch.tensor([-1.0, 1.0], dtype=torch.float64)
    num = 2**bits
    # The infinite quantiles of 0 and 1 are avoided by half a step, the mean of both halves' as in NF4.
    outermost = 1 - (1 / (num - 1) + 1 / num) / 4
    positive, negative = _quantiles(outermost, num // 2), _quantiles(outermost, num // 2 - 1)
    return torch.cat((-negative.flip(0), torch.zeros(1, dtype=torch.float64), positive))


def _quantiles(outermost: float, num: int) -> Tensor:
    """`num` quantiles at even steps of probability from above 1/2 up to `outermost`, divided by the last."""
    normal = NormalDist()
    quantiles = [normal.inv_cdf(0.5 + (outermost - 0.5) * (i + 1) / num) for i in range(num)]
    return torch.tensor(quantiles, dtype=torch.float64) / quantiles[-1]
