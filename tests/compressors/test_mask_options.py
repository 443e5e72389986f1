"""What goes beyond the paper: lossless stage, fitted levels, shorter top values, thresholds a channel, a budget."""

import pytest
import torch

from splitlearn.compressors import REGISTRY, MaskSparsifier, Payload
from splitlearn.errors import PayloadError
from splitlearn.kernels.sections import as_bytes
from splitlearn.kernels.signs import NONZERO

OURS = {"levels": "fitted", "values": "uint8", "lossless": "zstd"}


def smooth_map(*shape: int, seed: int = 0) -> torch.Tensor:
    """Post-ReLU, with neighbours that are alike and channels of different scale, as trained networks have."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator)
    x = torch.nn.functional.avg_pool2d(x, 3, stride=1, padding=1)
    return (x * torch.rand(1, shape[1], 1, 1, generator=generator).mul(2).exp()).relu()


X = smooth_map(32, 16, 16, 16)
SIGNED = torch.randn(32, 16, 16, 16, generator=torch.Generator().manual_seed(1)) * torch.rand(32, 1, 1, 1).exp()


def heavy(*shape: int, seed: int = 0) -> torch.Tensor:
    """Student's t of three degrees of freedom, with channels (the last dimension) of different spread."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) / torch.randn(3, *shape, generator=generator).square().mean(0).sqrt()
    return x * torch.randn(shape[-1], generator=generator).mul(0.5).exp()


BUDGETED = {
    "post-ReLU": X,
    "signed": SIGNED,
    "heavy-tailed": heavy(8, 64, 128),
    "cut gradient": heavy(8, 128, 128, seed=1) * 1e-7 * heavy(8, 128, 1, seed=2),
    "bfloat16": heavy(8, 64, 128, seed=3).bfloat16(),
    "one huge token": torch.cat([300 * heavy(8, 1, 128), heavy(8, 127, 128)], 1),
}


def coded(compressor, x: torch.Tensor) -> tuple[float, float]:
    """Bits an element and relative error."""
    payload = compressor.encode(x)
    return 8 * payload.nbytes / x.numel(), ((compressor.decode(payload) - x).norm() / x.norm()).item()


@pytest.mark.parametrize("x", [X, SIGNED, heavy(8, 64, 128) ** 3], ids=["post-ReLU", "signed", "heavy-tailed"])
@pytest.mark.parametrize("name", REGISTRY)
def test_the_lossless_stage_changes_bytes_alone(name, x):
    sizes, decoded = [], []
    for lossless in ("none", "zstd", "ans"):
        compressor = REGISTRY[name](lossless=lossless)
        compressor.seed(1)
        payload = compressor.encode(x)
        sizes.append(payload.nbytes)
        decoded.append(compressor.decode(Payload.parse(payload.tensor)))
        # What the lossless stage was is for the sender alone to know.
        assert torch.equal(REGISTRY[name]().decode(payload), decoded[-1])
    assert torch.equal(decoded[0], decoded[1]) and torch.equal(decoded[0], decoded[2])
    assert sizes == sorted(sizes, reverse=True)


def test_signs_of_what_is_zero_are_not_sent_with_ans():
    x = heavy(8, 64, 128) ** 3  # nearly all round to zero
    zstd, ans = (coded(MaskSparsifier(lossless=lossless), x)[0] for lossless in ("zstd", "ans"))
    assert zstd > 1.3 and ans < 0.6


def test_a_post_relu_mask_of_two_bits_shrinks_to_1_66_bits():
    x = torch.randn(256, 64, 16, 16, generator=torch.Generator().manual_seed(0)).relu()
    assert coded(MaskSparsifier(lossless="zstd"), x)[0] <= 1.66


def test_what_does_not_shrink_is_sent_as_it_is():
    noise = torch.rand(50_000, generator=torch.Generator().manual_seed(0))  # gives every code as often
    assert REGISTRY["qu"](bits=8, lossless="zstd").encode(noise).shrunk == 0


@pytest.mark.parametrize("x", [X, SIGNED], ids=["post-ReLU", "signed"])
@pytest.mark.parametrize("bits", [2, 3, 5])
def test_fitted_levels_lower_the_error(x, bits):
    bits_even, even = coded(MaskSparsifier(bits=bits), x)
    bits_fitted, fitted = coded(MaskSparsifier(bits=bits, levels="fitted"), x)
    assert fitted < even
    assert bits_fitted == pytest.approx(bits_even, abs=0.02)  # 2^bits-1 numbers a payload


@pytest.mark.parametrize(("values", "value_bits"), [("bf16", 16), ("fp16", 16), ("uint8", 8)])
@pytest.mark.parametrize("x", [X, SIGNED], ids=["post-ReLU", "signed"])
def test_shorter_top_values_cost_next_to_no_error(x, values, value_bits):
    full_bits, full = coded(MaskSparsifier(ratio=0.9), x)
    short_bits, short = coded(MaskSparsifier(ratio=0.9, values=values), x)
    assert full_bits - short_bits == pytest.approx(0.1 * (32 - value_bits), abs=0.01)
    assert short < 1.02 * full


