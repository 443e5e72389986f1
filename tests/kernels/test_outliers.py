"""Which rows go apart, and that they come back."""

import pytest
import torch

from splitlearn.kernels import outliers

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
X = torch.randn(4, 32, 16, generator=torch.Generator().manual_seed(0))


def with_first(factor: float, shape: tuple[int, ...] = X.shape) -> torch.Tensor:
    x = X.clone()
    x[:, 0] *= factor
    return x.view(shape)


def test_rows_over_twenty_medians_are_found():
    assert outliers.find(with_first(100)).tolist() == [0, 32, 64, 96]
    unit = torch.nn.functional.normalize(X, dim=-1)
    for factor, found in ((19.9, []), (20.1, [33])):
        x = unit.clone()
        x[1, 1] *= factor
        assert outliers.find(x).tolist() == found


@pytest.mark.parametrize("shape", [(128, 16), (4, 8, 8, 8), (2048,), ()], ids=str)
def test_other_shapes_have_none(shape):
    assert not outliers.find(with_first(100, shape) if shape else torch.tensor(1.0)).numel()


def test_many_large_rows_are_no_exceptions():
    x = X.clone()
    x[:, :3] *= 1000  # 12 of 128
    assert not outliers.find(x).numel()
    x = torch.zeros_like(X)
    x[0, 0] = 1  # beside nothing
    assert not outliers.find(x).numel()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e4, 1e30])
def test_any_size_and_dtype(dtype, scale):
    if dtype == torch.float16 and scale != 1:
        pytest.skip("has no such numbers")
    x = (with_first(100) * scale).to(dtype)
    rows = outliers.find(x)
    assert rows.tolist() == [0, 32, 64, 96]
    rest, section = outliers.split(x, rows)
    assert not rest[:, 0].any() and torch.equal(rest[:, 1:], x[:, 1:]) and x[:, 0].any()
    assert outliers.num_bits(rows.numel(), x.shape) == 8 * section.numel()
    outliers.restore(rest, section, x.shape)
    assert torch.equal(rest[:, 1:], x[:, 1:])
    assert torch.allclose(rest[:, 0], x[:, 0], rtol=2**-8, atol=0)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 3.4e38), (torch.float64, 1e308)], ids=str)
def test_what_bfloat16_does_not_hold_comes_back_finite(dtype, largest):
    x = X.to(dtype)
    x[0, 0] = largest
    rest, section = outliers.split(x, outliers.find(x))
    outliers.restore(rest, section, x.shape)
    assert rest.isfinite().all() and rest[0, 0, 0] > 3e38
