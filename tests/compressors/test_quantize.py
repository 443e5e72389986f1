import pytest
import torch

from splitlearn.compressors import Payload, UniformQuantizer
from splitlearn.errors import PayloadError
from splitlearn.kernels import blocks
from splitlearn.kernels.bits import packed_nbytes

X = torch.randn(3, 1001, generator=torch.Generator().manual_seed(0))


def channels(*shape: int) -> torch.Tensor:
    """Channels of very different scale and offset."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    scales = 10.0 ** (torch.arange(shape[1]) % 5 - 2)
    return (x + 0.3) * scales.view(-1, *[1] * (len(shape) - 2))


def through(compressor: UniformQuantizer, x: torch.Tensor) -> torch.Tensor:
    return compressor.decode(Payload.parse(compressor.encode(x).tensor))


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


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_largest_number_of_a_dtype_stays_finite(bits, dtype):
    largest = torch.finfo(dtype).max
    for smallest in (-largest, 0.0, largest / 3):
        compressor = UniformQuantizer(bits=bits)
        decoded = compressor.decode(compressor.encode(torch.tensor([smallest, largest], dtype=dtype)))
        assert decoded.isfinite().all() and decoded[1].item() == pytest.approx(largest, rel=1e-6)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(("scope", "num_groups"), [("batch", 1), ("sample", 6), ("channel", 5)])
def test_a_range_a_group_is_each_group_by_itself(rounding, scope, num_groups, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", 64)
    x = channels(6, 5, 7, 3)
    compressor = UniformQuantizer(bits=3, scope=scope, rounding=rounding)
    payload = compressor.encode(x)
    assert [section.numel() for section in payload.sections] == [8 * num_groups, packed_nbytes(630, 3)]
    assert payload.params == (3, ("batch", "sample", "channel").index(scope), 0, 0, 0, 0)
    decoded = compressor.decode(Payload.parse(payload.tensor))
    groups = {"batch": [...], "sample": list(range(6)), "channel": [(slice(None), i) for i in range(5)]}[scope]
    for group in groups:
        here, step = decoded[group], (x[group].max() - x[group].min()) / 7
        torch.testing.assert_close(torch.stack(here.aminmax()), torch.stack(x[group].aminmax()))
        assert (here - x[group]).abs().max() <= step * (0.5 if rounding == "nearest" else 1) * (1 + 1e-5)
        if rounding == "nearest":
            alone = UniformQuantizer(bits=3)
            assert torch.equal(here, alone.decode(alone.encode(x[group])))


@pytest.mark.parametrize("shape", [(7, 5), (3, 5, 1), (1, 1, 40), (2, 1000)])
@pytest.mark.parametrize("scope", ["sample", "channel"])
def test_scopes_of_any_shape(shape, scope, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", 16)
    x = channels(*shape)
    compressor = UniformQuantizer(bits=8, scope=scope)
    decoded = compressor.decode(compressor.encode(x))
    dims = [dim for dim in range(len(shape)) if dim != ("sample", "channel").index(scope)]
    steps = (x.amax(dims, keepdim=True) - x.amin(dims, keepdim=True)) / 255
    assert ((decoded - x).abs() <= steps / 2 * (1 + 1e-4)).all()


@pytest.mark.parametrize(("scope", "shape"), [("sample", ()), ("channel", ()), ("channel", (50,))])
def test_without_the_dimension_the_scope_is_the_tensor(scope, shape):
    x = X[0, :50] if shape else X[0, 0]
    payload = UniformQuantizer(scope=scope).encode(x)
    assert payload.sections[0].numel() == 8
    assert torch.equal(UniformQuantizer(scope=scope).decode(payload), through(UniformQuantizer(), x))


def test_a_range_a_channel_is_better_for_channels_of_different_scale():
    x = channels(8, 5, 9, 9)
    errors = {
        scope: (through(UniformQuantizer(bits=4, scope=scope), x) - x).square().sum((0, 2, 3))
        / x.square().sum((0, 2, 3))
        for scope in ("batch", "sample", "channel")
    }
    assert errors["channel"].max() < 0.02
    assert errors["batch"].max() > 0.9 and errors["sample"].max() > 0.9


def test_stochastic_rounding_is_unbiased_and_rounding_to_nearest_is_not():
    x = torch.cat((torch.tensor([0.0, 1.0]), torch.linspace(0, 1, 101)))  # steps of 1/3
    num_draws = 4000
    compressor = UniformQuantizer(bits=2, rounding="stochastic")
    compressor.seed(5)
    draws = torch.stack([through(compressor, x) for _ in range(num_draws)])
    share = (3 * x).frac()
    deviation = (share * (1 - share) / num_draws).sqrt() / 3
    assert ((draws.mean(0) - x).abs() <= 5 * deviation + 1e-6).all()
    assert (through(UniformQuantizer(bits=2), x) - x).abs().max() > 0.15


def test_a_value_on_a_level_is_not_rounded_at_random():
    x = torch.arange(256.0).repeat(2000)
    assert torch.equal(through(UniformQuantizer(bits=8, rounding="stochastic"), x), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stochastic_rounding_of_other_dtypes(dtype):
    x = X.to(dtype)
    decoded = through(UniformQuantizer(bits=6, rounding="stochastic"), x)
    assert (decoded - x).abs().max() <= (x.max() - x.min()) / 63 * 1.02


def test_draws_come_from_the_seed_and_do_not_depend_on_the_blocks(monkeypatch):
    compressor = UniformQuantizer(rounding="stochastic")
    payloads = []
    for block in (1 << 19, 64):
        monkeypatch.setattr(blocks, "CPU_BLOCK", block)
        compressor.seed(3)
        payloads.append(compressor.encode(X).tensor)
    assert torch.equal(*payloads)
    assert not torch.equal(payloads[0], compressor.encode(X).tensor)


def test_evaluation_rounds_to_nearest():
    compressor = UniformQuantizer(bits=4, scope="channel", rounding="stochastic")
    nearest = UniformQuantizer(bits=4, scope="channel")
    assert compressor.for_evaluation() == nearest and nearest.for_evaluation() is nearest
    payload = compressor.for_evaluation().encode(X)
    assert torch.equal(compressor.decode(payload), through(nearest, X))


def test_many_ranges_are_in_the_formula():
    shape = (4, 10, 3)
    assert UniformQuantizer(bits=3).formula_bits(shape) == 360
    assert UniformQuantizer(bits=3, scope="sample").formula_bits(shape) == 360 + 4 * 64
    assert UniformQuantizer(bits=3, scope="channel").formula_bits(shape) == 360 + 10 * 64


def test_another_width_is_refused():
    with pytest.raises(PayloadError, match="bits"):
        UniformQuantizer(bits=4).decode(UniformQuantizer(bits=5).encode(X))


@pytest.mark.parametrize("scope", ["sample", "channel"])
def test_another_scope_is_refused(scope):
    with pytest.raises(PayloadError, match="scope=batch"):
        UniformQuantizer().decode(UniformQuantizer(scope=scope).encode(X))
    with pytest.raises(PayloadError, match=f"per batch.*scope={scope}"):
        UniformQuantizer(scope=scope).decode(UniformQuantizer().encode(X))


def test_a_payload_that_does_not_fit_its_scope_is_refused():
    sections = [section.clone() for section in UniformQuantizer(scope="sample").encode(X).sections]
    for params, reason in (((3, 2), "sections of"), ((3, 77), "unknown scope 77")):
        with pytest.raises(PayloadError, match=reason):
            UniformQuantizer(scope="channel").decode(Payload.pack(1, X, sections, params))
    for shape in ((0, 5), (5, 0), (0,)):
        with pytest.raises(PayloadError, match="impossible shape"):
            Payload.pack(1, torch.zeros(shape), sections, (3, 1))


@pytest.mark.parametrize("options", [{"bits": 0}, {"bits": 9}, {"scope": "pixel"}, {"rounding": "floor"}], ids=str)
def test_options_out_of_range_are_named(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        UniformQuantizer(**options)
