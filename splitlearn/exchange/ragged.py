"""Maps of samples that differ in length: of (B, T, …) only the rows cross that the samples have, and their lengths.

    sender      (B, T, …) ─ rows_of ─► (N, 1, …) ═════► (N, 1, …) ─ padded ─► (B, T, …)      receiver

N is the sum of the lengths, and T is the longest at both ends. A row is to a codec what a sample is, one of a single
position: so every codec has samples, and those that know of tokens have tokens. Gradients come back the same way: that
of a row which a sample has not got is zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from splitlearn.compressors.checking import is_as_sent
from splitlearn.defences import Defence
from splitlearn.defences.checking import check_protected
from splitlearn.defences.draws import Draws
from splitlearn.segments.forward import valid

DTYPE = torch.uint16  # of lengths on the wire, which are up to forward.LONGEST


def rows_of(x: Tensor, lengths: Tensor) -> Tensor:
    """(N, 1, …) of a (B, T, …) map and (B,) lengths."""
    return x[valid(lengths, x.shape[1])].unsqueeze(1)


def padded(rows: Tensor, lengths: Tensor) -> Tensor:
    """Inverse of `rows_of`: (B, T, …), with zeros where samples have no row."""
    where = valid(lengths, int(lengths.max()))
    out = rows.new_zeros(*where.shape, *rows.shape[2:])
    out[where] = rows.squeeze(1)
    return out


def protected(x: Tensor, lengths: Tensor | None, defence: Defence, draws: Draws) -> Tensor:
    """A (B, T, …) map of samples of these lengths, or one of any shape without lengths, as a defence lets it cross.

    Rows that a sample has not got are zeros for the defence, and for what comes after it: norms are not to depend on
    how long the others of its batch are.

    Raises:
        UserError: the defence gave something else than a tensor like `x`.
    """
    if lengths is None:
        return check_protected(defence, "protect", defence.protect(x, draws), x)
    is_there = valid(lengths, x.shape[1])
    is_padding = ~is_there.view(*is_there.shape, *[1] * (x.dim() - 2))
    found = defence.protect_ragged(x.masked_fill(is_padding, 0), is_there, draws)
    return check_protected(defence, "protect_ragged", found, x).masked_fill(is_padding, 0)


def pack(lengths: Tensor) -> Tensor:
    """Lengths as they are sent: (B,) uint16, on the CPU."""
    return lengths.to("cpu", DTYPE)


def check(packed: Any, max_samples: int, longest: int) -> None:
    """
    Args:
        packed: what somebody sent as lengths.
        max_samples: of a batch.
        longest: that a sample may be.

    Raises:
        ValueError: it is none of these; says what is wrong.
    """
    if not isinstance(packed, Tensor) or packed.dtype != DTYPE or packed.dim() != 1:
        raise ValueError("the lengths are no 1-D uint16 tensor")
    if not is_as_sent(packed):
        raise ValueError("the lengths are no plain tensor on the CPU")
    if not 1 <= len(packed) <= max_samples:
        raise ValueError(f"there are {len(packed)} lengths, where a batch has 1 to {max_samples} samples")
    lowest, highest = (int(length) for length in packed.long().aminmax())
    if not 1 <= lowest <= highest <= longest:
        raise ValueError(f"the lengths are from {lowest} to {highest}; samples have 1 to {longest} positions")
