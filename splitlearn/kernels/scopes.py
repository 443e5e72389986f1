"""Which values share a range or a scale: all of a tensor, those of a sample, of a channel, or of a row.

How it works: a contiguous tensor is rows of L values that belong to G groups in turn, so that value i is of group
⌊i/L⌋ mod G. A sample (index of dimension 0) is one row of these; a channel (index of dimension 1, which is the position
in (B, T, C)) has one in every sample. A row, such as a token of (B, T, C), is what lies along the last dimension.
"""

from math import prod

import torch
from torch import Tensor

from splitlearn.errors import PayloadError
from splitlearn.kernels.blocks import per_element

SCOPES = ("batch", "sample", "channel", "row")  # their numbers in a payload


def layout(shape: tuple[int, ...], scope: str) -> tuple[int, int]:
    """Number of groups and length of a row. Where the dimension is missing, the whole tensor is one group."""
    if scope == "row":
        return prod(shape[:-1]), prod(shape[-1:])
    axis = SCOPES.index(scope) - 1
    if axis < 0 or len(shape) <= axis:
        return 1, prod(shape)
    return shape[axis], prod(shape[axis + 1 :])


def largest_magnitudes(x: Tensor, scope: str) -> Tensor:
    """(groups,): the largest magnitude in each group of `x`, contiguous."""
    low, high = ends(x, scope)
    return torch.maximum(-low, high)


def ends(x: Tensor, scope: str) -> Tensor:
    """(2, groups): the minimum and the maximum of each group of `x`, contiguous."""
    num_groups, row_length = layout(x.shape, scope)
    if num_groups == 1:
        return torch.stack(x.view(-1).aminmax()).unsqueeze(1)  # one pass
    rows = x.view(-1, num_groups, row_length)
    return torch.stack((rows.amin((0, 2)), rows.amax((0, 2))))


def per_value(of_groups: Tensor, row_length: int, span: slice) -> Tensor:
    """The value of its group, of `of_groups` (groups,), for every value of a span."""
    first, last = span.start // row_length, (span.stop - 1) // row_length
    if last >= len(of_groups):
        skipped = first // len(of_groups) * len(of_groups)
        of_groups = of_groups.repeat(-(-(last + 1 - skipped) // len(of_groups)))
        span = slice(span.start - skipped * row_length, span.stop - skipped * row_length)
    return per_element(of_groups.unsqueeze(1), row_length, span)


def check_bits_and_scope(params: tuple[int, ...], bits: int, scope: str, what: str) -> None:
    """Raises PayloadError unless a payload's first two parameters are these: width of a code, and what has a `what`."""
    sent_bits, sent_scope, *_ = params
    if sent_bits != bits or sent_scope != SCOPES.index(scope):
        name = SCOPES[sent_scope] if sent_scope < len(SCOPES) else f"unknown scope {sent_scope}"
        raise PayloadError(
            f"has codes of {sent_bits} bits, {what} per {name}; this compressor has bits={bits}, scope={scope}"
        )
