"""Mask-encoded sparsification (MS): the top values at full precision, and a code of a few bits for every other value.

How it works: with k = ⌊(1-ratio)·d⌋ and T the k-th largest value, the k top values are kept as they are and every
value gets a code of b bits: all ones, L = 2^b-1, for a top value, else how many steps of T/L it is worth. The decoder
puts the top values where the codes are all ones and code·T/L elsewhere, with T the smallest of the top values, so
that a value below the threshold comes back with an error of at most half a step (T when rounded down or beside T)
instead of as zero. A tensor with negative values is ranked by magnitude and has one more bit for the sign of each.
"""

from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from splitlearn.compressors.base import (
    Compressor,
    check_lengths,
    check_range,
    num_kept,
    register,
    view_as,
)
from splitlearn.compressors.bits import pack, packed_nbytes, unpack
from splitlearn.compressors.blocks import at_least, blocks, places, to_codes
from splitlearn.compressors.payload import Payload
from splitlearn.compressors.threshold import count_per_row, largest, ranked
from splitlearn.errors import PayloadError

SIGNED, PER_SAMPLE = 1, 2  # flags


@register("ms")
class MaskSparsifier(Compressor):
    """Keeps the top values at full precision and encodes the others in a mask of `bits` bits.

    Sections: top values in the tensor's dtype and order; for a signed tensor a sign bit for each element; the codes.

    Args:
        ratio: share of the values that is encoded in the mask alone, 0 ≤ ratio < 1.
        bits: width of a code, 1 to 8; with 1 the mask only says where the top values are.
        rounding: "nearest" as in the authors' program, or "floor" as in the paper; either way capped at 2^bits-2.
        scope: "batch" for one threshold over the tensor, as in the paper, or "sample" for one a sample (dimension 0).

    Source: "Mask-Encoded Sparsification", ECAI 2024, Sect. 4 and Fig. 1.
    """

    codec: ClassVar[int] = 4
    ratio: float = 0.99
    bits: int = 2
    rounding: str = "nearest"
    scope: str = "batch"

    def __post_init__(self):
        check_range("ratio", self.ratio, 0, 1, high_open=True)
        check_range("bits", self.bits, 1, 8)
        if self.rounding not in ("nearest", "floor"):
            raise ValueError(f"rounding={self.rounding} is unknown: choose nearest or floor")
        if self.scope not in ("batch", "sample"):
            raise ValueError(f"scope={self.scope} is unknown: choose batch or sample")

    @property
    def _top_code(self) -> int:
        return 2**self.bits - 1

    def _num_rows(self, shape: tuple[int, ...]) -> int:
        return shape[0] if self.scope == "sample" and len(shape) else 1

    def sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        rows = x.view(self._num_rows(x.shape), -1)
        signed = bool(rows.amin() < 0)
        positions, threshold = largest(rows, num_kept(self.ratio, rows.shape[1]), by_magnitude=signed)
        codes = self._codes(rows, threshold, signed).view(-1)
        codes.index_fill_(0, positions, self._top_code)
        sections = [rows.view(-1).index_select(0, positions)]
        if signed:
            sections.append(pack(_negative(rows), 1))
        sections.append(pack(codes, self.bits))
        return sections, (self.bits, SIGNED * signed + PER_SAMPLE * (self.scope == "sample"))

    def _codes(self, rows: Tensor, threshold: Tensor, signed: bool) -> Tensor:
        threshold = torch.where(threshold > 0, threshold, 1)  # T = 0: nothing else is above 0
        codes = torch.empty(rows.shape, dtype=torch.uint8, device=rows.device)
        for block in blocks(*rows.shape, rows.device):
            # Division by a tensor, as torch multiplies by the reciprocal of a number on some devices.
            steps = ranked(rows[block], signed).div(threshold[block[0]]).mul_(self._top_code)
            if self.rounding == "nearest":
                steps.add_(0.5)
            # All ones is for the top values: what rounds up to them, or ties with them, stays one step below.
            codes[block] = to_codes(steps.clamp_(max=self._top_code - 1))
        return codes

    def restore(self, sections: list[Tensor], payload: Payload) -> Tensor:
        bits, flags, _ = payload.params
        signed, per_sample = bool(flags & SIGNED), bool(flags & PER_SAMPLE)
        if bits != self.bits or per_sample != (self.scope == "sample"):
            raise PayloadError(
                f"has codes of {bits} bits, thresholds per {'sample' if per_sample else 'batch'};"
                f" this compressor has bits={self.bits}, scope={self.scope}"
            )
        numel, num_rows = payload.numel, self._num_rows(payload.shape)
        k = num_kept(self.ratio, numel // num_rows)
        lengths = [num_rows * k * payload.dtype.itemsize, packed_nbytes(numel, bits)]
        if signed:
            lengths.insert(1, packed_nbytes(numel, 1))
        check_lengths(sections, *lengths)

        values = view_as(sections[0], payload.dtype)
        codes = unpack(sections[-1], bits, numel).view(num_rows, -1)
        negative = unpack(sections[1], 1, numel).view(codes.shape) if signed else None
        dtype = torch.promote_types(payload.dtype, torch.float32)
        step = values.view(num_rows, k).abs().amin(1, keepdim=True).to(dtype) / self._top_code
        out = torch.empty(codes.shape, dtype=payload.dtype, device=codes.device)
        tops = []
        for block in blocks(*codes.shape, codes.device):
            here = codes[block]
            tops.append(places(at_least(here, self._top_code)).add_(block[0].start * codes.shape[1] + block[1].start))
            decoded = torch.mul(here.to(dtype), step[block[0]], out=out[block])
            if signed:
                torch.where(negative[block].view(torch.bool), -decoded, decoded, out=decoded)
        positions = torch.cat(tops)
        if not bool((count_per_row(positions, *codes.shape) == k).all()):
            raise PayloadError(f"does not mark {k} top values in each of {num_rows} rows")
        return out.view(-1).index_copy_(0, positions, values)

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        numel, num_rows = prod(shape), self._num_rows(shape)
        return self.bits * numel + value_bits * num_rows * num_kept(self.ratio, numel // num_rows)


def _negative(rows: Tensor) -> Tensor:
    """1 where a value is below 0, else 0: (numel,) uint8."""
    negative = torch.empty(rows.shape, dtype=torch.bool, device=rows.device)
    for block in blocks(*rows.shape, rows.device):
        torch.logical_not(at_least(ranked(rows[block], False), 0), out=negative[block])
    return negative.view(torch.uint8).view(-1)
