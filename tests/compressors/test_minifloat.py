import itertools
import math

import pytest
import torch

from splitlearn.compressors import Minifloat, Payload
from splitlearn.errors import PayloadError
from splitlearn.kernels import blocks
from splitlearn.kernels.bits import packed_nbytes, unpack

X = torch.randn(3, 1001, generator=torch.Generator().manual_seed(0))
FORMATS = [(e, m) for e, m in itertools.product(range(1, 6), range(7)) if 1 + e + m <= 8]
SOME_FORMATS = [(1, 0), (1, 6), (2, 3), (4, 3), (5, 0), (5, 2)]
FP8 = [(4, 3, torch.float8_e4m3fn), (5, 2, torch.float8_e5m2)]


def through(compressor: Minifloat, x: torch.Tensor) -> torch.Tensor:
    return compressor.decode(Payload.parse(compressor.encode(x).tensor))


def nearest_even(x: torch.Tensor, magnitudes: torch.Tensor, has_mantissa: bool) -> torch.Tensor:
    """By the definition: the codes of the nearest magnitudes; of two equally near the even, or larger power of two."""
    distances = (x.abs().view(-1, 1) - magnitudes).abs()
    near = distances == distances.amin(1, keepdim=True)
    first, last = near.int().argmax(1), near.shape[1] - 1 - near.flip(1).int().argmax(1)
    return torch.where((first % 2 == 0) if has_mantissa else (first == 0), first, last)


@pytest.mark.parametrize(("exponent_bits", "mantissa_bits", "dtype"), FP8)
def test_codes_stand_for_the_finite_values_of_fp8(exponent_bits, mantissa_bits, dtype):
    compressor = Minifloat(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits)
    largest = compressor.magnitudes()[-1].item()  # keeps the scale at 1
    # Every code is decoded from a payload that names it.
    codes = torch.arange(256, dtype=torch.uint8)
    payload = Payload.pack(compressor.codec, torch.zeros(256), [torch.ones(1), codes], (exponent_bits, mantissa_bits))
    decoded, expected = compressor.decode(payload), codes.view(dtype).float()
    finite = expected.isfinite()
    assert finite.sum() >= 248
    assert torch.equal(decoded[finite], expected[finite])
    assert decoded.isfinite().all() and decoded.abs().max() == largest


@pytest.mark.parametrize(("exponent_bits", "mantissa_bits", "dtype"), FP8)
def test_values_are_rounded_as_to_fp8(exponent_bits, mantissa_bits, dtype):
    finite = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    finite = finite[finite.isfinite()].sort().values
    middles = (finite[1:] + finite[:-1]) / 2
    zero = torch.zeros(())
    beside = [torch.nextafter(middles, zero + to) for to in (-math.inf, math.inf)]
    x = torch.cat((finite, middles, *beside, X.view(-1), 100 * X.view(-1), 0.001 * X.view(-1)))
    compressor = Minifloat(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits)
    x = torch.cat((x, compressor.magnitudes()[-1:].float()))  # keeps the scale at 1
    payload = compressor.encode(x)
    assert payload.sections[0].view(torch.float32) == 1
    assert torch.equal(compressor.decode(payload)[:-1], x[:-1].to(dtype).float())
    assert torch.equal(payload.sections[1][:-1], x[:-1].to(dtype).view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("exponent_bits", "mantissa_bits"), FORMATS)
