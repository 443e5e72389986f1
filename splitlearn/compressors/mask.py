"""Mask-encoded sparsification (MS): the top values at full precision, and a code of a few bits for every other value.

How it works: with k = ⌊(1-ratio)·d⌋ and T the k-th largest value, the k top values are kept as they are and every
value gets a code of b bits: all ones, L = 2^b-1, for a top value, else how many steps of T/L it is worth. The decoder
puts the top values where the codes are all ones and code·T/L elsewhere, with T the smallest of the top values, so
that a value below the threshold comes back with an error of at most half a step (T when rounded down or beside T)
instead of as zero. A tensor with negative values is ranked by magnitude and has one more bit for the sign of each.

Beyond the paper: levels that are fitted to the map instead of even ones (L numbers a payload), top values of fewer
bits, thresholds for each sample, channel or row, and a budget in bits an element that ratio and width are chosen for.
"""

import warnings
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
from splitlearn.kernels.bits import packed_nbytes, unpack_spans
from splitlearn.kernels.blocks import at_least, empty, per_element, places, scratch
from splitlearn.kernels.budget import About, Plan, meet
from splitlearn.kernels.fitting import fitted_levels
from splitlearn.kernels.levels import even_codes, filled, fitted_codes, marked
from splitlearn.kernels.scopes import SCOPES, layout
from splitlearn.kernels.sections import as_bytes, total_nbytes, view_as
from splitlearn.kernels.signs import EACH, NONZERO, UNSIGNED, SignReader, pack_with_signs
from splitlearn.kernels.threshold import count_per_row, largest, ranked
from splitlearn.kernels.topvalues import FINER, HEAD_NBYTES, VALUES, bits_of, pack_values, unpack_values

LEVELS = ("even", "fitted")


