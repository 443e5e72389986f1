"""Probabilities that add up, draws that have them, and bits that are given where a plain loop gives them."""

import numpy as np
import pytest
import torch

from splitlearn.kernels.columns import chances, drawn, widths_for

WEIGHTS = {
    "spread": torch.rand(50, generator=torch.Generator().manual_seed(0)) ** 4,
    "even": torch.ones(50),
    "none": torch.zeros(50),
    "few": torch.cat([torch.rand(5, generator=torch.Generator().manual_seed(1)), torch.zeros(45)]),
    "one huge": torch.cat([torch.ones(49), torch.tensor([1e12])]),
}


@pytest.mark.parametrize("num", [1, 7, 20, 49, 50])
@pytest.mark.parametrize("name", WEIGHTS)
def test_probabilities_are_in_proportion_and_add_up(name, num):
    weights = WEIGHTS[name].double()
    found = chances(weights, num)
    assert found.sum().item() == pytest.approx(num) and (found > 0).all() and (found <= 1).all()
    below = found < 1 - 1e-9
    if weights.max() > 0 and below.any():
        shares = found[below] / (weights[below] + 1e-9 * weights.max())
        assert shares.max() == pytest.approx(shares.min().item())
        assert weights[below].max() <= weights[~below].min() if (~below).any() else True


@pytest.mark.parametrize("num", [1, 7, 20, 49, 50])
@pytest.mark.parametrize("name", WEIGHTS)
def test_as_many_as_asked_are_drawn_with_their_probabilities(name, num):
    probabilities, generator = chances(WEIGHTS[name], num), torch.Generator().manual_seed(3)
    draws = torch.stack([drawn(probabilities, num, generator) for _ in range(2000)])
    assert (draws.sum(1) == num).all()
    deviation = (probabilities * (1 - probabilities) / 2000).sqrt()
    assert ((draws.double().mean(0) - probabilities).abs() <= 5 * deviation + 1e-3).all()


def by_a_loop(ranges: np.ndarray, num_rows: int, budget: int, extra: int) -> np.ndarray:
    widths = np.zeros(len(ranges), int)
    while True:
        # Of a column without bits the range itself; else half the step for every bit beyond two.
        steps = np.where(widths == 0, ranges, ranges / 2.0 ** (widths - 1))
        steps[widths == 8] = 0
        widest = int(steps.argmax())
        cost = 2 * num_rows + extra if widths[widest] == 0 else num_rows
        if steps[widest] == 0 or cost > budget:
            return widths
        widths[widest] += 2 if widths[widest] == 0 else 1
        budget -= cost


@pytest.mark.parametrize("budget", [-5, 0, 100, 1000, 10_000, 10**6])
def test_bits_are_given_as_by_a_loop(budget):
    ranges = torch.rand(40, generator=torch.Generator().manual_seed(0)).double() ** 6
    ranges[::7] = 0
    found = widths_for(ranges, 10, budget, 8)
    assert found.tolist() == by_a_loop(ranges.numpy(), 10, budget, 8).tolist()
    assert (10 * found + 8 * (found > 0)).sum() <= max(budget, 0)