def test_every_format_rounds_to_the_nearest_and_to_even_between_two(exponent_bits, mantissa_bits, dtype, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", 64)
    compressor = Minifloat(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits)
    magnitudes = compressor.magnitudes()
    assert magnitudes.numel() == 2 ** (exponent_bits + mantissa_bits) and (magnitudes.diff() > 0).all()
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    random = magnitudes[-1] * torch.rand(300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.cat((magnitudes, middles, random, random / 50, -magnitudes, -middles, -random)).to(dtype)
    payload = compressor.encode(x)
    assert payload.sections[0].view(dtype) == 1
    codes = unpack(payload.sections[1], 1 + exponent_bits + mantissa_bits, x.numel())
    expected = nearest_even(x.double(), magnitudes, mantissa_bits > 0)
    assert torch.equal(codes % magnitudes.numel(), expected.to(torch.uint8))
    assert torch.equal(compressor.decode(payload).double(), magnitudes[expected] * x.sign())
    assert torch.equal(through(compressor, magnitudes.to(dtype)), magnitudes.to(dtype))


@pytest.mark.parametrize("factor", [1.0, 1e-3, 7.3e5, 2.0**-20])
@pytest.mark.parametrize(("exponent_bits", "mantissa_bits"), SOME_FORMATS)
def test_the_scale_is_the_smallest_power_of_two_that_fits(exponent_bits, mantissa_bits, factor):
    compressor = Minifloat(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits)
    largest = compressor.magnitudes()[-1]
    x = factor * X
    scale = compressor.encode(x).sections[0].view(torch.float32).double()
    assert math.frexp(scale.item())[0] == 0.5
    assert largest * scale / 2 < x.abs().max() <= largest * scale
    assert torch.equal(through(compressor, 4 * x), 4 * through(compressor, x))


@pytest.mark.parametrize(("exponent_bits", "mantissa_bits"), SOME_FORMATS)
def test_error_is_at_most_half_a_mantissa_step_or_half_a_subnormal(exponent_bits, mantissa_bits):
    compressor = Minifloat(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits)
    scale = compressor.encode(X).sections[0].view(torch.float32)
    smallest = compressor.magnitudes()[1] * scale
    bound = torch.maximum(X.abs().double() * 2.0 ** -(mantissa_bits + 1), smallest / 2)
    assert ((through(compressor, X).double() - X).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("exponent_bits", "mantissa_bits"), SOME_FORMATS)
def test_the_largest_and_smallest_numbers_of_a_dtype(exponent_bits, mantissa_bits, dtype):
    compressor = Minifloat(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits)
    info = torch.finfo(dtype)
    x = torch.tensor([info.max, -info.max, info.max / 2, 0], dtype=dtype)
    decoded = through(compressor, x)
    assert decoded.isfinite().all()
    if exponent_bits > 1:  # else half of the largest is rounded as the smallest codes are
        assert ((decoded - x).abs() <= x.abs() * 2.0 ** -(mantissa_bits + 1)).all()
    if compressor.magnitudes()[-1] / 2 > 1:  # else the smallest scale that is a number is too large
        smallest = torch.tensor([info.smallest_normal * info.eps, 0.0], dtype=dtype)
        assert torch.equal(through(compressor, smallest), smallest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("exponent_bits", "mantissa_bits"), SOME_FORMATS)
def test_exact_byte_count(exponent_bits, mantissa_bits, dtype):
    compressor = Minifloat(exponent_bits=exponent_bits, mantissa_bits=mantissa_bits)
    payload = compressor.encode(X.to(dtype))
    bits = 1 + exponent_bits + mantissa_bits
    assert [section.numel() for section in payload.sections] == [max(4, dtype.itemsize), packed_nbytes(3003, bits)]
    assert payload.params == (exponent_bits, mantissa_bits, 0, 0, 0, 0)
    assert compressor.formula_bits(X.shape) == 3003 * bits + 32


@pytest.mark.parametrize("options", [{"exponent_bits": 3}, {"mantissa_bits": 2}])
def test_other_options_on_the_other_side_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(PayloadError, match=f"{name}={value}"):
        Minifloat(**options).decode(Minifloat().encode(X))


def test_a_payload_that_does_not_fit_its_shape_is_refused():
    sections = [section.clone() for section in Minifloat().encode(X).sections]
    for like, parts in ((X[:2], sections), (X, sections[:1]), (X.double(), sections)):
        with pytest.raises(PayloadError, match="sections of"):
            Minifloat().decode(Payload.pack(Minifloat.codec, like, parts, (4, 3)))


@pytest.mark.parametrize(
    "options",
    [{"exponent_bits": 0}, {"exponent_bits": 6}, {"mantissa_bits": -1}, {"mantissa_bits": 7}, {"mantissa_bits": 4}],
    ids=str,
)
def test_options_out_of_range_are_named(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Minifloat(**options)
