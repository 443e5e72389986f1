"""Uniform quantisation (QU)."""

import dataclasses
from collections.abc import Iterator
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from splitlearn.compressors.base import Compressor, check_choice, check_lengths, check_range, register
from splitlearn.compressors.payload import Payload
from splitlearn.kernels.bits import pack_spans, packed_nbytes, unpack_spans
from splitlearn.kernels.blocks import empty, scratch, spans
from splitlearn.kernels.scopes import SCOPES, check_bits_and_scope, ends, layout, per_value
from splitlearn.kernels.sections import view_as


@register("qu")
class UniformQuantizer(Compressor):
    """Rounds every value to one of 2^bits even levels between the minimum and the maximum.

    Sections: minimum and maximum (float32; float64 for float64), or all minima and then all maxima; codes of `bits`
    bits.

    Args:
        bits: width of a code, 1 to 8.
        scope: "batch" for one minimum and maximum, "sample" or "channel" for those of each (dimension 0 or 1; of
            (B, T, C), dimension 1 is the position), "row" for those of each token of (B, T, C), all but the last
            dimension.
        rounding: "nearest", or "stochastic": up or down at random, so that the mean over the draws is the value.
            Evaluation rounds to the nearest.

    Source: baseline QU of the MS paper (ECAI 2024); stochastic rounding as in QSGD, NeurIPS 2017.
    """

    codec: ClassVar[int] = 1
    bits: int = 3
    scope: str = "batch"
    rounding: str = "nearest"

    def __post_init__(self):
        super().__post_init__()
        check_range("bits", self.bits, 1, 8)
        check_choice("scope", self.scope, SCOPES)
        check_choice("rounding", self.rounding, ("nearest", "stochastic"))
        # On the CPU for every device, so that the draws do not depend on it.
        self._generator = torch.Generator()

    def seed(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    def for_evaluation(self) -> Compressor:
        return super().for_evaluation() if self.rounding == "nearest" else dataclasses.replace(self, rounding="nearest")

    def to_sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        low_high = ends(x, self.scope).to(torch.promote_types(x.dtype, torch.float32))
        if x.dtype == torch.float64:  # whose range must be a number too
            limit = torch.finfo(x.dtype).max / 4
            low_high.clamp_(-limit, limit)
        codes = self._codes(x, _widened(low_high))
        return [low_high, pack_spans(codes, x.numel(), self.bits, x.device)], (self.bits, SCOPES.index(self.scope))

    def _codes(self, x: Tensor, low_high: Tensor) -> Iterator[Tensor]:
        # A constant map has a step of 0: any positive divisor gives it the code 0.
        step = _step(low_high, self.bits)
        step = torch.where(step > 0, step, 1)
        _, row_length = layout(x.shape, self.scope)
        x = x.view(-1)
        steps = scratch(x.numel(), low_high.dtype, x.device)
        whole_steps = scratch(x.numel(), torch.int32, x.device)
        for span in spans(x.numel(), x.device):
            size = span.stop - span.start
            here = steps[:size].copy_(x[span])
            here.sub_(per_value(low_high[0], row_length, span)).div_(per_value(step, row_length, span))
            here = self._rounded(here).clamp_(0, 2**self.bits - 1)
            yield whole_steps[:size].copy_(here).to(torch.uint8)  # fast, where straight to uint8 is not

    def _rounded(self, steps: Tensor) -> Tensor:
        if self.rounding == "nearest":
            return steps.round_()
        # ⌊v + u⌋ by its parts, as the sum would be rounded: a value on a level stays there.
        draws = torch.rand(steps.numel(), generator=self._generator, dtype=steps.dtype).to(steps.device)
        down = steps.floor()
        return down.add_(draws < steps.sub_(down))

    def from_sections(self, sections: list[Tensor], payload: Payload) -> Tensor:
        check_bits_and_scope(payload.params, self.bits, self.scope, "ranges")
        dtype = torch.promote_types(payload.dtype, torch.float32)
        num_groups, row_length = layout(payload.shape, self.scope)
        check_lengths(sections, 2 * num_groups * dtype.itemsize, packed_nbytes(payload.numel, self.bits))
        low_high = _widened(view_as(sections[0], dtype).view(2, num_groups))
        step = _step(low_high, self.bits)
        # The level of the maximum may be rounded up beyond the largest number that there is.
        limit = torch.finfo(payload.dtype).max
        near_limit = not (2 * low_high).to(dtype).isfinite().all()
        out = empty(payload.numel, payload.dtype, low_high.device)
        steps = scratch(payload.numel, low_high.dtype, low_high.device)
        for span, codes in unpack_spans(sections[1], self.bits, payload.numel):
            here = steps[: codes.numel()].copy_(codes)
            here.mul_(per_value(step, row_length, span)).add_(per_value(low_high[0], row_length, span))
            out[span] = here.clamp_(-limit, limit) if near_limit else here
        return out

    def code_bits(self, params: tuple[int, ...]) -> tuple[int, ...]:
        return (self.bits,)

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        # The paper counts the codes alone; a minimum and maximum each for many groups are no longer negligible.
        num_ends = 0 if self.scope == "batch" else 2 * layout(shape, self.scope)[0]
        return self.bits * prod(shape) + value_bits * num_ends


def _step(low_high: Tensor, bits: int) -> Tensor:
    levels = 2**bits - 1
    return low_high[1] / levels - low_high[0] / levels


def _widened(low_high: Tensor) -> Tensor:
    """The ends to compute with: in double precision where single precision does not hold the range."""
    return low_high if (low_high[1] - low_high[0]).isfinite().all() else low_high.double()
