"""Sparsification: top-k (SP) and randomised top-k (RT). The k kept values and where they were; zero everywhere else."""

import dataclasses
from collections.abc import Iterator
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from splitlearn.compressors.base import (
    Compressor,
    check_lengths,
    check_range,
    num_kept,
    register,
)
from splitlearn.compressors.payload import Payload
from splitlearn.errors import PayloadError
from splitlearn.kernels.bits import pack_spans, packed_nbytes, unpack_spans
from splitlearn.kernels.blocks import empty, places, spans, split_at
from splitlearn.kernels.sections import view_as
from splitlearn.kernels.threshold import largest

BITMAP, INDICES = 0, 1
MOST_INDEXED = 1 << 31  # elements that an int32 index reaches
MOST_TAKEN = 8  # where less than one in so many places is left free, draws take long to hit one, and all are shuffled


@register("sp")
class TopKSparsifier(Compressor):
    """Keeps the k = ⌊(1-ratio)·d⌋ values of largest magnitude (at least one) of a tensor of d elements.

    Sections: the values, in their order in the tensor; their positions as a bitmap of d bits or as k int32 indices,
    whichever is smaller; beyond 2^31 elements always a bitmap.

    Args:
        ratio: share of the values that is dropped, 0 ≤ ratio < 1.

    Source: baseline SP of the MS paper (ECAI 2024).
    """

    codec: ClassVar[int] = 2
    ratio: float = 0.95875

    def __post_init__(self):
        super().__post_init__()
        check_range("ratio", self.ratio, 0, 1, high_open=True)

    def positions(self, x: Tensor) -> Tensor:
        """Ascending positions of the values that are kept of `x` (d,)."""
        return largest(x.unsqueeze(0), num_kept(self.ratio, x.numel()), by_magnitude=True)[0]

    def to_sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        x = x.view(-1)
        positions = self.positions(x)
        if _takes_bitmap(positions.numel(), x.numel()):
            bitmap = pack_spans(_marks(positions, x.numel()), x.numel(), 1, x.device)
            return [x.index_select(0, positions), bitmap], (BITMAP,)
        return [x.index_select(0, positions), positions.to(torch.int32)], (INDICES,)

    def from_sections(self, sections: list[Tensor], payload: Payload) -> Tensor:
        numel = payload.numel
        k = num_kept(self.ratio, numel)
        kind = BITMAP if _takes_bitmap(k, numel) else INDICES
        if payload.params[0] != kind:
            raise PayloadError("gives the positions in another form than its shape and ratio ask for")
        check_lengths(sections, k * payload.dtype.itemsize, packed_nbytes(numel, 1) if kind == BITMAP else 4 * k)
        if kind == BITMAP:
            marks = unpack_spans(sections[1], 1, numel)
            positions = torch.cat([places(mark.view(torch.bool)).add_(span.start) for span, mark in marks])
            valid = positions.numel() == k
        else:
            positions = view_as(sections[1], torch.int32).long()
            valid = positions[0] >= 0 and positions[-1] < numel and bool((positions.diff() > 0).all())
        if not valid:
            raise PayloadError(f"does not name {k} positions of {numel}")
        out = empty(numel, payload.dtype, sections[0].device).zero_()
        return out.index_copy_(0, positions, view_as(sections[0], payload.dtype))

    def code_bits(self, params: tuple[int, ...]) -> tuple[int, ...]:
        return (1,) if params[0] == BITMAP else ()

    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        numel = prod(shape)
        k = num_kept(self.ratio, numel)
        return value_bits * k + (numel if _takes_bitmap(k, numel) else 32 * k)


def _marks(positions: Tensor, numel: int) -> Iterator[Tensor]:
    """Span by span: 1 at the ascending `positions`, else 0."""
    for span, here in zip(spans(numel, positions.device), split_at(positions, numel), strict=True):
        marks = torch.zeros(span.stop - span.start, dtype=torch.uint8, device=positions.device)
        yield marks.index_fill_(0, here, 1)


def _takes_bitmap(k: int, numel: int) -> bool:
    return numel > MOST_INDEXED or packed_nbytes(numel, 1) <= 4 * k


@register("rt")
class RandomTopKSparsifier(TopKSparsifier):
    """Keeps k values drawn without replacement: each draw is one of the top k with probability 1-alpha, else another.

    Evaluation keeps the top k, as its authors do.

    Args:
        ratio: share of the values that is dropped, 0 ≤ ratio < 1.
        alpha: probability that a draw leaves the top k, 0 ≤ alpha ≤ 1.

    Source: randomised top-k, IJCAI 2023; baseline RT of the MS paper (ECAI 2024).
    """

    codec: ClassVar[int] = 3
    ratio: float = 0.95875
    alpha: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check_range("alpha", self.alpha, 0, 1)
        # On the CPU for every device, so that the draws do not depend on it.
        self._generator = torch.Generator()

    def seed(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    def for_evaluation(self) -> Compressor:
        return dataclasses.replace(self, alpha=0.0)

    def positions(self, x: Tensor) -> Tensor:
        top = super().positions(x)
        k, numel = top.numel(), x.numel()
        num_others = int((torch.rand(k, generator=self._generator) < self.alpha).sum())
        num_others = min(num_others, numel - k)
        if not num_others:
            return top
        kept = top[torch.randperm(k, generator=self._generator)[: k - num_others].to(top.device)]
        taken = torch.zeros(numel, dtype=torch.bool, device=x.device)
        taken[top] = True
        parts = [kept]
        if numel - k - num_others < numel // MOST_TAKEN:
            free = places(~taken)
            parts.append(free[torch.randperm(free.numel(), generator=self._generator)[:num_others].to(free.device)])
            num_others = 0
        while num_others:  # draw, and put back what was taken before
            drawn = torch.randint(numel, (2 * num_others,), generator=self._generator).to(top.device)
            drawn = drawn[~taken[drawn]].unique()
            shuffled = drawn[torch.randperm(drawn.numel(), generator=self._generator).to(top.device)]
            parts.append(shuffled[:num_others])
            taken[parts[-1]] = True
            num_others -= parts[-1].numel()
        return torch.cat(parts).sort().values
