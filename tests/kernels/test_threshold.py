import pytest
import torch

from splitlearn.kernels.threshold import SHORT, SMALL, STRIDE, largest


def period(numel: int) -> torch.Tensor:
    """Every value that the strided sample sees is small."""
    return (torch.arange(numel) % STRIDE).float()


MAPS = {
    "random": lambda n: torch.randn(n, generator=torch.Generator().manual_seed(n)),
    "relu": lambda n: torch.randn(n, generator=torch.Generator().manual_seed(n)).relu(),
    "few values": lambda n: torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(n)).float(),
    "constant": lambda n: torch.full((n,), 2.5),
    "ascending": lambda n: torch.arange(n).float(),
    "descending": lambda n: -torch.arange(n).float(),
    "sample sees the smallest": period,
    "sample sees the largest": lambda n: -period(n),
}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.97, 1.0])
@pytest.mark.parametrize("numel", [1, 2, 97, SMALL - 1, SMALL, 3 * SMALL + 17, SHORT + 1])
@pytest.mark.parametrize("name", MAPS)
def test_the_first_of_the_largest(name, numel, share):
    x = MAPS[name](numel)
    k = max(1, round(share * numel))
    order = torch.sort(x, descending=True, stable=True)  # stable: of equal values the first come first
    positions, threshold = largest(x.unsqueeze(0), k)
    assert threshold.shape == (1, 1)
    assert torch.equal(positions, order.indices[:k].sort().values)
    assert threshold == order.values[k - 1]


@pytest.mark.parametrize("name", MAPS)
def test_rows_are_searched_each_by_itself(name):
    x = MAPS[name](7 * 1013).view(7, 1013)
    positions, thresholds = largest(x, 50)
    for row in range(7):
        expected, threshold = largest(x[row : row + 1], 50)
        assert torch.equal(positions.view(7, 50)[row] - row * 1013, expected)
        assert thresholds[row] == threshold


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    x = torch.randn(2 * SMALL, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = torch.sort(x, descending=True, stable=True)
    positions, threshold = largest(x.unsqueeze(0), 300)
    assert threshold == expected.values[299]
    assert torch.equal(positions, expected.indices[:300].sort().values)


def test_by_magnitude():
    x = torch.randn(3, SMALL, generator=torch.Generator().manual_seed(0))
    positions, threshold = largest(x, 99, by_magnitude=True)
    expected, same = largest(x.abs(), 99)
    assert torch.equal(positions, expected) and torch.equal(threshold, same)
