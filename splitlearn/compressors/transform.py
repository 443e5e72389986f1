"""What a compressor codes instead of a tensor: its channels or places in another orthonormal basis (`transform=`).

Any compressor can: the tensor is transformed, coded as ever, and transformed back. The transform has a section of its
own behind the compressor's, so that an end without it, or with another, refuses the payload.

    none        the tensor as it is
    dct         blocks of up to 4 × 4 places of (B, C, H, W) by frequency (discrete cosine transform)
    hadamard    channels, in groups of a power of two, by ±1 (Walsh–Hadamard): one is spread over many
    klt         channels in the basis of their second moments, as in klt.py: the most of them in the first
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from splitlearn.compressors.basis import HEAD, NONE, SharedBasis, kind_for
from splitlearn.errors import PayloadError
from splitlearn.kernels import bases
from splitlearn.kernels.channels import from_channels, scaled_by_channel
from splitlearn.kernels.unit import rescaled

BLOCK = 4
MOST_IN_GROUP = 256
REFRESH, BASIS_BITS = 50, 5


class Transform:
    """Base of the transforms: the identity.

    Attributes:
        keeps_state: between tensors.
        number: in a payload; 0 is none, and not sent.
    """

    keeps_state = False
    number = 0

    def forward(self, x: Tensor, bits: float) -> tuple[Tensor, list[Tensor]]:
        """What is coded instead of `x`, of its shape and dtype, at about so many bits an element, and its sections."""
        return x, []

    def parted(self, sections: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """A payload's sections: the compressor's, and those of `forward`."""
        return sections, []

    def inverse(self, x: Tensor, sections: list[Tensor]) -> Tensor:
        """What was transformed, of what is decoded and the sections of `forward`.

        Raises:
            PayloadError: they are none of this transform.
        """
        return x

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def flaw_of(self, state: Any, shape: tuple[int, ...]) -> str | None:
        return None if state == {} else "nothing is kept for it"

    def basis_nbytes(self, sections: tuple[Tensor, ...]) -> int:
        return 0


class Sent(Transform):
    """Base of those that a payload tells of, in its last section: a number, and what a subclass adds."""

    def forward(self, x: Tensor, bits: float) -> tuple[Tensor, list[Tensor]]:
        matrix, scale = scaled_by_channel(x)
        rows, more = self.to_rows(matrix, x.shape, bits)
        y = rescaled(from_channels(rows, x.shape), scale, x.dtype)
        return y, [torch.cat([torch.tensor([self.number], dtype=torch.uint8), more])]

    def parted(self, sections: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return sections[:-1], sections[-1:]

    def inverse(self, x: Tensor, sections: list[Tensor]) -> Tensor:
        section = sections[0].cpu() if sections else torch.empty(0, dtype=torch.uint8)
        if not section.numel() or section[0] != self.number:
            raise PayloadError(f"is not transformed by {type(self).__name__.lower()}")
        matrix, scale = scaled_by_channel(x.nan_to_num(0))
        rows = self.from_rows(matrix, x.shape, section[1:])
        return rescaled(from_channels(rows, x.shape), scale, x.dtype)

    def to_rows(self, matrix: Tensor, shape: torch.Size, bits: float) -> tuple[Tensor, Tensor]:
        """What is coded instead of a matrix (C, M) float32, and bytes that say how to come back."""
        raise NotImplementedError

    def from_rows(self, matrix: Tensor, shape: torch.Size, more: Tensor) -> Tensor:
        """Inverse of `to_rows`."""
        raise NotImplementedError


class Plain(Sent):
    """Base of those that need no more bytes."""

    def to_rows(self, matrix: Tensor, shape: torch.Size, bits: float) -> tuple[Tensor, Tensor]:
        return self.apply(matrix, shape, forward=True), torch.empty(0, dtype=torch.uint8)

    def from_rows(self, matrix: Tensor, shape: torch.Size, more: Tensor) -> Tensor:
        if more.numel():
            raise PayloadError("says more of its transform than there is")
        return self.apply(matrix, shape, forward=False)

    def apply(self, matrix: Tensor, shape: torch.Size, forward: bool) -> Tensor:
        raise NotImplementedError


class Dct(Plain):
    """A frequency lies where the place of its number lies, so that the tensor's shape stays."""

    number = 1

    def apply(self, matrix: Tensor, shape: torch.Size, forward: bool) -> Tensor:
        n = bases.largest_block(shape, BLOCK)
        if n == 1:
            return matrix
        change = bases.dct(n).to(matrix.device)
        height, width = shape[2:]
        blocks = matrix.view(-1, height // n, n, width // n, n).transpose(2, 3).reshape(-1, n * n)
        blocks = blocks @ (change.t() if forward else change)
        return blocks.view(-1, height // n, width // n, n, n).transpose(2, 3).reshape(matrix.shape)


class Hadamard(Plain):
    number = 2

    def apply(self, matrix: Tensor, shape: torch.Size, forward: bool) -> Tensor:
        num_channels = len(matrix)
        size = min(num_channels & -num_channels, MOST_IN_GROUP)
        groups = matrix.view(num_channels // size, size, -1)
        return (hadamard(size).to(matrix.device) @ groups).view(matrix.shape)


class Klt(SharedBasis, Sent):
    """A basis that both ends keep, or where it is cheap one of the payload's own; all vectors of it are sent."""

    number = 3

    def __init__(self):
        super().__init__(REFRESH, BASIS_BITS)

    def to_rows(self, matrix: Tensor, shape: torch.Size, bits: float) -> tuple[Tensor, Tensor]:
        plan = self.plan(kind_for(shape, bits, REFRESH, BASIS_BITS), matrix, bits * matrix.numel())
        section = self.section(plan, len(matrix))
        self.was_sent(plan, len(matrix))
        rows = matrix if plan.basis is None else plan.basis.to(matrix.device) @ matrix
        return rows, torch.cat([torch.tensor([plan.kind], dtype=torch.uint8), section])

    def from_rows(self, matrix: Tensor, shape: torch.Size, more: Tensor) -> Tensor:
        if not more.numel():
            raise PayloadError("does not say what basis it is in")
        plan = self.received(int(more[0]), more[1:], len(matrix), BASIS_BITS)
        if plan.most != len(matrix):
            raise PayloadError(f"has {plan.most} components of {len(matrix)} channels")
        self.kept(plan)
        return matrix if plan.kind == NONE else plan.basis.to(matrix.device).t() @ matrix

    def basis_nbytes(self, sections: tuple[Tensor, ...]) -> int:
        return sections[-1].numel() - 2 - HEAD.size


@cache
def hadamard(size: int) -> Tensor:
    """(size, size) float32, orthonormal and its own inverse; size is a power of two."""
    found = torch.ones(1, 1)
    while len(found) < size:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found / size**0.5


TRANSFORMS: dict[str, Callable[[], Transform]] = {"none": Transform, "dct": Dct, "hadamard": Hadamard, "klt": Klt}
