"""Which columns of a matrix are kept, and how many bits the entries of each get: all of it in (columns,) tensors."""

import torch
from torch import Tensor

LEAST = 1e-9  # of the largest weight: what has none is drawn where nothing else is left
FIRST_WIDTH, LARGEST_WIDTH = 2, 8  # a code of one bit would be a column's two ends alone: no nearer than its mean


def chances(weights: Tensor, num: int) -> Tensor:
    """(D,) float64: probabilities in proportion to the weights, at most 1, whose sum is `num`, from 1 to D.

    Args:
        weights: (D,), on the CPU, none negative.
    """
    if num == len(weights):
        return torch.ones(num, dtype=torch.float64)
    weights = weights.double()
    weights = weights + LEAST * weights.max() if weights.max() > 0 else torch.ones_like(weights)
    largest, order = weights.sort(descending=True, stable=True)
    sums = largest.flip(0).cumsum(0).flip(0)  # of each and all that are smaller
    left = num - torch.arange(len(weights))
    # The first from which on nothing has to be cut to 1.
    certain = int((left * largest <= sums).byte().argmax())
    found = weights * (num - certain) / sums[certain]
    return found.index_fill_(0, order[:certain], 1).clamp_(max=1)


def drawn(probabilities: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """(D,) bool, `num` of them true, each with its probability: systematic sampling (Madow, 1949).

    Points at a distance of 1, the first drawn from 0 to 1, fall on columns laid side by side, each as long as its
    probability.
    """
    first = torch.rand(1, generator=generator, dtype=torch.float64)
    found = torch.searchsorted(probabilities.cumsum(0), first + torch.arange(num), right=True)
    kept = torch.zeros(len(probabilities), dtype=torch.bool).index_fill_(0, found.clamp_(max=len(probabilities) - 1), 1)
    missing = num - int(kept.sum())
    if missing:  # where rounding put two points on one column
        kept[probabilities.masked_fill(kept, -1).topk(missing).indices] = True
    return kept


def widths_for(ranges: Tensor, num_rows: int, budget_bits: int, extra_bits: int) -> Tensor:
    """(columns,) int64, 0 or 2 to 8: bits of the codes of each column, of `num_rows` codes.

    Bits are given one after the other (at first two) to the column of the widest step, a step being range / 2^bits, as
    long as they and `extra_bits` for every column that has some are within the budget. For a given number of bits that
    is what makes the sum of the squared steps least, as each bit divides a step by two.

    Args:
        ranges: (columns,), on the CPU, none negative. Those of none get no bits.
    """
    turns = torch.arange(LARGEST_WIDTH - FIRST_WIDTH + 1)
    steps = (ranges.double().unsqueeze(1) / 2.0**turns).view(-1)
    costs = torch.full((len(ranges), len(turns)), num_rows)
    costs[:, 0] = FIRST_WIDTH * num_rows + extra_bits
    order = steps.argsort(descending=True, stable=True)
    given = (costs.view(-1)[order].cumsum(0) <= budget_bits) & (steps[order] > 0)
    taken = torch.zeros(len(steps), dtype=torch.int64).index_fill_(0, order[given], 1).view(costs.shape).sum(1)
    return torch.where(taken > 0, taken + FIRST_WIDTH - 1, 0)
