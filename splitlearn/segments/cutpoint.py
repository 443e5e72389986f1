"""A place where a model can be cut."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CutPoint:
    """A module that a model can be cut after, and the map that crosses there.

    Attributes:
        path: the module's path in the model.
        shape: shape of one sample's map; with a bottleneck of what crosses of it.
        dtype: its dtype.
        channels: with a bottleneck (see bottleneck.py), how many cross, and how many the module's map has.
        is_ragged: samples differ in length, and the map has a row for each position: those that a sample has cross, of
            which there are up to shape[0].
    """

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    channels: tuple[int, int] | None = None
    is_ragged: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of one sample's map, uncompressed."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize
