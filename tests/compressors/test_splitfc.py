"""SplitFC: columns dropped in the right share, right in the mean over draws, or within half a step; `bits` is met."""

import pytest
import torch
from runs import slow

from splitlearn.compressors import Payload
from splitlearn.compressors.base import num_kept
from splitlearn.compressors.splitfc import FeatureWise
from splitlearn.errors import PayloadError


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SPREAD = torch.linspace(0.05, 3, 60).view(3, 4, 5)
MAPS = {
    "post-ReLU": (randn(40, 3, 4, 5) * SPREAD).relu(),
    "signed": randn(40, 3, 4, 5) * SPREAD + 1,
    "heavy tails": randn(40, 3, 4, 5) ** 5,
    "gradient": randn(40, 60) ** 3 * 1e-9,
}


def through(compressor: FeatureWise, x: torch.Tensor) -> torch.Tensor:
    return compressor.decode(Payload.parse(compressor.encode(x).tensor))


def nbytes_of(compressor: FeatureWise, x: torch.Tensor) -> int:
    return sum(section.numel() for section in compressor.encode(x).sections)


@pytest.mark.parametrize("ratio", [slow(0.25), 0.5, 0.9])
@pytest.mark.parametrize("name", MAPS)
def test_in_the_mean_over_draws_every_value_arrives(name, ratio):
    x, compressor = MAPS[name], FeatureWise(ratio, 8)
    compressor.seed(1)
    draws = torch.stack([through(compressor, x).flatten(1) for _ in range(600)])
    assert ((draws != 0).any(1).sum(1) <= num_kept(ratio, 60)).all()
    # A column that is kept with probability p is worth 1/p then: a deviation of √(1/p-1), and 8 bits of rounding.
    kept = (draws != 0).any(1).double().mean(0).clamp(min=1 / 600)
    allowed = 5 * (x.flatten(1).abs() * ((1 / kept - 1).clamp(min=0.01) / 600).sqrt())
    rounding = 2 * draws.abs().max() / 255
    often = kept > 0.02
    assert ((draws.mean(0) - x.flatten(1)).abs() <= allowed + rounding)[:, often].all()


def test_flat_columns_are_dropped_first():
    x = torch.cat([randn(30, 20), 3 + 1e-3 * randn(30, 20)], 1)
    compressor = FeatureWise(0.5, 8)
    for seed in range(20):
        compressor.seed(seed)
        assert (through(compressor, x)[:, 20:] != 0).any(0).sum() <= 1


@pytest.mark.parametrize("bits", [0.5, 1, 2.5, 8])
@pytest.mark.parametrize("name", MAPS)
def test_what_is_kept_is_within_half_a_step_or_its_mean(name, bits):
    x = MAPS[name].double().flatten(1)
    compressor = FeatureWise(0.0, bits)
    payload = compressor.encode(x)
    decoded = compressor.decode(payload)
    low, high = x.aminmax(dim=0)
    end = (high.max() - low.min()) / 255
    is_flat = (decoded == decoded[0]).all(0)
    assert ((decoded[0] - x.mean(0)).abs()[is_flat] <= end / 2 * (1 + 1e-9)).all()
    error = (decoded - x).abs().amax(0)[~is_flat]
    assert (error <= (high - low + 2 * end)[~is_flat] / 3 / 2 * (1 + 1e-9)).all()  # two bits at least
    if bits == 8:
        assert error.max() <= ((high - low).max() + 2 * end) / 63 / 2
    if is_flat.any() and not is_flat.all():  # those of the smallest range
        assert (high - low)[is_flat].max() <= (high - low)[~is_flat].min()


@pytest.mark.parametrize("bits", [0.75, 1, 2, 3.3, 5])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("name", MAPS)
def test_bits_are_reached_and_never_exceeded(name, ratio, bits):
    x = torch.cat([MAPS[name]] * 4)
    found, most = 8 * nbytes_of(FeatureWise(ratio, bits), x) / x.numel(), 8 * (1 - ratio)
    assert found <= bits
    if bits < 0.8 * most:
        assert found >= 0.95 * bits


def test_more_bits_are_less_error_and_zero_stays_zero():
    x = MAPS["post-ReLU"]
    decoded = [through(FeatureWise(0.0, bits), x) for bits in (0.5, 1, 2, 4, 8)]
    errors = [(one - x).norm().item() for one in decoded]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.01 * x.norm()
    assert (decoded[-1][x == 0] == 0).all()


def test_evaluation_drops_nothing_and_is_not_random():
    x, compressor = MAPS["post-ReLU"], FeatureWise(0.5, 2)
    assert not torch.equal(compressor.encode(x).tensor, compressor.encode(x).tensor)
    evaluation = compressor.for_evaluation()
    assert evaluation == FeatureWise(0.0, 2) and evaluation.for_evaluation() is evaluation
    assert torch.equal(evaluation.encode(x).tensor, evaluation.encode(x).tensor)


def test_few_samples_take_what_describes_the_columns():
    x = randn(2, 800)
    assert nbytes_of(FeatureWise(0.5, 0.1), x) == 24 + 100 + 150 + 400
    for whole in (randn(1, 800), randn(800), randn(2, 3)):
        assert torch.equal(through(FeatureWise(), whole), whole)


def test_what_decodes_is_bounded_by_the_bytes():
    x = torch.zeros(20_000, 64)
    assert nbytes_of(FeatureWise(0.99), x) == x.numel() / 1024
    assert through(FeatureWise(0.99), x).count_nonzero() == 0


def test_another_number_of_columns_than_the_ratio_says_is_refused():
    payload = FeatureWise(0.5, 2).encode(MAPS["signed"])
    with pytest.raises(PayloadError, match="sections of"):
        FeatureWise(0.75, 2).decode(payload)
    sections = [section.clone() for section in payload.sections]
    sections[1][0] ^= 1
    with pytest.raises(PayloadError, match=r"keeps (29|31) columns where its shape and ratio=0.5 ask for 30"):
        FeatureWise(0.5, 2).decode(Payload.pack(11, MAPS["signed"], sections, payload.params))


@pytest.mark.parametrize("options", [{"ratio": 1.0}, {"ratio": -0.1}, {"bits": 0.01}, {"bits": 9}], ids=str)
def test_options_out_of_range_are_named(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        FeatureWise(**options)
