"""A tensor's channels as rows: dimension 1, or the last one of (B, T, C).

Of each row the values of one sample follow one another. Where a sample is worth being told apart is a matter of size: a
sample is an index of dimension 0, or for (B, T, C) a token where it has enough channels.
"""

from math import prod

import torch
from torch import Tensor

from splitlearn.kernels.coded import Shape
from splitlearn.kernels.unit import largest, scaled

SAMPLE_NUMEL = 256  # with fewer elements, what is said of a sample costs more than it saves


def channel_axis(shape: tuple[int, ...]) -> int:
    return 2 if len(shape) == 3 else 1


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Channels, and values of each; in one dimension all are one channel's."""
    if len(shape) < 2:
        return 1, prod(shape)
    num_channels = shape[channel_axis(shape)]
    return num_channels, prod(shape) // num_channels


def cells_shape(shape: tuple[int, ...]) -> Shape:
    """Channels, 1, samples, and values of a channel in a sample."""
    num_rows, num_columns = matrix_shape(shape)
    if len(shape) >= 2:
        tokens = [shape[0] * shape[1]] if len(shape) == 3 else []
        for num_samples in (*tokens, shape[0]):
            if prod(shape) // num_samples >= SAMPLE_NUMEL:
                return num_rows, 1, num_samples, num_columns // num_samples
    return num_rows, 1, 1, num_columns


def by_channel(x: Tensor) -> Tensor:
    """(channels, values of each) of a tensor, contiguous."""
    return _channels_first(x).reshape(matrix_shape(x.shape))


def scaled_by_channel(x: Tensor) -> tuple[Tensor, float]:
    """The same, as `scaled` gives it, in one pass. `x` is contiguous."""
    rows, scale = scaled(_channels_first(x), largest(x))
    return rows.view(matrix_shape(x.shape)), scale


def _channels_first(x: Tensor) -> Tensor:
    return x.view(1, -1) if x.dim() < 2 else x.movedim(channel_axis(x.shape), 0)


def from_channels(matrix: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of `by_channel`: of the shape, sharing memory, and not contiguous."""
    if len(shape) < 2:
        return matrix.view(shape)
    axis = channel_axis(shape)
    moved = torch.Size((shape[axis], *shape[:axis], *shape[axis + 1 :]))
    return matrix.view(moved).movedim(0, axis)
