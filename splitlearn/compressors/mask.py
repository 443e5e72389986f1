"""Mask-encoded sparsification (MS): the top values at full precision, and a code of a few bits for every other value.

How it works: with k = ⌊(1-ratio)·d⌋ and T the k-th largest value, the k top values are kept as they are and every
value gets a code of b bits: all ones, L = 2^b-1, for a top value, else how many steps of T/L it is worth. The decoder
puts the top values where the codes are all ones and code·T/L elsewhere, with T the smallest of the top values, so
that a value below the threshold comes back with an error of at most half a step (T when rounded down or beside T)
instead of as zero. A tensor with negative values is ranked by magnitude and has one more bit for the sign of each.

Beyond the paper: levels that are fitted to the map instead of even ones (L numbers a payload), top values of fewer
bits, thresholds for each sample, channel or row, and a budget in bits an element that ratio and width are chosen for.
"""

from collections.abc import Iterator
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from splitlearn.compressors.base import (
    Compressor,
    check_choice,
    check_finite,
    check_lengths,
    check_range,
    num_kept,
    offer,
    register,
)
from splitlearn.compressors.payload import Payload
from splitlearn.errors import PayloadError
from splitlearn.kernels.bits import pack_spans, packed_nbytes, unpack_spans
from splitlearn.kernels.blocks import at_least, empty, per_element, places, scratch, spans, split_at
from splitlearn.kernels.fitting import fitted_levels, plan, runs_of, sample_of
from splitlearn.kernels.levels import even_codes, fitted_codes
from splitlearn.kernels.scopes import SCOPES, layout
from splitlearn.kernels.sections import as_bytes, view_as
from splitlearn.kernels.threshold import count_per_row, largest, ranked
from splitlearn.kernels.topvalues import HEAD_NBYTES, VALUES, bits_of, pack_values, unpack_values

LEVELS = ("even", "fitted")
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers of a float's size, whose top bit is its sign


