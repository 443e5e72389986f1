import pytest
import torch

from splitlearn.compressors import NormalQuantizer, Payload, UniformQuantizer
from splitlearn.compressors.quantile import normal_levels
from splitlearn.errors import PayloadError
from splitlearn.kernels import blocks
from splitlearn.kernels.bits import packed_nbytes

X = torch.randn(3, 1001, generator=torch.Generator().manual_seed(0))
# The appendix of the QLoRA paper
NF4 = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]


def through(compressor: NormalQuantizer, x: torch.Tensor) -> torch.Tensor:
    return compressor.decode(Payload.parse(compressor.encode(x).tensor))


def test_four_bits_are_nf4():
    assert normal_levels(4).tolist() == pytest.approx(NF4, abs=2e-7)


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_ascend_from_minus_one_to_one_and_hold_zero(bits):
    levels = normal_levels(bits)
    assert levels.numel() == 2**bits and (levels.diff() > 0).all()
    assert levels[0] == -1 and levels[-1] == 1
    assert (levels == 0).sum() == (bits > 1)
    assert (levels > 0).sum() == 2 ** (bits - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_value_gets_the_nearest_level(bits, dtype, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", 64)
    x = X.to(dtype)
    levels = normal_levels(bits) * x.abs().max()
    nearest = (x.double().view(-1, 1) - levels).abs().amin(1).view(x.shape)
    error = (through(NormalQuantizer(bits=bits), x).double() - x).abs()
    assert (error <= nearest + 2 * torch.finfo(dtype).eps * x.abs().max()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_exact_byte_count(bits, scope, dtype):
    compressor = NormalQuantizer(bits=bits, scope=scope)
    payload = compressor.encode(X.to(dtype))
    num_scales, scale_nbytes = 3 if scope == "sample" else 1, max(4, dtype.itemsize)
    expected = [scale_nbytes * num_scales, packed_nbytes(3003, bits)]
    assert [section.numel() for section in payload.sections] == expected
    assert payload.params == (bits, scope == "sample", 0, 0, 0, 0)
    assert compressor.formula_bits(X.shape) == 3003 * bits + 32 * num_scales


@pytest.mark.parametrize("bits", range(2, 9))
def test_zeros_and_the_largest_magnitude_are_exact(bits):
    for x in (X.relu(), -X.relu()):
        decoded = through(NormalQuantizer(bits=bits), x)
        assert (decoded[x == 0] == 0).all()
        largest = x.abs().argmax()
        assert decoded.view(-1)[largest] == x.view(-1)[largest]


def test_the_levels_of_a_normal_map_are_used_about_equally():
    codes = NormalQuantizer(bits=3).encode(X).sections[1]
    uniform = UniformQuantizer(bits=3).encode(X).sections[1]
    # Packed codes that are used evenly have bytes of more entropy.
    entropies = []
    for section in (codes, uniform):
        share = torch.bincount(section.int(), minlength=256) / section.numel()
        entropies.append(torch.special.entr(share).sum())
    assert entropies[0] > entropies[1]


def test_better_than_uniform_levels_for_a_normal_map():
    for bits in (3, 4, 5):
        error, uniform = ((through(c(bits=bits), X) - X).norm() for c in (NormalQuantizer, UniformQuantizer))
        assert error < uniform


def test_a_scale_a_sample_is_each_sample_by_itself(monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", 64)
    x = X.view(7, 11, 39) * torch.tensor([1.0, 100, 0.01, 0, 5, -3, 1e-30]).view(7, 1, 1)
    decoded = through(NormalQuantizer(scope="sample"), x)
    for sample in range(7):
        assert torch.equal(decoded[sample], through(NormalQuantizer(), x[sample]))
    assert (through(NormalQuantizer(), x)[2] == 0).all() and (decoded[2] != 0).any()


@pytest.mark.parametrize("value", [3.4028234663852886e38, -1e-45, 1e-40])
def test_the_ends_of_the_range_of_floats(value):
    x = torch.tensor([value, 0.0, value])
    assert torch.equal(through(NormalQuantizer(), x), x)


@pytest.mark.parametrize("options", [{"bits": 3}, {"scope": "sample"}])
def test_other_options_on_the_other_side_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(PayloadError, match=f"{name}={value}"):
        NormalQuantizer(**options).decode(NormalQuantizer().encode(X))
    with pytest.raises(PayloadError, match="bits=4, scope=batch"):
        NormalQuantizer().decode(NormalQuantizer(**options).encode(X))


def test_a_payload_that_does_not_fit_its_shape_is_refused():
    sections = [section.clone() for section in NormalQuantizer().encode(X).sections]
    for like, parts in ((X[:2], sections), (X, sections[:1]), (X.double(), sections)):
        with pytest.raises(PayloadError, match="sections of"):
            NormalQuantizer().decode(Payload.pack(NormalQuantizer.codec, like, parts, (4, 0)))


@pytest.mark.parametrize("options", [{"bits": 0}, {"bits": 9}, {"scope": "channel"}], ids=str)
def test_options_out_of_range_are_named(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        NormalQuantizer(**options)
