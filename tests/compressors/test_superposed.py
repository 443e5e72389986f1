"""C3-SL: circular convolution and correlation as their definitions have them, unbiased, and its own transpose."""

import numpy as np
import pytest
import torch

from splitlearn.compressors import Payload
from splitlearn.compressors.superposed import Superposition


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def through(compressor: Superposition, x: torch.Tensor) -> torch.Tensor:
    return compressor.decode(Payload.parse(compressor.encode(x).tensor))


def keys_of(compressor: Superposition, num: int, length: int) -> np.ndarray:
    return torch.fft.irfft(torch.stack(list(compressor._keys(num, length, torch.device("cpu")))), n=length).numpy()


@pytest.mark.parametrize("length", [16, 37, 60])
@pytest.mark.parametrize(("num_samples", "together"), [(6, 3), (8, 3), (7, 3), (3, 4), (2, 2)])
def test_it_is_convolution_and_correlation_by_their_definitions(length, num_samples, together):
    compressor = Superposition(together)
    x = randn(num_samples, length)
    keys = keys_of(compressor, min(together, num_samples), length)
    assert np.allclose(np.linalg.norm(keys, axis=1), 1)
    shift = np.arange(length)
    groups = [range(first, min(first + together, num_samples)) for first in range(0, num_samples, together)]
    sums = np.zeros((len(groups), length))
    for i, group in enumerate(groups):
        for key, sample in zip(keys, group, strict=False):
            # (k ⊛ z)[n] = Σ_m k[m] z[n-m]
            sums[i] += [(key * x[sample].numpy()[(n - shift) % length]).sum() for n in range(length)]
    decoded = np.zeros((num_samples, length))
    for i, group in enumerate(groups):
        for key, sample in zip(keys, group, strict=False):
            # (k ⋆ s)[n] = Σ_m k[m] s[n+m]
            decoded[sample] = [(key * sums[i][(n + shift) % length]).sum() for n in range(length)]
    if num_samples % together == 1:  # alone
        decoded[-1] = x[-1].numpy()
    assert np.allclose(through(compressor, x), decoded, atol=1e-5)


def test_in_the_mean_over_keys_every_sample_arrives_and_the_noise_is_as_stated():
    x = randn(4, 200).relu()
    draws = torch.stack([through(Superposition(4, seed), x) for seed in range(400)])
    assert (draws.mean(0) - x).norm() < 3 * 2 / 20 * x.norm()  # √R / √draws
    errors = (draws - x).flatten(1).norm(dim=1) / x.norm()
    assert errors.square().mean().sqrt() == pytest.approx(2, rel=0.1)


def test_encoding_and_decoding_are_transposes_of_each_other():
    """So that the same codec on the downlink gives the gradient through both: ⟨D E x, g⟩ = ⟨x, D E g⟩."""
    compressor = Superposition(3)
    x, gradient = randn(7, 5, 8).double(), randn(7, 5, 8, seed=1).double()
    assert (through(compressor, x) * gradient).sum().item() == pytest.approx(
        (x * through(compressor, gradient)).sum().item(), rel=1e-9
    )


@pytest.mark.parametrize(("num_samples", "num_sent"), [(8, 2), (9, 3), (10, 3), (3, 1), (2, 1)])
def test_a_group_takes_the_place_of_one_sample(num_samples, num_sent):
    x = randn(num_samples, 4, 9)
    assert Superposition(4).encode(x).sections[0].numel() == num_sent * 36 * 4


def test_what_is_alone_or_small_is_sent_as_it_is():
    x = randn(9, 40)
    assert torch.equal(through(Superposition(4), x)[8], x[8])
    for whole in (x[:1], x[0], randn(20, 15), randn(64)):
        assert torch.equal(through(Superposition(4), whole), whole)


def test_keys_depend_on_nothing_but_their_seed():
    """Not on what came before: not on smaller or larger batches, which need fewer or more of them."""
    x, used = randn(8, 50), Superposition(4)
    for num in (2, 8, 3, 8):
        assert torch.equal(used.encode(x[:num]).tensor, Superposition(4).encode(x[:num]).tensor)
    assert not torch.equal(used.encode(x).tensor, Superposition(4, 1).encode(x).tensor)


@pytest.mark.parametrize("options", [{"samples": 1}, {"samples": 65}, {"key_seed": -1}], ids=str)
def test_options_out_of_range_are_named(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Superposition(**options)
