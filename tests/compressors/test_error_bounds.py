"""Bounds of the squared error ‖x̂-x‖², which Theorem 4 of the MS paper (Eq. 31-33) compares the compressors by.

With d values, the k largest of them kept, T the smallest of those, and L = 2^b-1:

    quantisation    d·((max-min)/2L)²
    sparsification  (1-k/d)·‖x‖²
    the mask        (d-k)·(T/L)², and, since k·T² ≤ ‖x‖², (d-k)/(k·L²)·‖x‖²; never more than sparsification
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlearn.compressors import MaskSparsifier, TopKSparsifier, UniformQuantizer
from splitlearn.compressors.base import num_kept

SLACK = 1 + 1e-5


@st.composite
def maps(draw) -> torch.Tensor:
    """Activations of many kinds: of different sizes, spreads and tails, dense and sparse, with a sign and without."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x = torch.randn(draw(st.integers(40, 3000)), generator=generator)
    x = x * (draw(st.sampled_from([0.0, 0.5, 2.0])) * torch.randn(x.shape, generator=generator)).exp()
    x = 10.0 ** draw(st.integers(-4, 4)) * (x + draw(st.sampled_from([-1.0, 0.0, 1.0])))
    return x.relu() if draw(st.booleans()) else x


def squared_error(compressor, x: torch.Tensor) -> float:
    return (compressor.decode(compressor.encode(x)).double() - x.double()).square().sum().item()


@settings(max_examples=30, deadline=None)
@given(maps(), st.integers(1, 8))
def test_quantisation(x, bits):
    half_step = (x.max() - x.min()).item() / (2 * (2**bits - 1))
    rounding = (2**-22 * x.abs().max().item()) ** 2  # of float32, where all values lie far from zero
    assert squared_error(UniformQuantizer(bits=bits), x) <= x.numel() * (half_step**2 * SLACK + rounding)


@settings(max_examples=30, deadline=None)
@given(maps(), st.sampled_from([0.0, 0.5, 0.9, 0.95875, 0.99]))
def test_sparsification(x, ratio):
    k, norm = num_kept(ratio, x.numel()), x.double().square().sum().item()
    assert squared_error(TopKSparsifier(ratio=ratio), x) <= (1 - k / x.numel()) * norm * SLACK


@pytest.mark.parametrize("rounding", ["floor", "nearest"])
@settings(max_examples=30, deadline=None)
@given(x=maps(), ratio=st.sampled_from([0.5, 0.9, 0.95875, 0.99]), bits=st.integers(1, 8))
def test_the_mask(rounding, x, ratio, bits):
    d, k, steps = x.numel(), num_kept(ratio, x.numel()), 2**bits - 1
    error, norm = squared_error(MaskSparsifier(ratio, bits, rounding), x), x.double().square().sum().item()
    threshold = x.abs().double().topk(k).values[-1].item()
    assert error <= (d - k) * (threshold / steps) ** 2 * SLACK
    assert error <= (d - k) / (k * steps**2) * norm * SLACK
    assert error <= squared_error(TopKSparsifier(ratio=ratio), x) * SLACK
