"""Uniform quantisation with a dead zone and an entropy coder (UQ)."""

from __future__ import annotations

from math import ceil, inf, prod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from splitlearn.compressors.base import Compressor, check_range, register, total_nbytes
from splitlearn.compressors.payload import Payload
from splitlearn.errors import PayloadError
from splitlearn.kernels import coded, outliers, steps
from splitlearn.kernels.sections import view_as

TRIAL_NUMEL = 1 << 17  # what the step is looked for on, before it is mended on all
SMALL = 128  # values that are not worth a table
MAX_TRIES = 24
CLOSE = 0.97  # of the target, from below, is near enough
MOST_A_BYTE = 1 << 10  # elements that a byte of a payload may stand for, so that what is decoded has a bound
RAW, CODED = 0, 1
MOST_FOR_ROWS = 0.5  # of the bits that there are, for rows that go apart
HEAD_NBYTES = 16  # of scale and step
FINEST, COARSEST = 1e-12, 2.0  # steps, as a share of the largest magnitude; the coarsest leaves nothing


@register("uq")
class EntropyCodedQuantizer(Compressor):
    """Rounds every value to a multiple of a step, most to zero at low rates, and codes those in what they need.

    The step is what gives the target: `bits` an element or a relative `error`. No state, any shape, both directions. A
    channel (dimension 1; the last of three) codes with those of like spread (see kernels/coded.py). A tensor that this
    would not make smaller is sent as it is, as is one of fewer than 128 values.

    Sections: scale and step (float64); values beyond 127 steps, as they are; words of rANS (uint16); classes of the
    channels; tables; zeros where the payload would stand for more than 1,024 elements a byte; where (B, T, C) has rows
    that are larger than the others by far (see kernels/outliers.py), their indices (int32) and values (bfloat16).

    Args:
        bits: an element, of all sections; a payload takes at most that, and at least .97 of it where the tensor has so
            much to say. None where `error` is given.
        error: ‖decoded - x‖₂ / ‖x‖₂, at most, without the rows that go apart. None where `bits` is given.

    Source: Sullivan, "Efficient scalar quantization of exponential and Laplacian random variables", IEEE Transactions
        on Information Theory, 1996, for the dead zone; the step is chosen anew for each tensor.
    """

    codec: ClassVar[int] = 7
    meets_target: ClassVar[bool] = True
    bits: float | None = 1.5
    error: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if (self.bits is None) == (self.error is None):
            raise ValueError(f"bits={self.bits} and error={self.error}: give one of the two, and null for the other")
        if self.bits is not None:
            check_range("bits", self.bits, 0.05, 6)
        else:
            check_range("error", self.error, 0.002, 0.95)

    def to_sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        if x.numel() < SMALL:
            return [x.reshape(-1)], (RAW,)
        rows = outliers.find(x)
        if self.bits is not None and outliers.num_bits(rows, x.shape) > MOST_FOR_ROWS * self.bits * x.numel():
            rows = rows[:0]
        rest, apart = outliers.split(x, rows) if rows.numel() else (x, [])
        matrix = by_channel(rest)
        scale = float(torch.stack(matrix.aminmax()).abs().max()) or 1.0
        wide = torch.promote_types(x.dtype, torch.float32)
        # By a tensor: CUDA would multiply by the reciprocal of a number.
        values = (matrix.to(wide) / torch.tensor(scale, dtype=wide, device=x.device)).float()
        bits = None if self.bits is None else self.bits - outliers.num_bits(rows, x.shape) / x.numel()
        sections, params = self._at_target(values, scale, matrix, bits)
        sections += apart
        if total_nbytes(sections) >= x.numel() * x.itemsize:
            return [x.reshape(-1)], (RAW,)
        return sections, params

    def _at_target(
        self, values: Tensor, scale: float, matrix: Tensor, bits: float | None
    ) -> tuple[list[Tensor], tuple[int, ...]]:
        """The coarsest step, of those tried, that meets the target; by halving on a part, and then on all values.

        `bits`: what there is for an element. None where the target is an error.
        """
        x_bits = 8 * matrix.itemsize
        width = max(1, TRIAL_NUMEL // values.shape[0])
        few = values[:, :: max(1, values.shape[1] // width)].contiguous()
        low, high = FINEST, COARSEST
        for _ in range(MAX_TRIES):
            step = (low * high) ** 0.5
            ratio = self._to_target(few, step, x_bits, bits)
            low, high = (step, high) if (ratio > 1) == (bits is not None) else (low, step)
            if CLOSE <= ratio <= 1 or high < 1.001 * low:
                break
        return self._met_on_all(values, step, scale, matrix, bits)

    def _to_target(self, values: Tensor, step: float, x_bits: int, bits: float | None) -> float:
        """What a step takes or costs, as a share of the target, nearly. `x_bits`: of a value that is sent as it is."""
        if bits is not None:
            symbols = steps.quantize(values, step)
            taken = 8 * HEAD_NBYTES + coded.cost_bits(symbols)
            if step * coded.LARGEST < 1:  # there may be some
                taken += x_bits * np.count_nonzero(symbols == coded.ESCAPE)
            return taken / (bits * values.numel())
        norm = float(values.norm())
        return steps.shifts(values, step).squared_error ** 0.5 / norm / self.error if norm else 0.0

    def _met_on_all(
        self, values: Tensor, step: float, scale: float, matrix: Tensor, bits: float | None
    ) -> tuple[list[Tensor], tuple[int, ...]]:
        x_bits, low, high, best = 8 * matrix.itemsize, FINEST, COARSEST, None
        for _ in range(MAX_TRIES):
            ratio = self._to_target(values, step, x_bits, bits)
            if ratio <= 1:
                best = step
            if CLOSE <= ratio <= 1 or high < 1.001 * low:
                break
            if (ratio > 1) == (bits is not None):
                low = step
            else:
                high = step
            if bits is not None:  # a bit less, or a part of it, for a doubling
                step *= 2 ** (1.2 * (ratio - 0.985) * max(bits, 0.5))
            else:
                step *= 0.985 / max(ratio, 0.5)
            if not low < step < high:
                step = (low * high) ** 0.5
        step = best or (COARSEST if bits is not None else FINEST)
        while True:
            sections, params = self._sections(values, step, scale, matrix)
            if bits is None or step >= COARSEST or 8 * total_nbytes(sections) <= bits * values.numel():
                return sections, params
            step = min(1.01 * step, COARSEST)

    def _sections(self, values: Tensor, step: float, scale: float, matrix: Tensor):
        symbols, found = steps.quantize(values, step), steps.shifts(values, step)
        packed = coded.encode(symbols)
        escaped = torch.from_numpy(symbols == coded.ESCAPE)
        whole = matrix.cpu()[escaped] if escaped.any() else matrix.new_empty(0, device="cpu")
        parts = [torch.from_numpy(np.array(part)) for part in (packed.words, packed.classes, packed.tables)]
        sections = [torch.tensor([scale, step], dtype=torch.float64), whole, *parts]
        padding = torch.zeros(padding_nbytes(values.numel(), total_nbytes(sections)), dtype=torch.uint8)
        return [*sections, padding], (CODED, found.near & 255, found.far & 255)

    def from_sections(self, sections: list[Tensor], payload: Payload) -> Tensor:
        kind, numel = payload.params[0], payload.numel
        lengths = [section.numel() for section in sections]
        if kind == RAW and lengths == [numel * payload.dtype.itemsize]:
            return view_as(sections[0], payload.dtype).clone()
        num_rows, num_columns = matrix_shape(payload.shape)
        if (
            kind != CODED
            or len(sections) not in (6, 8)
            or lengths[0] != 16
            or lengths[3] != coded.classes_nbytes(num_rows)
        ):
            raise PayloadError("has sections that do not fit its shape")
        if lengths[5] != padding_nbytes(numel, sum(lengths[:5])):
            raise PayloadError("stands for more elements than its bytes allow")
        scale, step = view_as(sections[0], torch.float64).tolist()
        if not (0 < scale < inf and FINEST / 2 <= step <= 2 * COARSEST):
            raise PayloadError(f"has the impossible scale {scale} or step {step}")
        near, far = ((byte ^ 128) - 128 for byte in payload.params[1:3])
        whole, words, classes, tables = view_as(sections[1], payload.dtype), *(s.cpu() for s in sections[2:5])
        parts = coded.Coded(view_as(words, torch.uint16).numpy(), classes.numpy(), tables.numpy())
        symbols = coded.decode(parts, (num_rows, num_columns))
        limit = torch.finfo(payload.dtype).max
        levels = (steps.levels(step, near, far) * scale).clamp_(-limit, limit).nan_to_num_(0).to(payload.dtype)
        out = steps.restore(symbols, levels)
        escaped = symbols == coded.ESCAPE
        if np.count_nonzero(escaped) != whole.numel():
            raise PayloadError("has another number of whole values than its codes say")
        if whole.numel():
            out[torch.from_numpy(escaped)] = whole.cpu()
        out = from_channels(out.to(sections[0].device), payload.shape)
        if len(sections) == 8:
            outliers.restore(out, sections[6:], payload.shape)
        return out

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        return (self.bits if self.bits is not None else value_bits) * prod(shape)


def channel_axis(shape: tuple[int, ...]) -> int:
    """The dimension of the channels: 1, or the last one of (B, T, C)."""
    return 2 if len(shape) == 3 else 1


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Channels, and values of each; in one dimension all are one channel's."""
    if len(shape) < 2:
        return 1, prod(shape)
    num_channels = shape[channel_axis(shape)]
    return num_channels, prod(shape) // num_channels


def by_channel(x: Tensor) -> Tensor:
    """(channels, values of each) of a tensor, contiguous."""
    if x.dim() < 2:
        return x.reshape(1, -1)
    return x.movedim(channel_axis(x.shape), 0).reshape(matrix_shape(x.shape))


def from_channels(matrix: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of `by_channel`: contiguous, of one dimension."""
    if len(shape) < 2:
        return matrix.reshape(-1)
    axis = channel_axis(shape)
    moved = torch.Size((shape[axis], *shape[:axis], *shape[axis + 1 :]))
    return matrix.view(moved).movedim(0, axis).reshape(-1)


def padding_nbytes(numel: int, nbytes: int) -> int:
    return max(0, ceil(numel / MOST_A_BYTE) - nbytes)
