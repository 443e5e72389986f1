"""Rows as they are kept in memory."""

import pytest
import torch

from splitlearn.kernels import keeping

ERROR = {"fp32": 0.0, "bf16": 0.003, "uint8": 0.015}


@pytest.mark.parametrize("kind", keeping.KINDS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_row_comes_back(kind, scale, noise):
    x = noise(7, 65, relu=True) * scale
    packed = keeping.pack(x, kind)
    assert packed.dtype == torch.uint8 and packed.shape == (7, keeping.row_nbytes(65, kind))
    found = keeping.unpack(packed, 65, kind)
    assert found.dtype == torch.float32 and (found - x).norm() <= ERROR[kind] * x.norm()
    assert torch.equal(keeping.pack(found, kind), packed) or kind == "uint8"
    assert torch.equal(found == 0, x == 0)


@pytest.mark.parametrize("kind", keeping.KINDS)
def test_no_bytes_are_zeros_and_zeros_come_back(kind):
    nothing = torch.zeros(2, keeping.row_nbytes(5, kind), dtype=torch.uint8)
    assert torch.equal(keeping.unpack(nothing, 5, kind), torch.zeros(2, 5))
    assert torch.equal(keeping.unpack(keeping.pack(torch.zeros(2, 5), kind), 5, kind), torch.zeros(2, 5))


def test_a_row_of_one_value_and_what_is_not_finite_do_no_harm():
    x = torch.tensor([[3.0, 3.0], [torch.nan, 1.0], [torch.inf, -torch.inf]])
    assert torch.equal(keeping.unpack(keeping.pack(x, "uint8"), 2, "uint8")[0], x[0])


@pytest.mark.parametrize("kind", keeping.KINDS)
def test_the_size_is_as_stated(kind):
    assert keeping.row_nbytes(384, kind) == {"fp32": 1536, "bf16": 768, "uint8": 388}[kind]
