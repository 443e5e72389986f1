"""A batch as a matrix of low rank: its leading singular vectors (truncated SVD)."""

from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from splitlearn.compressors.base import check_choice, check_lengths, check_range, register
from splitlearn.compressors.fallback import WithFallback
from splitlearn.compressors.payload import Payload
from splitlearn.errors import PayloadError
from splitlearn.kernels.channels import by_channel, from_channels, matrix_shape
from splitlearn.kernels.sections import padding_nbytes, view_as
from splitlearn.kernels.unit import from_unit, to_unit

VALUES = {"bf16": torch.bfloat16, "int8": torch.int8}
TOP = 127
SCALE_NBYTES = 8
NOTHING = 1e-12  # share of the largest squared singular value that is rounding


@register("low_rank")
class LowRank(WithFallback):
    """Sends the matrix of rank r that is nearest to the batch, as two factors of r columns and r rows.

    How it works: of A (m×n) the r leading left singular vectors U are sent, and UᵀA; what decodes is U·UᵀA, whose
    squared error is the sum of the other squared singular values (Eckart and Young), and the rounding of the factors.
    They are found from the eigenvectors of the smaller one of AAᵀ and AᵀA in double precision, of which the largest
    that is sensible has one to two thousand rows. Nothing is kept from batch to batch. A batch of more classes than r
    cannot keep them all apart, and what is sensible for 32 samples is too little for 256.

    Tensors of one dimension, and those that this would not make smaller, are sent as they are.

    Sections: the largest magnitude, float64; with int8 a scale for each column and row, float32; the columns and then
    the rows; zeros where the payload would stand for more than 1,024 elements a byte. Parameters: rank; values.

    Args:
        rank: r, 1 to 255; at most the smaller side of the matrix.
        matrix: "samples" for a row a sample (dimension 0); "channels" for a row a channel (dimension 1, or the last of
            three).
        values: factors in "int8", which adds next to no error, or "bf16".

    Source: Eckart and Young, "The approximation of one matrix by another of lower rank", Psychometrika, 1936; fitted to
        each batch anew.
    """

    codec: ClassVar[int] = 14
    rank: int = 8
    matrix: str = "samples"
    values: str = "int8"

    def __post_init__(self):
        super().__post_init__()
        check_range("rank", self.rank, 1, 255)
        check_choice("matrix", self.matrix, ("samples", "channels"))
        check_choice("values", self.values, tuple(VALUES))

    def _sides(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """m, n and the rank for a tensor of two or more dimensions."""
        num_rows, num_columns = matrix_shape(shape) if self.matrix == "channels" else (shape[0], prod(shape[1:]))
        return num_rows, num_columns, min(self.rank, num_rows, num_columns)

    def _lengths(self, shape: tuple[int, ...]) -> list[int]:
        num_rows, num_columns, rank = self._sides(shape)
        lengths = [SCALE_NBYTES, 8 * rank if self.values == "int8" else 0]
        lengths.append(rank * (num_rows + num_columns) * VALUES[self.values].itemsize)
        return [*lengths, padding_nbytes(prod(shape), sum(lengths))]

    def coded_nbytes(self, shape: tuple[int, ...], itemsize: int) -> int | None:
        return sum(self._lengths(shape)) if len(shape) > 1 else None

    def to_coded(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        rank = self._sides(x.shape)[2]
        matrix, scale = to_unit(by_channel(x) if self.matrix == "channels" else x.view(len(x), -1))
        if matrix.shape[0] <= matrix.shape[1]:
            left = leading_eigenvectors(matrix @ matrix.T, rank)
            right = left.T @ matrix
        else:
            right = leading_eigenvectors(matrix.T @ matrix, rank).T
            left = matrix @ right.T
        factors = torch.cat([left, right.T])
        if self.values == "bf16":
            scales, factors = x.new_empty(0), factors.bfloat16()
        else:
            both = torch.stack([left.abs().amax(0), right.abs().amax(1)]).float()
            scales = torch.where(both > 0, both, 1)
            factors = (factors / self._per_entry(scales, *matrix.shape) * TOP).round_().clamp_(-TOP, TOP).to(torch.int8)
        padding = torch.zeros(self._lengths(x.shape)[-1], dtype=torch.uint8, device=x.device)
        return [scale.view(1), scales, factors, padding], (rank, list(VALUES).index(self.values))

    def _per_entry(self, scales: Tensor, num_rows: int, num_columns: int) -> Tensor:
        """The scale of every entry of the factors, (m + n, r) float64."""
        counts = torch.tensor([num_rows, num_columns], device=scales.device)
        return scales.double().repeat_interleave(counts, 0)

    def from_coded(self, sections: list[Tensor], payload: Payload, params: tuple[int, ...]) -> Tensor:
        num_rows, num_columns, rank = self._sides(payload.shape)
        if params[:2] != (rank, list(VALUES).index(self.values)):
            raise PayloadError(
                f"is of rank {params[0]} with values of kind {params[1]}; this compressor has rank={self.rank},"
                f" values={self.values}"
            )
        check_lengths(sections, *self._lengths(payload.shape))
        factors = view_as(sections[2], VALUES[self.values]).view(-1, rank).double()
        if self.values == "int8":
            scales = view_as(sections[1], torch.float32).view(2, rank)
            factors *= self._per_entry(scales, num_rows, num_columns) / TOP
        matrix = factors[:num_rows] @ factors[num_rows:].T
        out = from_unit(matrix, view_as(sections[0], torch.float64), payload.dtype)
        return from_channels(out, payload.shape).contiguous() if self.matrix == "channels" else out.view(-1)


def leading_eigenvectors(square: Tensor, num: int) -> Tensor:
    """The eigenvectors of the `num` largest eigenvalues of a symmetric positive matrix (m, m), as columns (m, num).

    Found on the CPU for every device. The first entry of some size is positive, so that they are the same on every
    machine where no two eigenvalues are. Those of an eigenvalue that is nothing but rounding are zero.
    """
    values, vectors = torch.linalg.eigh(square.cpu())
    values, vectors = values.flip(0)[:num], vectors.flip(1)[:, :num]
    first = (vectors.abs() > 0.5 * vectors.abs().amax(0)).byte().argmax(0, keepdim=True)
    signs = vectors.gather(0, first).sign()
    return (vectors * signs * (values > NOTHING * values[0])).to(square.device)
