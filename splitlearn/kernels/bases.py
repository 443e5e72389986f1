"""Orthonormal bases of channels: fitted to maps, sent in a few bits a number, and applied to maps.

How it works: the basis of a map is the eigenvectors of its channels' second moments, the most energetic first (the
Karhunen-Loève transform, which is a principal component analysis without taking the mean off: the mean is then a
component like others, and never a stale one). A vector is sent as whole numbers, its largest being 2^(bits-1)-1; both
ends make the vectors that arrived orthonormal again, in their order, so that a basis whose vectors come bit by bit is
the same as one that came at once. Blocks of places are transformed by a discrete cosine transform.

Source: Karhunen-Loève: Jain, "Fundamentals of Digital Image Processing", 1989, Sect. 5.11; DCT: Ahmed, Natarajan and
    Rao, IEEE Transactions on Computers, 1974.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from splitlearn.kernels.bits import pack, packed_nbytes, unpack
from splitlearn.kernels.sampling import stride

EXACT_UP_TO = 256  # channels; beyond, eigenvectors are found from those before
ROUNDS = 2


def second_moments(matrix: Tensor, most_columns: int) -> Tensor:
    """(C, C) float32 on the CPU: x xᵀ over columns of `matrix` (C, M), over its trace: each batch counts alike."""
    columns = matrix[:, :: stride(matrix.shape[1], most_columns)]
    moments = columns @ columns.t()
    return (moments / moments.trace().clamp_min(1e-30)).cpu()


def eigenvectors(moments: Tensor, before: Tensor | None = None) -> Tensor:
    """(C, C): the eigenvectors of a symmetric matrix as rows, the largest eigenvalues first.

    `before` are those of a matrix that is much like it, up to rounding (see `orthonormal`). From many channels on they
    are rotated towards the new ones (orthogonal iteration), which takes a part of the time, and a part of the way where
    they are far.
    """
    if before is None or len(moments) <= EXACT_UP_TO:
        try:
            found = torch.linalg.eigh(moments).eigenvectors
        except (
            torch.linalg.LinAlgError
        ):  # in float32, LAPACK's iteration does not always end where most channels are off
            found = torch.linalg.eigh(moments.double()).eigenvectors.float()
        return found.t().flip(0).contiguous()
    vectors = orthonormal(before).t()
    for _ in range(ROUNDS):
        vectors = torch.linalg.qr(moments @ vectors).Q
    values = ((moments @ vectors) * vectors).sum(0)
    return vectors[:, values.argsort(descending=True, stable=True)].t().contiguous()


def to_integers(vectors: Tensor, bits: int) -> Tensor:
    """(K, C) float32 as int8, from -(2^(bits-1)-1) on."""
    top = 2 ** (bits - 1) - 1
    peak = vectors.abs().amax(1, keepdim=True).clamp_min(1e-30)
    return (vectors / peak * top).round_().to(torch.int8)


def pack_integers(vectors: Tensor, bits: int) -> Tensor:
    """uint8: the numbers of `to_integers`, bit by bit."""
    if not vectors.numel():
        return torch.empty(0, dtype=torch.uint8)
    codes = (vectors.short() + (2 ** (bits - 1) - 1)).to(torch.uint8).reshape(-1)
    return pack(codes, bits)


def unpack_integers(packed: Tensor, num_channels: int, bits: int) -> Tensor | None:
    """(K, C) int8 of K whole vectors; None where they are not, or a number is one that is never sent."""
    num = packed.numel() * 8 // (num_channels * bits)
    if packed_nbytes(num * num_channels, bits) != packed.numel():
        return None
    if num == 0:
        return torch.empty(0, num_channels, dtype=torch.int8)
    codes = unpack(packed, bits, num * num_channels).view(num, num_channels)
    top = 2 ** (bits - 1) - 1
    return (codes.short() - top).to(torch.int8) if codes.max() <= 2 * top else None


def orthonormal(vectors: Tensor) -> Tensor:
    """(K, C) float32 from integers: each made orthogonal to those before it, which those after it do not change."""
    found, triangle = torch.linalg.qr(vectors.t().double())
    return (found * triangle.diagonal().sign()).t().float().contiguous()


@cache
def dct(n: int) -> Tensor:
    """(n², n²) float32, orthonormal: the transform of n × n places, row after row."""
    k = torch.arange(n, dtype=torch.float64)
    one = torch.cos(math.pi * (k + 0.5) * k.unsqueeze(1) / n) * (2 / n) ** 0.5
    one[0] /= 2**0.5
    return torch.kron(one, one).float()


def to_bands(rows: Tensor, places: tuple[int, int, int], n: int) -> Tensor:
    """(K, B·H·W) as (K, n², B, H·W/n²): what n × n places are, by frequency. `places` are B, H and W."""
    samples, height, width = places
    blocks = rows.view(-1, samples, height // n, n, width // n, n).permute(0, 3, 5, 1, 2, 4)
    return (dct(n).to(rows.device) @ blocks.reshape(len(rows), n * n, -1)).view(len(rows), n * n, samples, -1)


def from_bands(values: Tensor, places: tuple[int, int, int], n: int) -> Tensor:
    """Inverse of `to_bands`."""
    samples, height, width = places
    blocks = dct(n).t().to(values.device) @ values.reshape(len(values), n * n, -1)
    blocks = blocks.view(-1, n, n, samples, height // n, width // n).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(len(values), -1)


def largest_block(shape: tuple[int, ...], most: int) -> int:
    """The largest block of places, of 1, 2, 4 and 8 up to `most`, that a map (B, C, H, W) is whole ones of."""
    if len(shape) != 4:
        return 1
    return max((n for n in (2, 4, 8) if n <= most and shape[2] % n == 0 and shape[3] % n == 0), default=1)
