"""A target of bits or of error is met; rows and channels are found; what is odd is sent as it is."""

import pytest
import torch

from splitlearn.compressors import Payload
from splitlearn.compressors.klt import KarhunenLoeve
from splitlearn.compressors.uniform import RAW, EntropyCodedQuantizer
from splitlearn.errors import PayloadError
from splitlearn.kernels import coded, steps
from splitlearn.kernels.channels import by_channel, cells_shape, from_channels
from splitlearn.kernels.sections import MOST_A_BYTE

GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def seeded():
    """A test draws the same whatever ran before it."""
    GENERATOR.manual_seed(0)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


SPREAD = torch.linspace(0.05, 3, 64)
MAPS = {
    "post-ReLU": (noise(32, 64, 16, 16) * SPREAD.view(-1, 1, 1)).relu(),
    "signed": noise(32, 64, 16, 16),
    "heavy-tailed rows": noise(16, 96, 64) ** 5 * SPREAD,
    "gradient": noise(64, 64, 8, 8) ** 3 * 1e-9,
    "half": (noise(32, 64, 16, 16) * SPREAD.view(-1, 1, 1)).half(),
    "bfloat16": noise(16, 96, 64).bfloat16(),
    "one huge value": torch.cat([noise(200_000), torch.tensor([1e30])]),
    "double": noise(300, 200).double() * 1e200,
}


def decoded(compressor: EntropyCodedQuantizer, x: torch.Tensor) -> tuple[torch.Tensor, float]:
    """What comes out, and the bits an element of all sections."""
    payload = Payload.parse(compressor.encode(x).tensor)
    return compressor.decode(payload), 8 * sum(section.numel() for section in payload.sections) / x.numel()


def error_of(found: torch.Tensor, x: torch.Tensor) -> float:
    scale = x.double().abs().max()
    return float((found.double() / scale - x.double() / scale).norm() / (x.double() / scale).norm())


@pytest.mark.parametrize("bits", [0.15, 0.65, 1.5, 2.3, 4.0])
@pytest.mark.parametrize("name", MAPS)
def test_a_rate_is_met_and_never_exceeded(name, bits):
    _, found = decoded(EntropyCodedQuantizer(bits), MAPS[name])
    assert found <= bits
    if name != "one huge value":  # beside which all else is nothing
        assert found >= 0.95 * bits


@pytest.mark.parametrize("error", [0.05, 0.25, 0.5])
@pytest.mark.parametrize("name", MAPS)
def test_an_error_is_met_and_never_exceeded(name, error):
    found, _ = decoded(EntropyCodedQuantizer(None, error), MAPS[name])
    assert error_of(found, MAPS[name]) <= 1.002 * error
    if name not in ("one huge value", "half", "bfloat16"):
        assert error_of(found, MAPS[name]) >= 0.9 * error


def test_more_bits_are_less_error_and_less_than_of_fixed_width():
    x = MAPS["post-ReLU"]
    errors = [error_of(decoded(EntropyCodedQuantizer(bits), x)[0], x) for bits in (0.2, 0.5, 1, 2, 4)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.05
    from splitlearn.compressors import UniformQuantizer

    fixed = UniformQuantizer(2)
    assert errors[3] < 0.25 * error_of(fixed.decode(fixed.encode(x)), x)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 6)])
def test_channels_are_dimension_1_or_the_last_of_three(shape):
    x = noise(*shape)
    matrix = by_channel(x)
    if len(shape) > 1:
        channel = x[:, :, 1] if len(shape) == 3 else x[:, 1]
        assert torch.equal(matrix[1], channel.reshape(-1))
    assert torch.equal(from_channels(matrix, x.shape).view(shape), x)


def test_small_tensors_are_sent_as_they_are():
    x = noise(3, 4)
    for compressor in (EntropyCodedQuantizer(), EntropyCodedQuantizer(None, 0.002)):
        payload = compressor.encode(x)
        assert payload.params[0] == RAW and torch.equal(compressor.decode(payload), x)
    finest = EntropyCodedQuantizer(None, 0.002).encode(noise(150).half())  # whose tables would take more than they save
    assert finest.nbytes <= 2 * 150 + 100


SMALL = [(128,), (300,), (1, 128), (1, 512), (2, 512), (8, 512), (1, 128, 2, 2), (1, 64, 4, 4), (1, 16, 64), (64, 10)]


