"""Feature columns dropped by their deviation, and the others with as many bits as their range asks for (SplitFC)."""

from __future__ import annotations

import dataclasses
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from splitlearn.compressors.base import Compressor, check_lengths, check_range, num_kept, register
from splitlearn.compressors.fallback import WithFallback
from splitlearn.compressors.payload import Payload
from splitlearn.errors import PayloadError
from splitlearn.kernels.bits import pack, packed_nbytes, unpack
from splitlearn.kernels.columns import FIRST_WIDTH, LARGEST_WIDTH, chances, drawn, widths_for
from splitlearn.kernels.sections import padding_nbytes, view_as
from splitlearn.kernels.unit import from_unit, to_unit

HEAD_NBYTES = 24
COARSE = 2  # steps of the grid of the ends, that a range has to be for them to say where it is
WIDTH_BITS = 3  # 0 for none, 1 to 7 for codes of 2 to 8 bits
END_BITS = 8


@register("splitfc")
class FeatureWise(WithFallback):
    """Drops feature columns at random, the flat ones first, and quantises the others with levels that suit each.

    How it works: a batch is a matrix of B samples and D features. A column is kept with a probability in proportion to
    its standard deviation over the batch, 1 at most, and divided by it, as in dropout: in the mean over draws every
    value arrives. Of the columns that are kept, those of the smallest range are sent as their mean alone; the others
    have levels at even steps from their minimum to their maximum, more of them the wider they are, as `bits` allows.

    Chosen here, where we know no more of the paper than its abstract: the number of columns is the same in every draw
    (systematic sampling); ends and means have 8 bits, at even steps over the range of them all, one at 0; a code has 2
    to 8 bits, and one bit more goes to the column whose step is the widest; a column whose range is two such steps or
    less is its mean. Evaluation drops nothing. A tensor of one dimension or one sample, or that would not get smaller,
    is sent as it is.

    Its gradient: goes straight through, also that of columns that were dropped, or through the downlink's codec. In the
    paper they are dropped too, by the chain rule; under `backward=gated` they are here.

    Sections: the largest magnitude, the step of the ends and the place of the first (float64); a bit a column, whether
    it is kept; 3 bits a kept column, its width; minima or means; maxima; codes, column by column, by width; zeros where
    the payload would stand for more than 1,024 elements a byte.

    Args:
        ratio: share of the columns that is dropped in training, 0 ≤ ratio < 1.
        bits: an element of the tensor, of all sections, 0.05 to 8; more where a batch has so few samples that what
            describes the columns (11 bits each that is kept, and one each) is more than that.

    Source: Oh, Lee, Brinton and Jeon, "Communication-Efficient Split Learning via Adaptive Feature-Wise Compression",
        IEEE Transactions on Neural Networks and Learning Systems, 2025, arXiv:2307.10805.
    """

    codec: ClassVar[int] = 11
    meets_target: ClassVar[bool] = True
    ratio: float = 0.5
    bits: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_range("ratio", self.ratio, 0, 1, high_open=True)
        check_range("bits", self.bits, 0.05, 8)
        self._generator = torch.Generator()  # on the CPU for every device, so that the draws do not depend on it

    def seed(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    def for_evaluation(self) -> Compressor:
        return super().for_evaluation() if self.ratio == 0 else dataclasses.replace(self, ratio=0.0)

    def _described(self, num_columns: int) -> list[int]:
        """Lengths of the sections that there are whatever the values: head, what is kept, widths, minima or means."""
        num = num_kept(self.ratio, num_columns)
        return [HEAD_NBYTES, packed_nbytes(num_columns, 1), packed_nbytes(num, WIDTH_BITS), num]

    def _target_nbytes(self, numel: int) -> int:
        return int(self.bits * numel / 8)

    def coded_nbytes(self, shape: tuple[int, ...], itemsize: int) -> int | None:
        if len(shape) < 2 or shape[0] < 2:
            return None
        nbytes = max(self._target_nbytes(prod(shape)), sum(self._described(prod(shape[1:]))))
        return nbytes + padding_nbytes(prod(shape), nbytes)

    def to_coded(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        num_rows, numel = len(x), x.numel()
        matrix, scale = to_unit(x.view(num_rows, -1))
        kept, values = self._kept(matrix)
        low, high = values.aminmax(dim=0)
        grid = grid_of(low.min(), high.max())
        # Rounded outwards, so that all values lie between.
        lows, highs, means = (low / grid[0]).floor(), (high / grid[0]).ceil(), (values.mean(0) / grid[0]).round()
        ranges = torch.where(high - low > COARSE * grid[0], high - low, 0)
        described = self._described(matrix.shape[1])
        budget = self._target_nbytes(numel) - sum(described) - (LARGEST_WIDTH - FIRST_WIDTH)  # a part of a byte each
        widths = widths_for(ranges.cpu(), num_rows, 8 * budget, END_BITS).to(x.device)
        is_coded = widths > 0
        lows, highs = torch.where(is_coded, lows, means) - grid[1], highs[is_coded] - grid[1]
        lows, highs = (places.clamp_(0, 2**END_BITS - 1).to(torch.uint8) for places in (lows, highs))
        codes = []
        for width, columns in by_width(widths):
            column_low, step = levels_of(columns, is_coded, lows, highs, grid, width)
            steps = (values[:, columns] - column_low) / torch.where(step > 0, step, 1)
            codes.append(pack(steps.round_().clamp_(0, 2**width - 1).to(torch.uint8).T.reshape(-1), width))
        sections = [
            torch.cat([scale.view(1), grid]),
            pack(kept.to(torch.uint8), 1),
            pack((widths - is_coded.long()).to(torch.uint8), WIDTH_BITS),
            lows,
            highs,
            torch.cat([*codes, lows[:0]]),
        ]
        padding = padding_nbytes(numel, sum(section.numel() * section.itemsize for section in sections))
        return [*sections, lows.new_zeros(padding)], ()

    def _kept(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Which columns are kept, (D,) bool, and those, divided by the probability that they had."""
        num = num_kept(self.ratio, matrix.shape[1])
        if num == matrix.shape[1]:
            return torch.ones(num, dtype=torch.bool, device=matrix.device), matrix
        deviations = (matrix - matrix.mean(0)).square_().mean(0).sqrt_()
        probabilities = chances(deviations.float().cpu(), num)
        kept = drawn(probabilities, num, self._generator)
        return kept.to(matrix.device), matrix[:, kept.to(matrix.device)] / probabilities[kept].to(matrix.device)

    def from_coded(self, sections: list[Tensor], payload: Payload, params: tuple[int, ...]) -> Tensor:
        num_rows, num_columns = payload.shape[0], payload.shape[1:].numel()
        if len(sections) != 7:
            raise PayloadError(f"has {len(sections)} sections where 7 are needed")
        check_lengths(sections[:4], *self._described(num_columns))
        num = sections[3].numel()
        kept = unpack(sections[1], 1, num_columns).view(torch.bool).nonzero().view(-1)
        widths = unpack(sections[2], WIDTH_BITS, num).long()
        widths += widths > 0
        is_coded = widths > 0
        groups = by_width(widths)
        lengths = [packed_nbytes(num_rows * len(columns), width) for width, columns in groups]
        check_lengths(sections[4:6], int(is_coded.sum()), sum(lengths))
        check_lengths(sections[6:], padding_nbytes(payload.numel, sum(section.numel() for section in sections[:6])))
        if len(kept) != num:
            raise PayloadError(f"keeps {len(kept)} columns where its shape and ratio={self.ratio} ask for {num}")
        head, lows, highs = view_as(sections[0], torch.float64), sections[3], sections[4]
        scale, grid = head[0], head[1:]
        out = torch.zeros(num_rows, num_columns, dtype=payload.dtype, device=head.device)
        means = (lows[~is_coded] + grid[1]) * grid[0]
        out[:, kept[~is_coded]] = from_unit(means, scale, payload.dtype)
        start = 0
        for (width, columns), nbytes in zip(groups, lengths, strict=True):
            column_low, step = levels_of(columns, is_coded, lows, highs, grid, width)
            codes = unpack(sections[5][start : start + nbytes], width, num_rows * len(columns))
            values = column_low + codes.view(-1, num_rows).T * step
            out[:, kept[columns]] = from_unit(values, scale, payload.dtype)
            start += nbytes
        return out.view(-1)


def by_width(widths: Tensor) -> list[tuple[int, Tensor]]:
    """Every width of codes that there is, and the places of its columns, ascending."""
    found = [(width, (widths == width).nonzero().view(-1)) for width in range(FIRST_WIDTH, LARGEST_WIDTH + 1)]
    return [(width, columns) for width, columns in found if len(columns)]


def grid_of(low: Tensor, high: Tensor) -> Tensor:
    """(2,) float64: the step of a grid with 0 on it that ends and means are rounded to, and the place of its first."""
    size = torch.where(high > low, (high - low) / (2**END_BITS - 2), torch.where(high != 0, high.abs(), 1))
    return torch.stack([size, (low / size).floor()])


def levels_of(
    columns: Tensor, is_coded: Tensor, lows: Tensor, highs: Tensor, grid: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """The lowest level and the step of each of the columns, (n,) float64."""
    place = is_coded.cumsum(0) - 1  # among those that have a maximum
    low, high = ((places + grid[1]) * grid[0] for places in (lows[columns], highs[place[columns]]))
    return low, (high - low) / torch.tensor(2**width - 1, dtype=grid.dtype, device=grid.device)
