"""Low rank: the error is that of numpy's truncated SVD, and what the factors' rounding adds to it."""

import numpy as np
import pytest
import torch

from splitlearn.compressors import Payload
from splitlearn.compressors.low_rank import LowRank, leading_eigenvectors
from splitlearn.errors import PayloadError
from splitlearn.kernels.channels import by_channel


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


MAPS = {
    "wide": randn(12, 8, 5, 6),
    "tall": randn(300, 40),
    "tokens": randn(4, 30, 20),
    "of two kinds": randn(40, 2) @ randn(2, 500) + 0.01 * randn(40, 500),
}
ROUNDING = {"bf16": 2**-8, "int8": 1.5 / 127}  # of both factors, as a share of the norm


def through(compressor: LowRank, x: torch.Tensor) -> torch.Tensor:
    return compressor.decode(Payload.parse(compressor.encode(x).tensor))


@pytest.mark.parametrize("values", ["bf16", "int8"])
@pytest.mark.parametrize("matrix", ["samples", "channels"])
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", MAPS)
def test_the_error_is_that_of_the_truncated_svd(name, rank, matrix, values):
    x = MAPS[name]
    as_matrix = by_channel(x) if matrix == "channels" else x.flatten(1)
    left_out = np.linalg.svd(as_matrix.double().numpy(), compute_uv=False)[rank:]
    best = np.sqrt((left_out**2).sum())
    error = (through(LowRank(rank, matrix, values), x) - x).norm().item()
    assert best * (1 - 1e-6) <= error <= np.hypot(best, ROUNDING[values] * x.norm().item())


@pytest.mark.parametrize("values", ["bf16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_matrix_of_that_rank_comes_back(dtype, values):
    x = (randn(20, 3) @ randn(3, 400)).to(dtype)
    for rank in (3, 10):  # those beyond the third are noise of rounding, or nothing
        assert (through(LowRank(rank, values=values), x) - x).norm() < (ROUNDING[values] + 2**-8) * x.norm()


@pytest.mark.parametrize(("values", "nbytes"), [("bf16", 3 * (12 + 240) * 2 + 8), ("int8", 3 * (12 + 240) + 8 + 3 * 8)])
def test_the_bytes_are_the_factors(values, nbytes):
    payload = LowRank(3, values=values).encode(MAPS["wide"])
    assert sum(section.numel() for section in payload.sections) == nbytes


def test_what_decodes_is_bounded_by_the_bytes():
    x = torch.ones(2200, 2200)
    payload = LowRank(1, "samples", "int8").encode(x)
    assert x.numel() / 1024 <= payload.nbytes < x.numel() / 1024 + 200
    assert (through(LowRank(1, "samples", "int8"), x) - 1).abs().max() < 0.01


def test_what_would_not_get_smaller_is_sent_as_it_is():
    for x in (randn(500), randn(4, 4), torch.tensor(3.0)):
        assert torch.equal(through(LowRank(), x), x)
    row = randn(1, 500)  # is a factor
    assert 0 < (through(LowRank(values="bf16"), row) - row).norm() < 2**-8 * row.norm()


def test_eigenvectors_are_orthonormal_signed_and_without_those_of_nothing():
    of_rank_two = randn(6, 2).double() @ randn(2, 6).double()
    vectors = leading_eigenvectors(of_rank_two @ of_rank_two.T, 4)
    assert torch.allclose(vectors.T @ vectors, torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0]).double()), atol=1e-9)
    large = vectors[:, :2].abs() > 0.5 * vectors[:, :2].abs().amax(0)
    assert all(vectors[large[:, i].nonzero()[0], i] > 0 for i in range(2))


def test_other_options_are_refused():
    payload = LowRank(3, values="bf16").encode(MAPS["wide"])
    for other in (LowRank(4, values="bf16"), LowRank(3)):
        with pytest.raises(PayloadError, match=f"rank 3 .* rank={other.rank}, values={other.values}"):
            other.decode(payload)


@pytest.mark.parametrize("options", [{"rank": 0}, {"rank": 256}, {"matrix": "tokens"}, {"values": "fp16"}], ids=str)
def test_options_out_of_range_are_named(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        LowRank(**options)
