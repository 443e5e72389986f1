"""FedLite: every subvector comes back as the nearest centroid of its group, and k-means has put them well."""

import pytest
import torch

from splitlearn.compressors import Payload
from splitlearn.compressors.product import ProductQuantizer
from splitlearn.errors import PayloadError


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def through(compressor: ProductQuantizer, x: torch.Tensor) -> torch.Tensor:
    return compressor.decode(Payload.parse(compressor.encode(x).tensor))


def codebooks_of(compressor: ProductQuantizer, x: torch.Tensor) -> torch.Tensor:
    scale, codebooks, _ = compressor.encode(x).sections
    codebooks = codebooks.view(torch.bfloat16).double() * scale.clone().view(torch.float64)
    return codebooks.view(-1, 2**compressor.bits, compressor.length).float()


@pytest.mark.parametrize(
    ("length", "groups", "widths"), [(4, 1, [25]), (4, 3, [8, 8, 9]), (10, 2, [5, 5]), (7, 1, [15])]
)
def test_every_subvector_is_the_nearest_centroid_of_its_group(length, groups, widths):
    x = randn(30, 5, 20)
    compressor = ProductQuantizer(length, 3, groups)
    codebooks, decoded = codebooks_of(compressor, x), through(compressor, x)
    padding = sum(widths) * length - 100
    vectors = torch.nn.functional.pad(x.flatten(1), (0, padding)).view(30, -1, length)
    position = 0
    for codebook, width in zip(codebooks, widths, strict=True):
        for at in range(position, min(position + width, 100 // length)):
            best = (vectors[:, at, None] - codebook).square().sum(2).argmin(1)
            assert torch.equal(decoded.flatten(1)[:, at * length : (at + 1) * length], codebook[best])
        position += width


def test_prototypes_are_found_and_even_values_are_cut_evenly():
    """Of samples that are a few prototypes, each arrives but for rounding to bf16."""
    prototypes = randn(4, 64)
    x = prototypes[torch.randint(4, (100,), generator=torch.Generator().manual_seed(1))]
    assert (through(ProductQuantizer(64, 2), x) - x).norm() < 2**-8 * x.norm()
    # A uniform value by 2^bits centroids: near the 2^-bits of the best scalar quantiser, against the value's spread.
    uniform = torch.rand(200, 50, generator=torch.Generator().manual_seed(2))
    error = (through(ProductQuantizer(1, 4, iterations=50), uniform) - uniform).square().mean()
    assert error < 1.2 / 12 / 16**2


def test_longer_subvectors_and_narrower_codes_are_fewer_bits_and_more_error():
    x = randn(64, 8, 8, 8).relu()
    settings = [(1, 4), (2, 4), (4, 4), (4, 2), (16, 2)]
    sent = [ProductQuantizer(*setting).encode(x).nbytes for setting in settings]
    errors = [(through(ProductQuantizer(*setting), x) - x).norm().item() for setting in settings]
    assert sent == sorted(sent, reverse=True) and errors == sorted(errors) and errors[-1] < x.norm()


def test_the_bytes_are_codes_and_codebooks():
    lengths = [section.numel() for section in ProductQuantizer(4, 3, 2).encode(randn(30, 5, 20)).sections]
    assert lengths == [8, 2 * 8 * 4 * 2, (30 * 12 * 3 + 7) // 8 + (30 * 13 * 3 + 7) // 8]


def test_one_dimension_is_one_sample_and_what_is_small_is_sent_as_it_is():
    x = randn(4000)
    assert torch.equal(through(ProductQuantizer(), x), through(ProductQuantizer(), x.view(1, -1))[0])
    for small in (x[:30], x[0], x[:32].view(16, 2)):
        assert torch.equal(through(ProductQuantizer(), small), small)


def test_other_options_are_refused():
    payload = ProductQuantizer(5, 3, 2).encode(randn(30, 100))
    for other in (ProductQuantizer(5, 3, 3), ProductQuantizer(5, 4, 2), ProductQuantizer(4, 3, 2)):
        with pytest.raises(PayloadError, match=r"bits=3, length=5, groups=2; this compressor has"):
            other.decode(payload)


@pytest.mark.parametrize("options", [{"length": 0}, {"bits": 9}, {"groups": 0}, {"iterations": 0}], ids=str)
def test_options_out_of_range_are_named(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        ProductQuantizer(**options)
