"""A range of its own for each row, and tensors as small as cut gradients or as large as their inverse."""

from dataclasses import fields

import pytest
import torch
from mutations import variants

from splitlearn.compressors import REGISTRY, Compressor

GENERATOR = torch.Generator().manual_seed(0)
SIGNED = torch.randn(3, 40, 50, generator=GENERATOR) * torch.rand(50, generator=GENERATOR).mul(3).exp()
SCOPED = [name for name, cls in REGISTRY.items() if "scope" in {field.name for field in fields(cls)}]
TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.03, torch.float64: 0.01}


def through(compressor: Compressor, x: torch.Tensor) -> torch.Tensor:
    compressor.seed(0)
    return compressor.decode(compressor.encode(x))


@pytest.mark.parametrize("name", SCOPED)
@pytest.mark.parametrize("shape", [(3, 40, 50), (120, 50), (3, 4, 10, 50)])
def test_a_row_is_coded_by_itself(name, shape):
    x = SIGNED.view(shape) * torch.rand(*shape[:-1], 1, generator=torch.Generator().manual_seed(1)).exp()
    found = through(REGISTRY[name](scope="row"), x).view(-1, 50)
    for row, own in zip(x.view(-1, 50), found, strict=True):
        assert torch.equal(own, through(REGISTRY[name](), row))


@pytest.mark.parametrize("name", SCOPED)
@pytest.mark.parametrize("shape", [(), (50,)])
def test_without_rows_the_scope_is_the_tensor(name, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(through(REGISTRY[name](scope="row"), x), through(REGISTRY[name](), x))


def relative_error(compressor: Compressor, x: torch.Tensor) -> float:
    compressor.load_state_dict({})
    found = through(compressor, x).double()
    return float((found - x.double()).norm() / x.double().norm())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", REGISTRY)
def test_the_relative_error_is_the_same_for_tiny_and_for_huge_values(name, signed, dtype):
    """2^-27, nearly 1e-8, is less than the smallest number of fp16, and what cut gradients may be. A power of two,
    as mf's scale is one."""
    for compressor in variants(name):
        x = (SIGNED if signed else SIGNED.relu()).to(dtype)
        expected = relative_error(compressor, x)
        for scale in (2.0**-27, 2.0**27):
            found = relative_error(compressor, (SIGNED * scale if signed else SIGNED.relu() * scale).to(dtype))
            assert found == pytest.approx(expected, rel=TOLERANCE[dtype], abs=1e-4), (compressor, scale)
