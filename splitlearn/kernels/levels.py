"""The codes of a mask: how many steps of T/L a value is worth, for a threshold T and the code L of the top values.

How it works: dividing by T, multiplying by L and rounding is the definition, and how the codes of wide masks are
computed. A narrow mask has so few codes that comparing is faster: the code of a value is the number of cut points that
it reaches, where cut point j is the smallest float that the definition gives the code j.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from splitlearn.kernels.blocks import at_least, per_element, scratch, spans, split_at
from splitlearn.kernels.threshold import ranked

COMPARE_LEVELS_UP_TO = 15  # levels; beyond, a search is faster
COMPARE_UP_TO = 3  # L of a mask of two bits: two comparisons instead of six operations
BEYOND = 3.0  # thresholds; a level that no value below one is near
NEARBY = 8  # floats that a computed cut point may be off, where three rounded operations make it one or two


def even_codes(x: Tensor, threshold: Tensor, top_code: int, nearest: bool, by_magnitude: bool) -> Iterator[Tensor]:
    """The codes of `x` for even levels, span by span: uint8 tensors, each overwritten when the next is asked for.

    Args:
        x: (rows, n), contiguous.
        threshold: (rows, 1), in at least float32. Where it is 0, nothing else is above 0.
        top_code: L. It is for the top values: what rounds up to it, or ties with them, stays one step below.
        nearest: round to nearest instead of down.
        by_magnitude: encode |x| instead of x.
    """
    threshold = torch.where(threshold > 0, threshold, 1)
    if top_code <= COMPARE_UP_TO:
        return _compared(x, _cut_points(threshold, top_code, nearest), by_magnitude)
    return _computed(x, threshold, top_code, nearest, by_magnitude)


def fitted_codes(x: Tensor, threshold: Tensor, levels: Tensor, by_magnitude: bool) -> Iterator[Tensor]:
    """The codes of `x` for given levels, span by span as above: which level is the nearest.

    Args:
        x: (rows, n), contiguous.
        threshold: (rows, 1), above 0, in at least float32.
        levels: (L,) float32, ascending, in shares of the threshold.
    """
    borders = ((levels[1:] + levels[:-1]) / 2).to(threshold.dtype) * threshold
    if len(levels) <= COMPARE_LEVELS_UP_TO or len(x) > 1:
        return _compared(x, borders, by_magnitude)
    return _searched(x, borders, by_magnitude)


def filled(levels: Tensor, top_code: int) -> Tensor:
    """Levels for all codes below the top one: after those that there are, such as no value has."""
    return pad(levels, (0, top_code - len(levels)), value=BEYOND)


def marked(codes: Iterator[Tensor], positions: Tensor, top_code: int, numel: int) -> Iterator[Tensor]:
    """The codes, span by span, with the top values' code at their positions."""
    for here, tops in zip(codes, split_at(positions, numel), strict=True):
        yield here.index_fill_(0, tops, top_code)


def _searched(x: Tensor, borders: Tensor, by_magnitude: bool) -> Iterator[Tensor]:
    """As `_compared` for a single row, (1, n): faster where there are many borders."""
    for span in spans(x.numel(), x.device):
        values = ranked(x.view(-1)[span], by_magnitude)
        yield torch.bucketize(values, borders[0], out_int32=True, right=True).to(torch.uint8)


def _compared(x: Tensor, cuts: Tensor, by_magnitude: bool) -> Iterator[Tensor]:
    codes = scratch(x.numel(), torch.uint8, x.device)
    reaching = scratch(x.numel(), torch.bool, x.device)
    for span in spans(x.numel(), x.device):
        here = codes[: span.stop - span.start]
        values = ranked(x.view(-1)[span], by_magnitude)
        bounds = [per_element(cuts[:, i : i + 1], x.shape[1], span) for i in range(cuts.shape[1])]
        if bounds:
            at_least(values, bounds[0], out=here.view(torch.bool))
        else:
            here.zero_()
        for bound in bounds[1:]:
            here += at_least(values, bound, out=reaching).view(torch.uint8)
        yield here


def _computed(x: Tensor, threshold: Tensor, top_code: int, nearest: bool, by_magnitude: bool) -> Iterator[Tensor]:
    codes = scratch(x.numel(), torch.uint8, x.device)
    steps = scratch(x.numel(), threshold.dtype, x.device)
    whole_steps = scratch(x.numel(), torch.int32, x.device)
    for span in spans(x.numel(), x.device):
        size = span.stop - span.start
        values = ranked(x.view(-1)[span], by_magnitude)
        here = _steps(values, per_element(threshold, x.shape[1], span), top_code, nearest, out=steps[:size])
        # By way of int32, as torch turns floats into those several times faster than into uint8.
        yield codes[:size].copy_(whole_steps[:size].copy_(here.clamp_(max=top_code - 1)))


def _steps(values: Tensor, threshold: Tensor, top_code: int, nearest: bool, out: Tensor) -> Tensor:
    # Division by a tensor, as some devices multiply by the reciprocal of a number.
    out = torch.div(values, threshold, out=out).mul_(top_code)
    return out.add_(0.5) if nearest else out


def _cut_points(threshold: Tensor, top_code: int, nearest: bool) -> Tensor:
    """(rows, top_code - 1): for each row and code from 1, the smallest value that gets it.

    It is looked for among the floats around the one that it should be. As none of them is negative, those that follow
    one another as floats do so as integers too.
    """
    whole = {torch.float32: torch.int32, torch.float64: torch.int64}[threshold.dtype]
    codes = torch.arange(1, top_code, device=threshold.device, dtype=threshold.dtype)
    about = threshold * ((codes - 0.5 * nearest) / top_code)
    offsets = torch.arange(-NEARBY, NEARBY + 1, device=threshold.device, dtype=whole)
    near = (about.view(whole).unsqueeze(2) + offsets).clamp_(min=0).view(threshold.dtype)
    steps = _steps(near, threshold.unsqueeze(2), top_code, nearest, out=torch.empty_like(near))
    num_below = (steps < codes.unsqueeze(1)).sum(2, keepdim=True)
    return near.gather(2, num_below).squeeze(2)