@pytest.mark.parametrize("bits", [0.15, 0.65, 1.5, 4.0])
@pytest.mark.parametrize("compressor", [EntropyCodedQuantizer, KarhunenLoeve])
def test_a_small_tensor_has_about_the_error_of_a_large_one_for_some_bytes_more(compressor, bits):
    large = noise(64, 64, 8, 8)
    expected = error_of(decoded(compressor(bits), large)[0], large)
    for shape in SMALL:
        codec, x = compressor(bits), noise(*shape)
        payload = codec.encode(x)
        assert error_of(codec.decode(payload), x) < min(0.99, expected + 0.3), shape
        taken = sum(section.numel() for section in payload.sections) - codec.basis_nbytes(payload)
        rows, _, samples, _ = cells_shape(shape)
        beside = 33 + 12 + (rows + 16 + samples + 1) / 2  # scale, step, coder, a basis' head; levels
        assert taken <= max(8, bits * x.numel() / 8) + beside, shape


@pytest.mark.parametrize("shape", [(16, 512), (2, 64, 4, 4), (4, 8, 64)], ids=str)
def test_a_rate_is_met_where_half_of_it_is_enough_for_what_goes_beside_the_values(shape):
    assert decoded(EntropyCodedQuantizer(0.65), noise(*shape))[1] <= 0.65


def test_what_decodes_is_bounded_by_the_bytes():
    """So that few bytes cannot ask for much memory: also a map of nothing takes a byte for 1,024 elements."""
    x = torch.zeros(64, 64, 32, 32)
    payload = EntropyCodedQuantizer().encode(x)
    assert x.numel() / MOST_A_BYTE <= payload.nbytes < x.numel() / MOST_A_BYTE + 200
    assert torch.equal(EntropyCodedQuantizer().decode(payload), x)


def test_values_beyond_the_codes_arrive_as_they_are():
    x = MAPS["one huge value"]
    found, _ = decoded(EntropyCodedQuantizer(None, 0.002), torch.cat([x[:-1], torch.full((3,), 300.0)]))
    assert found[-3:].tolist() == [300.0] * 3


def test_a_step_is_tried_without_decoding():
    """The error that the sums give is that of what is decoded."""
    x = by_channel(MAPS["signed"])
    for step in (0.3, 1.0, 2.5):
        found, symbols = steps.shifts(x, step), steps.quantize(x, step)
        assert int((symbols == coded.ESCAPE).sum()) == 0
        whole = steps.restore(symbols, steps.levels(step, found.near, found.far).float())
        assert float((whole - x).double().square().sum()) == pytest.approx(found.squared_error, rel=1e-3)


TOKENS = noise(4, 64, 96)
TOKENS[:, 0] *= 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bits", [0.65, 1.5, 2.3])
def test_a_huge_first_token_does_not_spoil_the_others(bits, dtype):
    compressor, x = EntropyCodedQuantizer(bits), TOKENS.to(dtype)
    found, taken = decoded(compressor, x)
    assert 0.95 * bits <= taken <= bits
    first, others = found[:, 0], found[:, 1:]
    assert torch.equal(first, x[:, 0].bfloat16().to(dtype))
    alone = decoded(EntropyCodedQuantizer(bits), x[:, 1:])[0]  # four rows of 16 bits take a part of the bits
    assert error_of(others, x[:, 1:]) < error_of(alone, x[:, 1:]) + 0.2
    assert error_of(others, x[:, 1:]) < 0.95


def test_rows_go_apart_under_an_error_too():
    found, _ = decoded(EntropyCodedQuantizer(None, 0.1), TOKENS)
    assert 0.09 < error_of(found[:, 1:], TOKENS[:, 1:]) <= 0.1


def test_rows_that_the_bits_have_no_room_for_stay():
    payload = EntropyCodedQuantizer(0.65).encode(TOKENS[:, :20])  # of which they would take .8
    assert len(payload.sections) == 6 and payload.nbytes < 0.65 / 8 * 4 * 20 * 96 + 100


@pytest.mark.parametrize("damage", ["twice", "beyond", "backwards", "negative", "none", "values"])
def test_rows_that_do_not_fit_are_refused(damage):
    payload = EntropyCodedQuantizer(1.5).encode(TOKENS)
    sections = [section.clone() for section in payload.sections]
    rows = sections[6][:16].view(torch.int32)
    assert rows.tolist() == [0, 64, 128, 192]
    if damage == "none":
        sections[6] = sections[6][:0]
    elif damage == "values":
        sections[6] = sections[6][:-2]
    else:
        rows.copy_(
            torch.tensor({"twice": [0, 64, 64, 192], "beyond": [0, 64, 128, 256]}.get(damage, [-1, 64, 128, 192]))
        )
        if damage == "backwards":
            rows.copy_(torch.tensor([192, 128, 64, 0]))
    with pytest.raises(PayloadError, match="outlying rows"):
        EntropyCodedQuantizer(1.5).decode(Payload.pack(7, TOKENS, sections, payload.params))


@pytest.mark.parametrize("options", [{"bits": None}, {"bits": 1.0, "error": 0.1}, {"bits": 9.0}, {"bits": 0.0}])
def test_one_target_is_given(options):
    with pytest.raises(ValueError, match=r"give one of the two|out of range"):
        EntropyCodedQuantizer(**options)
