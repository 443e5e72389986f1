"""What a map leaves at both ends of a cut for its gradient: the basis that it crossed in, and what of it arrived."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from splitlearn.kernels import steps
from splitlearn.kernels.bases import from_bands, to_bands
from splitlearn.kernels.channels import by_channel, cells_shape, from_channels


@dataclass(frozen=True)
class Trace:
    """
    Attributes:
        shape: of the map.
        basis: (K, C) float32, orthonormal rows; None for the channels themselves.
        block: of places; 1 for none.
        weights: (K, F, 1, 1) float32, from 0 to 1: the share of each component's energy that arrives, by how many of
            its symbols are not zero. Both ends know it, bit for bit.
        gains: (K, F, 1, 1) float32: E[c ĉ] / E[c²] of each component c, at the end that sent the map; else None.
    """

    shape: torch.Size
    basis: Tensor | None
    block: int
    weights: Tensor
    gains: Tensor | None = None

    @property
    def components_shape(self) -> tuple[int, int, int, int]:
        return components_shape(self.shape, len(self.weights), self.block)

    def project(self, x: Tensor) -> Tensor:
        """(K, F, S, m) float32: the components of a tensor of the map's shape that arrive."""
        return project(by_channel(x).float(), self.shape, self.basis, len(self.weights), self.block)

    def restore(self, components: Tensor) -> Tensor:
        """A tensor of the map's shape of its components, float32, not contiguous."""
        return from_channels(unproject(components, self.shape, self.basis, self.block), self.shape)

    def gained(self, gradient: Tensor) -> Tensor:
        """The gradient with each component times its gain."""
        found = self.restore(self.project(gradient) * self.gains.to(gradient.device))
        return found.to(gradient.dtype, memory_format=torch.contiguous_format)


def project(matrix: Tensor, shape: torch.Size, basis: Tensor | None, number: int, block: int) -> Tensor:
    """(K, F, S, m) of a matrix (C, M): the first components of a map, and of a block's places the frequencies."""
    rows = matrix[:number] if basis is None else basis[:number].to(matrix.device) @ matrix
    if block > 1:
        return to_bands(rows, (shape[0], *shape[2:]), block)
    return rows.view(len(rows), *cells_shape(shape)[1:])


def unproject(components: Tensor, shape: torch.Size, basis: Tensor | None, block: int) -> Tensor:
    """(C, M) of components (K, F, S, m)."""
    if block > 1:
        rows = from_bands(components, (shape[0], *shape[2:]), block)
    else:
        rows = components.reshape(len(components), -1)
    if basis is not None:
        return basis[: len(rows)].to(rows.device).t() @ rows
    return pad(rows, (0, 0, 0, shape.numel() // rows.shape[1] - len(rows)))


def components_shape(shape: torch.Size, number: int, block: int) -> tuple[int, int, int, int]:
    """(K, F, S, m)."""
    if block > 1:
        return number, block * block, shape[0], shape[2] * shape[3] // block**2
    return number, *cells_shape(shape)[1:]


def weights_of(symbols: np.ndarray) -> Tensor:
    """For `Trace.weights`: of a Laplace distribution of which a share p is not in the dead zone, the energy of that.

    With u = -ln p it is p (1 + u + u²/2).
    """
    number = np.prod(symbols.shape[2:])
    shares = torch.from_numpy(steps.num_beyond(symbols)).double() / number
    depth = -shares.clamp_min(1e-9).log()
    return (shares * (1 + depth + depth.square() / 2)).float()[:, :, None, None]
