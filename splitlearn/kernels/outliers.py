"""Rows of a (B, T, C) map that are far larger than the others, such as a language model's first token.

How it works: the norm of a row is compared with the median of all rows' norms. One row that is hundreds of times larger
would set the step, the scale or the basis for all; so that it does not, it goes apart, as bfloat16, and is zero in what
the codec gets. Where many rows are large they are no exceptions, and none goes apart.

Source: "Massive Activations in Large Language Models", COLM 2024, for what they are; the bound of 20 is ours.
"""

import torch
from torch import Tensor

from splitlearn.errors import PayloadError
from splitlearn.kernels.sections import as_bytes, view_as
from splitlearn.kernels.topvalues import clamped

MEDIANS = 20  # that a row's norm is over
MOST = 1 / 16  # of the rows
MOST_OF_BITS = 0.5  # of a payload
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


def split(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """`x` (B, T, C) with zeros for these rows, in memory of its own, and the section that they go in, uint8: their
    indices, and their values as bfloat16."""
    rest = x.clone()
    values = rest.view(-1, x.shape[-1])
    apart = clamped(values[rows.long()], torch.bfloat16)
    values[rows.long()] = 0
    return rest, torch.cat([as_bytes(rows), as_bytes(apart)])


def restore(out: Tensor, section: Tensor, shape: torch.Size) -> None:
    """Puts the rows of a payload's section into `out`, the decoded rest of a (B, T, C) tensor, in place.

    Raises:
        PayloadError: they are not ascending rows of this shape, and their values.
    """
    number = 8 * section.numel() // (INDEX_BITS + BITS * shape[-1]) if len(shape) == 3 else 0
    if not number or 8 * section.numel() != num_bits(number, shape):
        raise PayloadError("has outlying rows that do not fit its shape")
    rows = view_as(section[: 4 * number], torch.int32).long()
    if rows[0] < 0 or rows[-1] >= shape[0] * shape[1] or bool((rows.diff() <= 0).any()):
        raise PayloadError("has outlying rows that are not in order or beyond its shape")
    values = view_as(section[4 * number :], torch.bfloat16).view(-1, shape[-1])
    out.view(-1, shape[-1])[rows] = clamped(values, out.dtype)


def num_bits(number: int, shape: torch.Size) -> int:
    """What the section of so many rows takes."""
    return number * (INDEX_BITS + BITS * shape[-1])


def parted(x: Tensor, bits: float | None) -> tuple[Tensor, list[Tensor]]:
    """`x` without the rows that go apart, and the section that they go in, if there are any.

    Where there are so many `bits` an element, rows that would take more than half of them stay.
    """
    rows = find(x)
    if not rows.numel() or (bits is not None and num_bits(rows.numel(), x.shape) > MOST_OF_BITS * bits * x.numel()):
        return x, []
    rest, section = split(x, rows)
    return rest, [section]


def joined(out: Tensor, apart: list[Tensor], shape: torch.Size) -> Tensor:
    """Inverse of `parted`, in place. Raises as `restore` does."""
    for section in apart:
        restore(out, section, shape)
    return out
