"""What goes beyond the paper: lossless stage, fitted levels, shorter top values, thresholds a channel, a budget."""

import pytest
import torch

from splitlearn.compressors import REGISTRY, MaskSparsifier

OURS = {"levels": "fitted", "values": "uint8", "lossless": "zstd"}


def smooth_map(*shape: int, seed: int = 0) -> torch.Tensor:
    """Post-ReLU, with neighbours that are alike and channels of different scale, as trained networks have."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator)
    x = torch.nn.functional.avg_pool2d(x, 3, stride=1, padding=1)
    return (x * torch.rand(1, shape[1], 1, 1, generator=generator).mul(2).exp()).relu()


X = smooth_map(32, 16, 16, 16)
SIGNED = torch.randn(32, 16, 16, 16, generator=torch.Generator().manual_seed(1)) * torch.rand(32, 1, 1, 1).exp()


def coded(compressor, x: torch.Tensor) -> tuple[float, float]:
    """Bits an element and relative error."""
    payload = compressor.encode(x)
    return 8 * payload.nbytes / x.numel(), ((compressor.decode(payload) - x).norm() / x.norm()).item()


@pytest.mark.parametrize("name", REGISTRY)
def test_the_lossless_stage_changes_bytes_alone(name):
    plain, smaller = REGISTRY[name](), REGISTRY[name](lossless="zstd")
    plain.seed(1)
    smaller.seed(1)
    sent, packed = plain.encode(X), smaller.encode(X)
    assert torch.equal(plain.decode(sent), smaller.decode(packed))
    assert packed.nbytes <= sent.nbytes


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


@pytest.mark.parametrize("budget_bits", [0.7, 1.3, 2.32, 3.5, 6.0])
@pytest.mark.parametrize("lossless", ["none", "zstd"])
@pytest.mark.parametrize("x", [X, SIGNED], ids=["post-ReLU", "signed"])
def test_a_budget_is_kept(x, lossless, budget_bits):
    if x is SIGNED and budget_bits < 2.1:
        pytest.skip("signs alone take a bit")
    compressor = MaskSparsifier(**{**OURS, "lossless": lossless}, budget_bits=budget_bits)
    if budget_bits < 1.1 and lossless == "none":
        pytest.skip("the narrowest mask takes a bit")
    assert coded(compressor, x)[0] <= 1.1 * budget_bits + 0.01


def test_more_budget_is_less_error():
    errors = [coded(MaskSparsifier(**OURS, budget_bits=bits), X)[1] for bits in (0.5, 1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)


def test_ours_against_the_papers_at_its_bytes_and_at_its_error():
    paper_bits, paper_error = coded(MaskSparsifier(), X)
    assert coded(MaskSparsifier(**OURS, budget_bits=2.2), X)[1] < paper_error / 1.3
    bits, error = coded(MaskSparsifier(**OURS), X)
    assert error < paper_error and bits < 0.7 * paper_bits
