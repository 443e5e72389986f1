import pytest
import torch

from splitlearn.compressors import UniformQuantizer
from splitlearn.compressors.bits import packed_nbytes
from splitlearn.errors import PayloadError

X = torch.randn(3, 1001, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", range(1, 9))
def test_error_is_at_most_half_a_step_and_the_ends_are_exact(bits):
    compressor = UniformQuantizer(bits=bits)
    payload = compressor.encode(X)
    assert [section.numel() for section in payload.sections] == [8, packed_nbytes(3003, bits)]
    decoded = compressor.decode(payload)
    step = (X.max() - X.min()) / (2**bits - 1)
    assert (decoded - X).abs().max() <= step / 2 * (1 + 1e-5)
    torch.testing.assert_close(torch.stack(decoded.aminmax()), torch.stack(X.aminmax()))


def test_a_constant_is_exact():
    x = torch.full((10,), -3.25)
    assert torch.equal(UniformQuantizer().decode(UniformQuantizer().encode(x)), x)


def test_the_widest_range_does_not_overflow():
    x = torch.tensor([-3e38, 0.0, 3e38])
    decoded = UniformQuantizer(bits=1).decode(UniformQuantizer(bits=1).encode(x))
    assert decoded.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("ends", [(0, 1), (-1, 0), (-1, 1), (0.25, 1), (1, 1)], ids=str)
def test_the_largest_values_come_back_to_half_a_step(dtype, bits, ends):
    top = torch.finfo(dtype).max
    shares = torch.linspace(*ends, 50, dtype=torch.float64)
    x = (shares * top).to(dtype)
    error = UniformQuantizer(bits=bits).decode(UniformQuantizer(bits=bits).encode(x)).double() / top - shares
    assert error.abs().max() <= (ends[1] - ends[0]) / (2**bits - 1) / 2 + 1e-6


def test_another_width_is_refused():
    with pytest.raises(PayloadError, match="bits"):
        UniformQuantizer(bits=4).decode(UniformQuantizer(bits=5).encode(X))


def test_a_width_out_of_range_is_named():
    with pytest.raises(ValueError, match="bits=9"):
        UniformQuantizer(bits=9)
