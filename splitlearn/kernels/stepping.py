"""Values as whole steps of a size that meets a target, entropy-coded: what uq, klt and linked send.

How it works: the size is looked for on a part of the values, and from there on all of them. A try takes no encoding:
the symbols' entropy says how many bits they take (coded.py), and sums what error they leave (steps.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

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
NUM_SECTIONS = 5


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

    def share(self, values: Tensor, step: float) -> float:
        """What a step takes of the target, nearly; over 1 is too much."""
        if self.bits is None:
            error = steps.shifts(values, step).squared_error
            return (error / self.squared_error) ** 0.5 if self.squared_error > 0 else math.inf if error else 0.0
        symbols = steps.quantize(values, step)
        bits = 8 * HEAD_NBYTES + coded.cost_bits(symbols)
        if step * coded.LARGEST < 1:  # there may be some
            bits += self.whole_bits * np.count_nonzero(symbols == coded.ESCAPE)
        return bits / self.bits if self.bits > 0 else math.inf

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


def find_step(values: Tensor, target: Target, start: float | None = None) -> float:
    """The coarsest step for an error, or the finest for bits, of those tried, that meets the target.

    Where none does it is COARSEST for bits, and FINEST for an error.
    """
    falls = target.bits is not None  # what a step takes of the target, with its size
    low, high, best = FINEST, COARSEST, None
    step, slope, before = start or 0.1, -1.3 if falls else 1.0, None
    for _ in range(MAX_TRIES):
        share = target.share(values, step)
        if share <= 1:
            best = step
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
    return best or (COARSEST if falls else FINEST)


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


def pack(values: Tensor, step: float, scale: float, whole: Tensor, trims: bool = False) -> Packed:
    """
    Args:
        values: (R, F, S, m) float32, contiguous, on any device.
        step: in the values' units.
        scale: what a value of 1 stands for.
        whole: of as many elements, what is sent for a value that no symbol tells.
        trims: leaves out the last rows, from where all is zero; one stays.
    """
    symbols, found = steps.quantize(values, step), steps.shifts(values, step)
    if trims:
        symbols = symbols[: num_used(symbols)]
    packed = coded.encode(symbols)
    escaped = torch.from_numpy(symbols == coded.ESCAPE)
    whole = whole.cpu().reshape(-1, *symbols.shape[1:])[: len(symbols)]
    as_is = whole[escaped] if escaped.any() else whole.new_empty(0)
    parts = [torch.from_numpy(np.array(part)) for part in (packed.words, packed.levels, packed.tables)]
    sections = [torch.tensor([scale, step], dtype=torch.float64), as_is, *parts]
    params = found.near & 255, found.far & 255
    return Packed(sections, params, symbols, steps.levels(step, found.near, found.far))


def num_used(symbols: np.ndarray) -> int:
    """Rows up to the last that is not all zero; at least one."""
    used = symbols.reshape(len(symbols), -1).any(axis=1).nonzero()[0]
    return int(used[-1]) + 1 if len(used) else 1


def pack_within(
    values: Tensor, target: Target, step: float, scale: float, whole: Tensor, trims: bool = False
) -> Packed:
    """The same with a step that is coarsened until its bytes are within the target."""
    while True:
        packed = pack(values, step, scale, whole, trims)
        if target.bits is None or step >= COARSEST or 8 * packed.nbytes <= target.bits:
            return packed
        step = min(1.01 * step, COARSEST)


def coded_within(values: Tensor, target: Target, scale: float, whole: Tensor) -> Packed:
    """Values packed with the step that meets the target. Arguments as for `pack`."""
    part = part_of(values)
    step = find_step(part, target.of_part(part.numel() / values.numel()))
    return pack_within(values, target, find_step(values, target, step), scale, whole)


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
