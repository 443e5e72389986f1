"""Grouped product quantisation: short runs of values by the nearest of a few that k-means finds (FedLite)."""

from itertools import pairwise
from math import prod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from splitlearn.compressors.base import check_lengths, check_range, register
from splitlearn.compressors.fallback import WithFallback
from splitlearn.compressors.payload import Payload
from splitlearn.errors import PayloadError
from splitlearn.kernels.bits import pack, packed_nbytes, unpack
from splitlearn.kernels.clusters import centroids_of, nearest
from splitlearn.kernels.sections import view_as
from splitlearn.kernels.unit import from_unit, to_unit

SCALE_NBYTES = 8


@register("fedlite")
class ProductQuantizer(WithFallback):
    """Cuts every sample into subvectors of `length` values and sends which of 2^bits centroids is the nearest to each.

    How it works: the q = ⌈D/length⌉ subvectors of a sample, in the order of its values in memory, are R groups by their
    position; the subvectors of a group, of all samples, are clustered by k-means anew for each batch, and share a
    codebook that travels with the payload: bits/length bits a value, and R·2^bits·length·16 for the codebooks.

    Chosen here: centroids are bf16, after division by the largest magnitude; k-means++ starts them from a fixed seed,
    so that the same batch gives the same bytes; a sample's last subvector is filled up with zeros. A tensor of one
    dimension is one sample. What would not get smaller is sent as it is.

    Its gradient: goes straight through, or is compressed by the downlink's codec. The paper's gradient correction, λ
    times what quantisation left out added to it at the client, is no codec's to make, and is not there.

    Sections: the largest magnitude, float64; codebooks (R, 2^bits, length), bf16; codes of `bits` bits, group by group.
    Parameters: bits, length, groups.

    Args:
        length: values of a subvector, 1 to 128.
        bits: width of a code, 1 to 8.
        groups: R, codebooks, 1 to 64; at most one for each subvector of a sample.
        iterations: of k-means, at most, 1 to 100.

    Source: Wang et al., "FedLite: A Scalable Approach for Federated Learning on Resource-constrained Clients",
        arXiv:2201.11865.
    """

    codec: ClassVar[int] = 12
    length: int = 4
    bits: int = 4
    groups: int = 1
    iterations: int = 10

    def __post_init__(self):
        super().__post_init__()
        check_range("length", self.length, 1, 128)
        check_range("bits", self.bits, 1, 8)
        check_range("groups", self.groups, 1, 64)
        check_range("iterations", self.iterations, 1, 100)

    def _layout(self, shape: tuple[int, ...]) -> tuple[int, int, list[int]]:
        """Samples, values of each, and the subvectors of a sample in each group."""
        num_samples = shape[0] if len(shape) > 1 else 1
        sample_numel = prod(shape) // num_samples
        num_subvectors = -(-sample_numel // self.length)
        num_groups = min(self.groups, num_subvectors)
        borders = [group * num_subvectors // num_groups for group in range(num_groups + 1)]
        return num_samples, sample_numel, [stop - start for start, stop in pairwise(borders)]

    def _lengths(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        num_samples, _, widths = self._layout(shape)
        codes = sum(packed_nbytes(num_samples * width, self.bits) for width in widths)
        return SCALE_NBYTES, len(widths) * 2**self.bits * self.length * 2, codes

    def coded_nbytes(self, shape: tuple[int, ...], itemsize: int) -> int | None:
        return sum(self._lengths(shape))

    def to_coded(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        num_samples, sample_numel, widths = self._layout(x.shape)
        values, scale = to_unit(x)
        values = pad(values.view(num_samples, sample_numel), (0, sum(widths) * self.length - sample_numel))
        codebooks, codes = [], []
        for part in values.view(num_samples, -1, self.length).split(widths, 1):
            points = part.reshape(-1, self.length)
            codebooks.append(centroids_of(points, 2**self.bits, self.iterations).bfloat16())
            codes.append(pack(nearest(points, codebooks[-1].double()).to(torch.uint8), self.bits))
        return [scale.view(1), torch.stack(codebooks), torch.cat(codes)], (self.bits, self.length, self.groups)

    def from_coded(self, sections: list[Tensor], payload: Payload, params: tuple[int, ...]) -> Tensor:
        if params[:3] != (self.bits, self.length, self.groups):
            raise PayloadError(
                f"has bits={params[0]}, length={params[1]}, groups={params[2]}; this compressor has bits={self.bits},"
                f" length={self.length}, groups={self.groups}"
            )
        check_lengths(sections, *self._lengths(payload.shape))
        num_samples, sample_numel, widths = self._layout(payload.shape)
        codebooks = view_as(sections[1], torch.bfloat16).double()
        codebooks = from_unit(codebooks, view_as(sections[0], torch.float64), payload.dtype)
        out, start = [], 0
        for codebook, width in zip(codebooks.view(-1, 2**self.bits, self.length), widths, strict=True):
            stop = start + packed_nbytes(num_samples * width, self.bits)
            codes = unpack(sections[2][start:stop], self.bits, num_samples * width)
            out.append(codebook.index_select(0, codes.int()).view(num_samples, -1))
            start = stop
        return torch.cat(out, 1)[:, :sample_numel].reshape(-1)
