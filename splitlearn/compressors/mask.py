"""Mask-encoded sparsification (MS): the top values at full precision, and a code of a few bits for every other value.

How it works: with k = ⌊(1-ratio)·d⌋ and T the k-th largest value, the k top values are kept as they are and every
value gets a code of b bits: all ones, L = 2^b-1, for a top value, else how many steps of T/L it is worth. The decoder
puts the top values where the codes are all ones and code·T/L elsewhere, with T the smallest of the top values, so
that a value below the threshold comes back with an error of at most half a step (T when rounded down or beside T)
instead of as zero. A tensor with negative values is ranked by magnitude and has one more bit for the sign of each.
"""

from collections.abc import Iterator
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
from splitlearn.compressors.bits import pack_spans, packed_nbytes, unpack_spans
from splitlearn.compressors.blocks import at_least, empty, per_element, places, scratch, spans, split_at
from splitlearn.compressors.levels import span_codes
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
        sections = [rows.view(-1).index_select(0, positions)]
        if signed:
            sections.append(pack_spans(_negative(x.view(-1)), x.numel(), 1, x.device))
        sections.append(pack_spans(self._codes(rows, threshold, positions, signed), x.numel(), self.bits, x.device))
        return sections, (self.bits, SIGNED * signed + PER_SAMPLE * (self.scope == "sample"))

    def _codes(self, rows: Tensor, threshold: Tensor, positions: Tensor, signed: bool) -> Iterator[Tensor]:
        codes = span_codes(rows, threshold, self._top_code, self.rounding == "nearest", by_magnitude=signed)
        for here, tops in zip(codes, split_at(positions, rows.numel()), strict=True):
            yield here.index_fill_(0, tops, self._top_code)

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
        dtype = torch.promote_types(payload.dtype, torch.float32)
        step = values.view(num_rows, k).abs().amin(1, keepdim=True).to(dtype) / self._top_code
        out = empty(numel, payload.dtype, values.device)
        steps = scratch(numel, dtype, values.device)
        is_top = scratch(numel, torch.bool, values.device)
        tops = []
        for span, codes in unpack_spans(sections[-1], bits, numel):
            tops.append(places(at_least(codes, self._top_code, out=is_top)).add_(span.start))
            here = out[span] if payload.dtype == dtype else steps[: codes.numel()]
            out[span] = here.copy_(codes).mul_(per_element(step, numel // num_rows, span))
        positions = torch.cat(tops)
        if not bool((count_per_row(positions, num_rows, numel // num_rows) == k).all()):
            raise PayloadError(f"does not mark {k} top values in each of {num_rows} rows")
        if signed:
            for span, negative in unpack_spans(sections[1], 1, numel):
                torch.where(negative.view(torch.bool), -out[span], out[span], out=out[span])
        return out.index_copy_(0, positions, values)

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        numel, num_rows = prod(shape), self._num_rows(shape)
        return self.bits * numel + value_bits * num_rows * num_kept(self.ratio, numel // num_rows)


def _negative(x: Tensor) -> Iterator[Tensor]:
    """Span by span: 1 where a value is below 0, else 0."""
    mask = scratch(x.numel(), torch.bool, x.device)
    for span in spans(x.numel(), x.device):
        yield at_least(ranked(x[span], False), 0, out=mask).logical_not_().view(torch.uint8)
