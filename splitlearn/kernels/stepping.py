"""Values as whole steps of a size that meets a target, entropy-coded: what uq, klt and linked send.

How it works: the size is looked for on a part of the values, and from there on all of them. A try takes no encoding:
the symbols' entropy says how many bits they take (coded.py), and sums what error they leave (steps.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from splitlearn.errors import PayloadError
from splitlearn.kernels import coded, steps
from splitlearn.kernels.sections import total_nbytes, view_as

TRIAL_NUMEL = 1 << 17
MAX_TRIES = 24
CLOSE = 0.97  # of the target, from below, is near enough
AIM = 0.985
FINEST, COARSEST = 1e-12, 2.0  # steps, where the largest magnitude is 1; the coarsest leaves nothing
HEAD_NBYTES = 16  # scale and step, float64
LEAST_BITS = 64  # for symbols, which the largest values fit in
NUM_SECTIONS = 5
Whole = Callable[[], Tensor] | None


class Try:
    """Values as whole steps of a size. What there is to know of them is found once, when it is asked for.

    Args:
        values: (R, F, S, m) float32, contiguous, on any device.
        step: in the values' units.
    """

    def __init__(self, values: Tensor, step: float):
        self.values, self.step = values, step

    @cached_property
    def symbols(self) -> np.ndarray:
        return steps.quantize(self.values, self.step)

    @cached_property
    def counted(self) -> coded.Counted:
        return coded.counted(self.symbols)

    @cached_property
    def shifts(self) -> steps.Shifts:
        return steps.shifts(self.values, self.step)


@dataclass(frozen=True)
class Target:
    """
    Attributes:
        bits: that all sections may take; None where the error is given.
        squared_error: that rounding may leave, of values whose largest magnitude is about 1.
        whole_bits: of a value that no symbol tells, and that is sent as it is.
    """

    bits: float | None = None
    squared_error: float | None = None
    whole_bits: int = 32

    def share(self, tried: Try) -> float:
        """What a step takes of the target, nearly; over 1 is too much."""
        if self.bits is None:
            error = tried.shifts.squared_error
            return (error / self.squared_error) ** 0.5 if self.squared_error > 0 else math.inf if error else 0.0
        bits = 8 * HEAD_NBYTES + tried.counted.cost_bits + self.whole_bits * tried.counted.num_escaped
        return bits / self.bits if self.bits > 0 else math.inf

    def beside(self, shape: coded.Shape, more_nbytes: int = 0) -> Target:
        """The target for values of this shape, beside `more_nbytes`.

        What there is whatever the values are takes at most half of the bits. Where it is more, as of a small tensor,
        there are more bits: for symbols as many again, but not more than there were in all.
        """
        if self.bits is None:
            return self
        fixed = 8 * (HEAD_NBYTES + more_nbytes) + coded.fixed_bits(shape)
        return replace(self, bits=max(self.bits, fixed + min(fixed, max(self.bits, LEAST_BITS))) - 8 * more_nbytes)

    def less(self, sections: list[Tensor]) -> Target:
        """The target for what is left beside other sections."""
        return self if self.bits is None else replace(self, bits=self.bits - 8 * total_nbytes(sections))

    def of_part(self, share: float) -> Target:
        """The target of a part of the values."""
        scaled = (None if one is None else one * share for one in (self.bits, self.squared_error))
        return Target(*scaled, self.whole_bits)


def surplus_of(numel: int, num_samples: int) -> tuple[int, int]:
    """How many times more values there are than a step is looked for on, and every which sample has enough of them."""
    surplus = max(1, numel // TRIAL_NUMEL)
    return surplus, min(surplus, max(1, num_samples // 8))  # so that what differs between samples is seen


def part_of(values: Tensor) -> Tensor:
    """Some of the samples and places of values (R, F, S, m), contiguous: all rows and bands."""
    num_samples, num_places = values.shape[2:]
    surplus, by = surplus_of(values.numel(), num_samples)
    return values[:, :, ::by, :: min(max(1, surplus // by), num_places)].contiguous()


def find_step(values: Tensor, target: Target, start: float | None = None) -> Try:
    """The coarsest step for an error, or the finest for bits, of those tried, that meets the target.

    Where none does it is COARSEST for bits, and FINEST for an error. `values` as for `Try`.
    """
    falls = target.bits is not None  # what a step takes of the target, with its size
    low, high, best = FINEST, COARSEST, None
    step, slope, before = start or 0.1, -1.3 if falls else 1.0, None
    for _ in range(MAX_TRIES):
        share = target.share(tried := Try(values, step))
        if share <= 1:
            best = tried
        if CLOSE <= share <= 1 or high < 1.001 * low:
            break
        if (share > 1) == falls:
            low = step
        else:
            high = step
        at = math.log(step), math.log(share) if 0 < share < math.inf else None
        if before and None not in (at[1], before[1]) and abs(at[0] - before[0]) > 1e-9:
            found = (at[1] - before[1]) / (at[0] - before[0])
            slope = min(max(found, -8.0), -0.3) if falls else min(max(found, 0.2), 4.0)
        before = at
        ahead = math.exp(at[0] + (math.log(AIM) - at[1]) / slope) if at[1] is not None else 0
        step = ahead if low < ahead < high else (low * high) ** 0.5
    return best or Try(values, COARSEST if falls else FINEST)


@dataclass(frozen=True)
class Packed:
    """
    Attributes:
        sections: scale and step (float64); values beyond 127 steps, as they are; and those of coded.py: words (uint16),
            levels and tables.
        params: two bytes, of the shifts.
        symbols: (R, F, S, m) uint8.
        table: (256,) float64: what each stands for.
    """

    sections: list[Tensor]
    params: tuple[int, int]
    symbols: np.ndarray
    table: Tensor

    @property
    def nbytes(self) -> int:
        return total_nbytes(self.sections)


def pack(tried: Try, scale: float, whole: Whole = None, trims: bool = False) -> Packed:
    """
    Args:
        tried: the values, and their step.
        scale: what a value of 1 stands for.
        whole: gives as many elements, of which is sent what no symbol tells; None for the values.
        trims: leaves out the last rows, from where all is zero; one stays.
    """
    counted = tried.counted.trimmed() if trims else tried.counted
    symbols, found, packed = tried.symbols[: counted.shape[0]], tried.shifts, coded.encode(counted)
    as_is = torch.empty(0)
    if counted.num_escaped:
        values = (tried.values if whole is None else whole()).cpu().reshape(-1, *symbols.shape[1:])
        as_is = values[: len(symbols)][torch.from_numpy(symbols == coded.ESCAPE)]
    parts = [torch.from_numpy(np.array(part)) for part in (packed.words, packed.levels, packed.tables)]
    sections = [torch.tensor([scale, tried.step], dtype=torch.float64), as_is, *parts]
    params = found.near & 255, found.far & 255
    return Packed(sections, params, symbols, steps.levels(tried.step, found.near, found.far))


def pack_within(tried: Try, target: Target, scale: float, whole: Whole = None, trims: bool = False) -> Packed:
    """The same with a step that is coarsened until its bytes are within the target."""
    while True:
        packed = pack(tried, scale, whole, trims)
        if target.bits is None or tried.step >= COARSEST or 8 * packed.nbytes <= target.bits:
            return packed
        tried = Try(tried.values, min(1.01 * tried.step, COARSEST))


def coded_within(values: Tensor, target: Target, scale: float, whole: Whole = None) -> Packed:
    """Values packed with the step that meets the target. Arguments as for `pack`."""
    part, target = part_of(values), target.beside(values.shape)
    step = find_step(part, target.of_part(part.numel() / values.numel())).step
    return pack_within(find_step(values, target, step), target, scale, whole)


def unpack(sections: list[Tensor], params: tuple[int, int], shape: coded.Shape, dtype: torch.dtype, scaled: bool):
    """Values (R, F, S, m) of a dtype, on the CPU, and the symbols that they were.

    Args:
        sections: as `pack` gives them, on any device.
        params: the same.
        shape: of the values.
        dtype: of those that are sent as they are, and of all.
        scaled: multiplied with the scale.

    Returns:
        Values, symbols (uint8), and the scale.

    Raises:
        PayloadError: they are not what `pack` gave for this shape.
    """
    if len(sections) != NUM_SECTIONS or sections[0].numel() != HEAD_NBYTES:
        raise PayloadError("has sections that do not fit its shape")
    scale, step = view_as(sections[0].cpu(), torch.float64).tolist()
    if not (0 < scale < math.inf and FINEST / 2 <= step <= 2 * COARSEST):
        raise PayloadError(f"has the impossible scale {scale} or step {step}")
    near, far = ((byte ^ 128) - 128 for byte in params)
    words, levels, tables = (section.cpu() for section in sections[2:])
    parts = coded.Coded(view_as(words, torch.uint16).numpy(), levels.numpy(), tables.numpy())
    symbols = coded.decode(parts, shape)
    limit = torch.finfo(dtype).max
    table = steps.levels(step, near, far) * (scale if scaled else 1)
    values = steps.restore(symbols, table.clamp_(-limit, limit).nan_to_num_(0).to(dtype))
    escaped, whole = symbols == coded.ESCAPE, view_as(sections[1].cpu(), dtype)
    if np.count_nonzero(escaped) != whole.numel():
        raise PayloadError("has another number of whole values than its codes say")
    if whole.numel():
        values[torch.from_numpy(escaped)] = whole
    return values, symbols, scale
