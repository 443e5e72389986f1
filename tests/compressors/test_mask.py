import pytest
import torch

from splitlearn.compressors import MaskSparsifier, Payload, TopKSparsifier
from splitlearn.errors import NonFiniteError, PayloadError
from splitlearn.kernels.bits import packed_nbytes

# Fig. 1 of the paper
FIG1 = torch.tensor([[2.2, 0.8, 1.2, 0.4], [1.8, 0.2, 3.1, 2.0], [2.1, 0.2, 1.1, 1.7], [0.3, 2.8, 1.4, 0.9]])
FIG1_DECODED = torch.tensor([[2.2, 0.7, 0.7, 0.0], [1.4, 0.0, 3.1, 1.4], [2.1, 0.0, 0.7, 1.4], [0.0, 2.8, 1.4, 0.7]])


def relu(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).relu()


def sections_nbytes(payload: Payload) -> int:
    return sum(section.numel() for section in payload.sections)


def test_worked_example_of_the_paper():
    compressor = MaskSparsifier(ratio=0.75, bits=2, rounding="floor")
    payload = compressor.encode(FIG1)
    assert sections_nbytes(payload) == 20
    assert bytes(payload.sections[1].tolist()) == bytes([0b00010111, 0b10110010, 0b10010011, 0b01101100])
    assert payload.sections[0].view(torch.float32).tolist() == pytest.approx([2.2, 3.1, 2.1, 2.8])
    torch.testing.assert_close(compressor.decode(payload), FIG1_DECODED)


@pytest.mark.parametrize(
    ("compressor", "error"),
    [
        (TopKSparsifier(ratio=0.75), 4.06),
        (MaskSparsifier(ratio=0.75, bits=2, rounding="floor"), 1.18),
        (MaskSparsifier(ratio=0.75, bits=2, rounding="nearest"), 1.02),  # the paper's figure
    ],
)
def test_error_of_the_worked_example(compressor, error):
    assert (compressor.decode(compressor.encode(FIG1)) - FIG1).norm().item() == pytest.approx(error, abs=0.005)


def test_a_map_of_the_paper_is_13_7_times_smaller_with_its_header():
    x = relu(256, 64, 16, 16)
    assert 4 * x.numel() / MaskSparsifier(ratio=0.99, bits=2).encode(x).nbytes >= 13.7


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_exact_byte_count(bits, dtype, scope):
    compressor = MaskSparsifier(ratio=0.9, bits=bits, scope=scope)
    x = relu(7, 3, 11).to(dtype)
    k = 7 * 3 if scope == "sample" else 23
    expected = k * dtype.itemsize + packed_nbytes(231, bits)
    assert sections_nbytes(compressor.encode(x)) == expected
    assert sections_nbytes(compressor.encode(-x)) == expected + packed_nbytes(231, 1)


@pytest.mark.parametrize(
    ("ratio", "numel", "k"), [(0.9, 10, 1), (0.99, 100, 1), (0.7, 10, 3), (0.99, 7, 1), (0.58, 50, 21)]
)
def test_k_is_exact_for_the_decimal(ratio, numel, k):
    values = MaskSparsifier(ratio=ratio).encode(torch.arange(1.0, numel + 1)).sections[0]
    assert values.view(torch.float32).tolist() == list(range(numel - k + 1, numel + 1))


def test_of_equal_values_the_first_are_kept():
    x = torch.tensor([1.0, 2.0, 2.0, 0.0, 2.0, 2.0, 3.0, 0.5])
    decoded = MaskSparsifier(ratio=0.5, bits=2).decode(MaskSparsifier(ratio=0.5, bits=2).encode(x))
    # Kept are 2, 2, 2, 3; the last 2 ties with the threshold and gets the largest code that is left, 2/3 of it.
    assert decoded.tolist() == pytest.approx([4 / 3, 2, 2, 0, 2, 4 / 3, 3, 2 / 3])


def test_a_threshold_of_zero_keeps_what_there_is():
    x = torch.zeros(100)
    x[17] = 4.0
    compressor = MaskSparsifier(ratio=0.9)
    assert torch.equal(compressor.decode(compressor.encode(x)), x)