@register("ms")
class MaskSparsifier(Compressor):
    """Keeps the top values at full precision and encodes the others in a mask of `bits` bits.

    Sections: top values in the tensor's order (see topvalues.py); fitted levels, float32; for a signed tensor a sign
    bit an element, or one for each code that is not 0 (with a budget, and with even levels and lossless=ans); the
    codes. Parameters: bits; which signs; scope; levels; values.

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
            that the squared error is least, by encoding it a few times. A payload takes no more, and nearly that where
            more would lower the error; only a tensor that is too small for it takes the least there is, with a
            warning. None leaves ratio and bits as given.

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
            if self.lossless == "none" and self.budget_bits <= 1:
                raise ValueError(
                    f"budget_bits={self.budget_bits} is too little for lossless=none, where a code alone takes a bit:"
                    " choose more than 1, or lossless=zstd or ans"
                )

    # Encoding

    def to_sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        rows, signs = self._rows(x)
        plan = Plan(1 - self.ratio, 2**self.bits - 1, self.values)
        return self._sections(rows, signs, num_kept(self.ratio, rows.shape[1]), plan)

    def to_wire(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...], int]:
        if self.budget_bits is None:
            return super().to_wire(x)
        rows, signs = self._rows(x)
        check_finite(rows)  # before anything is fitted to Inf
        about = About(signs != UNSIGNED, self.levels == "fitted", self.values, self.lossless)

        def make(k: int, plan: Plan):
            made = self.shrunk(*self._sections(rows, signs, k, plan), x.shape)
            return made, 8 * total_nbytes(made[0]) / x.numel()

        made, taken = meet(rows, about, self.budget_bits, make)
        if taken > self.budget_bits:
            warnings.warn(
                f"budget_bits={self.budget_bits} is too little for {x.numel()} values: they take {taken:.2f} each",
                stacklevel=2,
            )
        return made

    def _sections(self, rows: Tensor, signs: int, k: int, plan: Plan) -> tuple[list[Tensor], tuple[int, ...]]:
        """Those of a tensor with `k` top values of each row."""
        signed, bits, top_code = signs != UNSIGNED, plan.bits, 2**plan.bits - 1
        positions, threshold = largest(rows, k, by_magnitude=signed)
        tops = rows.view(-1).index_select(0, positions)
        check_finite(rows, tops.amax().item())  # Inf, which is kept
        sections = pack_values(tops, plan.values)
        if plan.values != "full":  # the threshold that the receiver will find
            received = unpack_values([as_bytes(section) for section in sections], plan.values, rows.dtype)
            received = ranked(received, by_magnitude=True)
            threshold = received.view(-1, k).amin(1, keepdim=True)
        if self.levels == "fitted":
            divisor = torch.where(threshold > 0, threshold, 1)
            table = fitted_levels(rows, divisor, plan.levels, signed, from_zero=signs == NONZERO)
            table = filled(table, top_code).to(rows.device)
            sections.append(table)
            codes = fitted_codes(rows, divisor, table, by_magnitude=signed)
        else:
            codes = even_codes(rows, threshold, top_code, self.rounding == "nearest", by_magnitude=signed)
        codes = marked(codes, positions, top_code, rows.numel())
        sections += pack_with_signs(codes, bits, rows.view(-1), signs)
        options = SCOPES.index(self.scope), LEVELS.index(self.levels), VALUES.index(plan.values)
        return sections, (bits, signs, *options)

    def _rows(self, x: Tensor) -> tuple[Tensor, int]:
        """The tensor with a threshold a row, (rows, n), contiguous, and which signs it needs."""
        lowest = x.amin().item()
        check_finite(x, lowest)  # NaN and -Inf
        num_rows, _ = layout(x.shape, self.scope)
        if self.scope == "channel" and x.dim() > 1:
            x = x.transpose(0, 1).contiguous()
        # The paper has no signs. They are left out beside codes for zero where every byte counts.
        fewer = self.budget_bits is not None or (self.lossless == "ans" and self.levels == "even")
        return x.view(num_rows, -1), UNSIGNED if lowest >= 0 else NONZERO if fewer else EACH

    # Decoding

    def from_sections(self, sections: list[Tensor], payload: Payload) -> Tensor:
        bits, signed, *_ = payload.params
        num_rows, _ = layout(payload.shape, self.scope)
        kind, num_values, k = self._check(sections, payload, num_rows)
        top_code = 2**bits - 1

        values = unpack_values(sections[:num_values], kind, payload.dtype)
        dtype = torch.promote_types(payload.dtype, torch.float32)
        threshold = values.view(num_rows, k).abs().amin(1, keepdim=True).to(dtype)
        table = view_as(sections[num_values], torch.float32).to(dtype) if self.levels == "fitted" else None
        row_length = payload.numel // num_rows
        out = empty(payload.numel, payload.dtype, values.device)
        steps = scratch(payload.numel, dtype, values.device)
        is_top = scratch(payload.numel, torch.bool, values.device)
        tops, signs = [], SignReader(sections[-2], signed) if signed else None
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
            if signs:
                signs.put(out[span], span, codes)
        positions = torch.cat(tops)
        if not bool((count_per_row(positions, num_rows, row_length) == k).all()):
            raise PayloadError(f"does not mark {k} top values in each of {num_rows} rows")
        if signs:
            signs.check_all_taken()
            if kind == "uint8":  # which come without signs
                values = torch.where(out.index_select(0, positions).signbit(), -values, values)
        return self._unrowed(out.index_copy_(0, positions, values), payload.shape)

    def _check(self, sections: list[Tensor], payload: Payload, num_rows: int) -> tuple[str, int, int]:
        """Checks parameters and lengths; returns the kind of the top values, their sections, and those of a row."""
        bits, signed, scope, levels, values, none = payload.params
        free = self.budget_bits is not None  # to choose
        kinds = [VALUES.index(one) for one in (FINER[self.values] if free else (self.values,))]
        fits = (scope, levels, none) == (SCOPES.index(self.scope), LEVELS.index(self.levels), 0) and values in kinds
        if not fits or signed > NONZERO or not 1 <= bits <= 8 or not (free or bits == self.bits):
            raise PayloadError(f"has parameters {payload.params}, which are not those of {self.label}")
        kind = VALUES[values]
        num_values = 2 if HEAD_NBYTES[kind] else 1
        row_length = payload.numel // num_rows
        value_nbytes = bits_of(kind, 8 * payload.dtype.itemsize) // 8
        if self.budget_bits is None:
            k = num_kept(self.ratio, row_length)
        else:
            k = sections[num_values - 1].numel() // (value_nbytes * num_rows) if len(sections) >= num_values else 0
        if not 1 <= k <= row_length:
            raise PayloadError(f"has {k} top values in a row of {row_length}")
        lengths = [HEAD_NBYTES[kind]] if HEAD_NBYTES[kind] else []
        lengths.append(num_rows * k * value_nbytes)
        lengths += [4 * (2**bits - 1)] if self.levels == "fitted" else []
        most_signs = packed_nbytes(payload.numel, 1)
        if signed:  # as many as there are codes that are not 0, which is seen when they are read
            found = sections[-2].numel() if len(sections) > 1 else 0
            lengths.append(min(found, most_signs) if signed == NONZERO else most_signs)
        check_lengths(sections, *lengths, packed_nbytes(payload.numel, bits))
        return kind, num_values, k

    def _unrowed(self, out: Tensor, shape: torch.Size) -> Tensor:
        if self.scope == "channel" and len(shape) > 1:
            return out.view(shape[1], shape[0], *shape[2:]).transpose(0, 1).contiguous()
        return out

    def code_bits(self, params: tuple[int, ...]) -> tuple[int, ...]:
        bits, signed, *_ = params
        return (1, bits) if signed == EACH else (bits,)

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        numel, (num_rows, _) = prod(shape), layout(shape, self.scope)
        if self.budget_bits is not None:
            return self.budget_bits * numel
        top_bits = bits_of(self.values, value_bits) * num_rows * num_kept(self.ratio, numel // num_rows)
        return self.bits * numel + top_bits


# Chosen by scripts/benchmarks/compression_error.py: at most the error of the paper's setting, in 1.5 bits an element,
# not 2.32.
offer("ms_best", MaskSparsifier, levels="fitted", values="uint8", lossless="zstd")