@register("ms")
class MaskSparsifier(Compressor):
    """Keeps the top values at full precision and encodes the others in a mask of `bits` bits.

    Sections: top values in the tensor's order (see topvalues.py); fitted levels, float32; for a signed tensor a sign
    bit an element; the codes. Parameters: bits; whether signed; scope; levels; values.

    Args:
        ratio: share of the values that is encoded in the mask alone, 0 ≤ ratio < 1.
        bits: width of a code, 1 to 8; with 1 the mask only says where the top values are.
        rounding: "nearest" as in the authors' program, or "floor" as in the paper; either way capped at 2^bits-2.
        scope: "batch" for one threshold over the tensor, as in the paper; "sample" or "channel" for one an index of
            dimension 0 or 1 (of (B, T, C), dimension 1 is the position); "row" for one a token of (B, T, C), all but
            the last dimension.
        levels: "even" as in the paper, or "fitted" to the map (Lloyd–Max; `rounding` does not matter then).
        values: top values in "full" precision as in the paper, as "bf16", "fp16" or "uint8".
        budget_bits: bits an element that a payload may take, before its header: chooses ratio and bits for each map so
            that the squared error is least. With `lossless` the size is estimated and may be a few percent off. None
            leaves ratio and bits as given.

    Source: "Mask-Encoded Sparsification", ECAI 2024, Sect. 4 and Fig. 1.
    """

    codec: ClassVar[int] = 4
    checks_itself: ClassVar[bool] = True
    ratio: float = 0.99
    bits: int = 2
    rounding: str = "nearest"
    scope: str = "batch"
    levels: str = "even"
    values: str = "full"
    budget_bits: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_range("ratio", self.ratio, 0, 1, high_open=True)
        check_range("bits", self.bits, 1, 8)
        check_choice("rounding", self.rounding, ("nearest", "floor"))
        check_choice("scope", self.scope, SCOPES)
        check_choice("levels", self.levels, LEVELS)
        check_choice("values", self.values, VALUES)
        if self.budget_bits is not None:
            check_range("budget_bits", self.budget_bits, 0.1, 64)

    # Encoding

    def to_sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        rows = self._rows(x)
        lowest = rows.amin().item()
        check_finite(x, lowest)  # NaN and -Inf
        signed = lowest < 0
        k, bits = self._choose(rows, signed)
        top_code = 2**bits - 1
        positions, threshold = largest(rows, k, by_magnitude=signed)
        tops = rows.view(-1).index_select(0, positions)
        check_finite(x, tops.amax().item())  # Inf, which is kept
        sections = pack_values(tops, self.values)
        if self.values != "full":  # the threshold that the receiver will find
            received = unpack_values([as_bytes(section) for section in sections], self.values, x.dtype)
            received = ranked(received, by_magnitude=True)
            threshold = received.view(-1, k).amin(1, keepdim=True)
        if self.levels == "fitted":
            divisor = torch.where(threshold > 0, threshold, 1)
            table = fitted_levels(rows, divisor, top_code, by_magnitude=signed).to(x.device)
            sections.append(table)
            codes = fitted_codes(rows, divisor, table, by_magnitude=signed)
        else:
            codes = even_codes(rows, threshold, top_code, self.rounding == "nearest", by_magnitude=signed)
        if signed:
            sections.append(pack_spans(_negative(rows.view(-1)), x.numel(), 1, x.device))
        marked = _mark(codes, positions, top_code, x.numel())
        sections.append(pack_spans(marked, x.numel(), bits, x.device))
        return sections, (bits, signed, SCOPES.index(self.scope), LEVELS.index(self.levels), VALUES.index(self.values))

    def _rows(self, x: Tensor) -> Tensor:
        """The tensor with a threshold a row: (rows, n), contiguous."""
        num_rows, _ = layout(x.shape, self.scope)
        if self.scope == "channel" and x.dim() > 1:
            x = x.transpose(0, 1).contiguous()
        return x.view(num_rows, -1)

    def _choose(self, rows: Tensor, signed: bool) -> tuple[int, int]:
        """How many top values of a row to keep, and the width of a code."""
        if self.budget_bits is None:
            return num_kept(self.ratio, rows.shape[1]), self.bits
        check_finite(rows)  # before anything is fitted to Inf
        value_bits = bits_of(self.values, 8 * rows.element_size())
        flat = rows.view(-1)
        runs = runs_of(flat, signed) if self.lossless == "zstd" else []
        chosen = plan(sample_of(flat, signed), runs, self.budget_bits - signed, value_bits)
        return max(1, int(chosen.kept * rows.shape[1])), chosen.bits

    # Decoding

    def from_sections(self, sections: list[Tensor], payload: Payload) -> Tensor:
        bits, signed, *_ = payload.params
        num_rows, _ = layout(payload.shape, self.scope)
        num_values = 2 if HEAD_NBYTES[self.values] else 1
        k = self._check(sections, payload, num_rows, num_values)
        top_code = 2**bits - 1

        values = unpack_values(sections[:num_values], self.values, payload.dtype)
        dtype = torch.promote_types(payload.dtype, torch.float32)
        threshold = values.view(num_rows, k).abs().amin(1, keepdim=True).to(dtype)
        table = view_as(sections[num_values], torch.float32).to(dtype) if self.levels == "fitted" else None
        row_length = payload.numel // num_rows
        out = empty(payload.numel, payload.dtype, values.device)
        steps = scratch(payload.numel, dtype, values.device)
        is_top = scratch(payload.numel, torch.bool, values.device)
        tops = []
        for span, codes in unpack_spans(sections[-1], bits, payload.numel):
            tops.append(places(at_least(codes, top_code, out=is_top)).add_(span.start))
            here = out[span] if payload.dtype == dtype else steps[: codes.numel()]
            if table is None:
                here.copy_(codes).mul_(per_element(threshold / top_code, row_length, span))
            else:
                # The code of the top values is beyond the table; what it looks up is overwritten.
                torch.index_select(table, 0, codes.clamp(max=top_code - 1).int(), out=here)
                here.mul_(per_element(threshold, row_length, span))
            out[span] = here
        positions = torch.cat(tops)
        if not bool((count_per_row(positions, num_rows, row_length) == k).all()):
            raise PayloadError(f"does not mark {k} top values in each of {num_rows} rows")
        if signed:
            for span, negative in unpack_spans(sections[-2], 1, payload.numel):
                words = out[span].view(WORDS[out.element_size()])
                words.bitwise_xor_(negative.to(words.dtype) << (8 * out.element_size() - 1))
            if self.values == "uint8":  # which come without signs
                negative = sections[-2].index_select(0, positions >> 3) >> (positions & 7) & 1
                values = torch.where(negative.bool(), -values, values)
        return self._unrowed(out.index_copy_(0, positions, values), payload.shape)

    def _check(self, sections: list[Tensor], payload: Payload, num_rows: int, num_values: int) -> int:
        """Checks parameters and lengths; returns the number of top values of a row."""
        bits, signed, *options = payload.params
        expected = [SCOPES.index(self.scope), LEVELS.index(self.levels), VALUES.index(self.values), 0]
        if options != expected or signed > 1 or not 1 <= bits <= 8 or (self.budget_bits is None and bits != self.bits):
            raise PayloadError(f"has parameters {payload.params}, which are not those of {self.label}")
        row_length = payload.numel // num_rows
        value_nbytes = bits_of(self.values, 8 * payload.dtype.itemsize) // 8
        if self.budget_bits is None:
            k = num_kept(self.ratio, row_length)
        else:
            k = sections[num_values - 1].numel() // (value_nbytes * num_rows) if len(sections) >= num_values else 0
        if not 1 <= k <= row_length:
            raise PayloadError(f"has {k} top values in a row of {row_length}")
        lengths = [HEAD_NBYTES[self.values]] if HEAD_NBYTES[self.values] else []
        lengths.append(num_rows * k * value_nbytes)
        lengths += [4 * (2**bits - 1)] if self.levels == "fitted" else []
        lengths += [packed_nbytes(payload.numel, 1)] if signed else []
        check_lengths(sections, *lengths, packed_nbytes(payload.numel, bits))
        return k

    def _unrowed(self, out: Tensor, shape: torch.Size) -> Tensor:
        if self.scope == "channel" and len(shape) > 1:
            return out.view(shape[1], shape[0], *shape[2:]).transpose(0, 1).contiguous()
        return out

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        numel, (num_rows, _) = prod(shape), layout(shape, self.scope)
        if self.budget_bits is not None:
            return self.budget_bits * numel
        top_bits = bits_of(self.values, value_bits) * num_rows * num_kept(self.ratio, numel // num_rows)
        return self.bits * numel + top_bits


# Chosen by scripts/compression_error.py: at most the error of the paper's setting, in 1.5 bits an element, not 2.32.
offer("ms_best", MaskSparsifier, levels="fitted", values="uint8", lossless="zstd")


def _mark(codes: Iterator[Tensor], positions: Tensor, top_code: int, numel: int) -> Iterator[Tensor]:
    """The codes, span by span, with the top values' code at their positions."""
    for here, tops in zip(codes, split_at(positions, numel), strict=True):
        yield here.index_fill_(0, tops, top_code)


def _negative(x: Tensor) -> Iterator[Tensor]:
    """Span by span: 1 where a value is below 0, else 0."""
    mask = scratch(x.numel(), torch.bool, x.device)
    for span in spans(x.numel(), x.device):
        yield at_least(ranked(x[span], False), 0, out=mask).logical_not_().view(torch.uint8)