def test_a_threshold_a_channel_is_each_channel_by_itself():
    whole, single = MaskSparsifier(ratio=0.9, scope="channel"), MaskSparsifier(ratio=0.9)
    decoded = whole.decode(whole.encode(X))
    for channel in range(16):
        assert torch.equal(decoded[:, channel], single.decode(single.encode(X[:, channel])))


@pytest.mark.parametrize("lossless", ["none", "zstd", "ans"])
@pytest.mark.parametrize("name", BUDGETED)
def test_a_budget_is_met_and_never_exceeded(name, lossless):
    errors = []
    for budget_bits in (0.7, 1.5, 2.32, 3.3, 4.3)[lossless == "none" :]:
        x, compressor = BUDGETED[name], MaskSparsifier(**{**OURS, "lossless": lossless}, budget_bits=budget_bits)
        payload = compressor.encode(x)
        taken = 8 * sum(section.numel() for section in payload.sections) / x.numel()
        assert 0.94 * budget_bits <= taken <= budget_bits
        decoded = compressor.decode(Payload.parse(payload.tensor))
        errors.append(float((decoded.double() - x.double()).norm() / x.double().norm()))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("lossless", ["none", "zstd", "ans"])
@pytest.mark.parametrize("seed", range(3))
def test_a_budget_is_never_exceeded_where_one_token_and_some_channels_are_huge(seed, lossless):
    x = heavy(8, 64, 128, seed=seed)
    x[..., seed] *= 50
    x[..., 7] *= 500
    x[:, 0] *= 300
    for budget_bits in (0.7, 1.5, 2.3, 3.3)[lossless == "none" :]:
        compressor = MaskSparsifier(**{**OURS, "lossless": lossless}, budget_bits=budget_bits)
        payload = compressor.encode(x)
        assert 8 * sum(section.numel() for section in payload.sections) <= budget_bits * x.numel()
        assert (compressor.decode(payload) - x).norm() < 0.01 * x.norm()


@pytest.mark.parametrize("options", [{"scope": "row"}, {"scope": "sample"}, {"levels": "even"}, {"values": "full"}])
@pytest.mark.parametrize("name", ["post-ReLU", "signed", "heavy-tailed"])
def test_a_budget_is_kept_with_other_options(name, options):
    x, compressor = BUDGETED[name], MaskSparsifier(**{**OURS, **options}, budget_bits=2.3)
    payload = compressor.encode(x)
    assert 8 * sum(section.numel() for section in payload.sections) <= 2.3 * x.numel()
    assert (compressor.decode(payload) - x).norm() < 0.7 * x.norm()


def test_a_budget_that_is_too_little_takes_the_least_and_warns():
    compressor = MaskSparsifier(**OURS, budget_bits=0.7)
    x = SIGNED.view(-1)[:20]
    with pytest.warns(UserWarning, match=r"budget_bits=0\.7 is too little for 20 values"):
        payload = compressor.encode(x)
    assert sum(section.numel() for section in payload.sections) < 20
    assert compressor.decode(payload).shape == x.shape


@pytest.mark.parametrize("budget_bits", [0.5, 1.0])
def test_a_budget_below_a_bit_needs_a_lossless_stage(budget_bits):
    with pytest.raises(ValueError, match="choose more than 1, or lossless=zstd or ans"):
        MaskSparsifier(budget_bits=budget_bits)
    for lossless in ("zstd", "ans"):
        MaskSparsifier(budget_bits=budget_bits, lossless=lossless)


def test_more_budget_is_less_error():
    errors = [coded(MaskSparsifier(**OURS, budget_bits=bits), X)[1] for bits in (0.5, 1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)


def test_ours_against_the_papers_at_its_bytes_and_at_its_error():
    paper_bits, paper_error = coded(MaskSparsifier(), X)
    assert coded(MaskSparsifier(**OURS, budget_bits=2.2), X)[1] < paper_error / 1.3
    bits, error = coded(MaskSparsifier(**OURS), X)
    assert error < paper_error and bits < 0.7 * paper_bits


@pytest.mark.parametrize("damage", ["fewer", "more", "none", "too long"])
def test_signs_that_do_not_fit_the_codes_are_refused(damage):
    x, compressor = SIGNED[:1], MaskSparsifier(lossless="ans")
    payload = compressor.encode(x)
    sections, params, _ = MaskSparsifier().shrunk(*compressor.to_sections(x), x.shape)  # as they are before that stage
    assert params[1] == NONZERO
    tops, signs, codes = (as_bytes(section) for section in sections)
    changed = {
        "fewer": [tops, signs[:-1], codes],
        "more": [tops, torch.cat([signs, signs[:1]]), codes],
        "none": [codes],
        "too long": [tops, torch.zeros(x.numel() // 8 + 1, dtype=torch.uint8), codes],
    }[damage]
    whole = Payload.pack(payload.codec, x, [tops, signs, codes], params)
    assert torch.equal(compressor.decode(whole), compressor.decode(payload))
    with pytest.raises(PayloadError, match=r"signs than codes|has sections of"):
        compressor.decode(Payload.pack(payload.codec, x, changed, params))