@pytest.mark.parametrize("sign", [1, -1])
def test_ratio_zero_is_lossless(sign):
    x = sign * relu(5, 77)
    compressor = MaskSparsifier(ratio=0)
    assert torch.equal(compressor.decode(compressor.encode(x)), x)


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("rounding", ["nearest", "floor"])
@pytest.mark.parametrize("signed", [False, True])
def test_error_bounds(bits, rounding, signed):
    """Half a step where a code is the nearest, one step where it was rounded down or capped; top values are exact."""
    x = relu(3000) if not signed else torch.randn(3000, generator=torch.Generator().manual_seed(1))
    compressor = MaskSparsifier(ratio=0.95, bits=bits, rounding=rounding)
    decoded = compressor.decode(compressor.encode(x))
    levels = 2**bits - 1
    threshold = x.abs().sort(descending=True).values[149]
    step = threshold / levels
    top = x.abs() >= threshold
    assert torch.equal(decoded[top], x[top])
    error, capped = (decoded - x)[~top].abs(), x[~top].abs() > (levels - 0.5) * step
    assert (error <= step * (1 + 1e-5)).all()
    if rounding == "nearest":
        assert (error[~capped] <= step / 2 * (1 + 1e-5)).all()
    else:
        assert (decoded.abs() <= x.abs() * (1 + 1e-6)).all()
    assert (decoded * x >= 0).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_mask_only_lowers_the_error_of_sparsification(bits):
    for seed in range(5):
        x = relu(4000, seed=seed)
        masked, sparse = MaskSparsifier(ratio=0.98, bits=bits), TopKSparsifier(ratio=0.98)
        error, without = ((c.decode(c.encode(x)) - x).norm() for c in (masked, sparse))
        assert error < without if bits > 1 else error == without


def test_a_threshold_a_sample_is_each_sample_by_itself():
    x = relu(5, 4, 30) * torch.tensor([1.0, 10, 0.1, 0, 5]).view(5, 1, 1)
    x[1] *= torch.randn(4, 30, generator=torch.Generator().manual_seed(0)).sign()
    whole, single = MaskSparsifier(ratio=0.9, scope="sample"), MaskSparsifier(ratio=0.9)
    decoded = whole.decode(whole.encode(x))
    for sample in range(5):
        assert torch.equal(decoded[sample], single.decode(single.encode(x[sample])))


@pytest.mark.parametrize("options", [{"bits": 3}, {"scope": "sample"}, {"ratio": 0.5}])
def test_other_options_on_the_other_side_are_refused(options):
    payload = MaskSparsifier(ratio=0.9, bits=2).encode(relu(4, 50))
    with pytest.raises(PayloadError):
        MaskSparsifier(**{"ratio": 0.9, "bits": 2, **options}).decode(payload)


def test_a_mask_with_another_number_of_top_values_is_refused():
    compressor = MaskSparsifier(ratio=0.5, bits=2)
    values, codes = compressor.encode(torch.tensor([1.0, 2.0, 3.0, 4.0])).sections
    forged = Payload.pack(compressor.codec, torch.zeros(4), [values.clone(), codes | 3], (2, 0))
    with pytest.raises(PayloadError, match="top values"):
        compressor.decode(forged)


@pytest.mark.parametrize(
    "options",
    [{"ratio": 1}, {"ratio": -0.1}, {"bits": 0}, {"bits": 9}, {"rounding": "up"}, {"scope": "pixel"}],
    ids=str,
)
def test_options_out_of_range_are_named(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        MaskSparsifier(**options)


@pytest.mark.parametrize(
    "options", [{}, {"scope": "sample"}, {"scope": "channel"}, {"budget_bits": 2.0}, {"levels": "fitted"}], ids=str
)
@pytest.mark.parametrize("relu", [True, False])
def test_what_is_not_finite_is_found_anywhere(options, relu, noise):
    nan, inf = float("nan"), float("inf")
    x = noise(4, 8, 40, 40, relu=relu)  # long enough to be searched by sample
    for value, found in ((nan, "1 NaN and 0 Inf"), (inf, "0 NaN and 1 Inf"), (-inf, "0 NaN and 1 Inf")):
        for place in (0, 61, 777, x.numel() - 1):
            spoilt = x.clone()
            spoilt.view(-1)[place] = value
            with pytest.raises(NonFiniteError, match=f"{found} in a tensor of {x.numel()}"):
                MaskSparsifier(**options).encode(spoilt)
    for value in (nan, inf, -inf):
        with pytest.raises(NonFiniteError):
            MaskSparsifier(**options).encode(torch.full_like(x, value))
