"""Rows of a (B, T, C) map that are far larger than the others, such as a language model's first token.

How it works: the norm of a row is compared with the median of all rows' norms. One row that is hundreds of times larger
would set the step, the scale or the basis for all; so that it does not, it goes apart, as bfloat16, and is zero in what
the codec gets. Where many rows are large they are no exceptions, and none goes apart.

Source: "Massive Activations in Large Language Models", COLM 2024, for what they are; the bound of 20 is ours.
"""

import torch
from torch import Tensor

from splitlearn.errors import PayloadError
from splitlearn.kernels.sections import view_as
from splitlearn.kernels.topvalues import clamped

MEDIANS = 20  # that a row's norm is over
MOST = 1 / 16  # of the rows
BITS, INDEX_BITS = 16, 32  # of a value, and of where a row is


def find(x: Tensor) -> Tensor:
    """Ascending indices, int32, of the rows of `x` (B, T, C), contiguous, that go apart; none for another shape."""
    none = torch.empty(0, dtype=torch.int32, device=x.device)
    if x.dim() != 3:
        return none
    rows = x.view(-1, x.shape[-1])
    wide = torch.promote_types(x.dtype, torch.float32)
    largest = rows.abs().amax(1, keepdim=True).to(wide)
    largest = torch.where(largest > 0, largest, 1)
    norms = (rows / largest).norm(dim=1) * largest.view(-1)  # whose squares do not leave the dtype
    median = norms.median()
    found = (norms > MEDIANS * median).nonzero().view(-1).to(torch.int32)
    return found if median > 0 and found.numel() <= MOST * len(rows) else none


def split(x: Tensor, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
    """`x` (B, T, C) with zeros for these rows, in memory of its own, and the sections that they go in: their indices,
    and their values as bfloat16."""
    rest = x.clone()
    values = rest.view(-1, x.shape[-1])
    apart = clamped(values[rows.long()], torch.bfloat16)
    values[rows.long()] = 0
    return rest, [rows, apart]


def restore(out: Tensor, sections: list[Tensor], shape: torch.Size) -> None:
    """Puts the rows of a payload's two sections into `out`, the decoded rest of a (B, T, C) tensor, in place.

    Raises:
        PayloadError: they are not ascending rows of this shape, and their values.
    """
    rows = view_as(sections[0], torch.int32).long()
    if len(shape) != 3 or not rows.numel() or sections[1].numel() != BITS // 8 * rows.numel() * shape[-1]:
        raise PayloadError("has outlying rows that do not fit its shape")
    if rows[0] < 0 or rows[-1] >= shape[0] * shape[1] or bool((rows.diff() <= 0).any()):
        raise PayloadError("has outlying rows that are not in order or beyond its shape")
    values = view_as(sections[1], torch.bfloat16).view(-1, shape[-1])
    out.view(-1, shape[-1])[rows] = clamped(values, out.dtype)


def num_bits(rows: Tensor, shape: torch.Size) -> int:
    """What the two sections take."""
    return rows.numel() * (INDEX_BITS + BITS * shape[-1])
