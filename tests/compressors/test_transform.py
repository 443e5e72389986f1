"""A compressor in another basis: what the transforms are, that they come back, and what they bring."""

import pytest
import torch
from torch import Tensor

from splitlearn.compressors import REGISTRY, Compressor, MaskSparsifier, Payload, UniformQuantizer
from splitlearn.compressors.transform import TRANSFORMS, hadamard
from splitlearn.compressors.uniform import EntropyCodedQuantizer
from splitlearn.errors import NonFiniteError, PayloadError

NAMES = ["dct", "hadamard", "klt"]
SHAPES = [(16, 24, 8, 12), (4, 48, 6, 5), (4, 30, 64), (64, 40), (300,), (), (8, 7, 3)]
MIXING = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(seed: int) -> Tensor:
    """(16, 24, 8, 8): 24 mixtures of four sources."""
    return (MIXING @ noise(4, 16 * 64, seed=seed)).view(24, 16, 8, 8).transpose(0, 1).contiguous()


def error_of(compressor: Compressor, maps: list[Tensor]) -> float:
    for x in maps:
        decoded = compressor.decode(compressor.encode(x))
    return float((decoded - x).norm() / x.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_transformed_comes_back_and_has_the_same_norm(name, shape, dtype):
    x = noise(*shape).to(dtype)
    one, other = TRANSFORMS[name](), TRANSFORMS[name]()
    y, sections = one.forward(x, 2.0)
    assert (y.shape, y.dtype, len(sections)) == (x.shape, x.dtype, 1)
    tolerance = 3 * torch.finfo(torch.float32 if dtype == torch.float64 else dtype).eps ** 0.9
    torch.testing.assert_close(y.double().norm(), x.double().norm(), rtol=4 * tolerance, atol=0)
    torch.testing.assert_close(other.inverse(y, sections), x, rtol=0, atol=tolerance * 4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [3e38, 1e-40, 0.0])
def test_extremes_stay_finite(name, value):
    x = torch.full((8, 16, 4, 4), value)
    x[0, 0, 0, 0] = -value
    compressor = EntropyCodedQuantizer(transform=name)
    assert compressor.decode(compressor.encode(x)).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("compressor", [MaskSparsifier, UniformQuantizer])
def test_what_is_not_finite_is_refused_before_it_is_transformed(compressor, value, name):
    codec, bad = compressor(transform=name), correlated(2)
    bad[3, 5, 1, 1] = value
    for seed in range(2):
        codec.encode(correlated(seed))
    before = codec.state_dict()
    with pytest.raises(NonFiniteError):
        codec.encode(bad)
    assert codec.state_dict() is before or before == {}


def test_hadamard_is_orthonormal_and_spreads_one_channel_over_all():
    torch.testing.assert_close(hadamard(8) @ hadamard(8), torch.eye(8))
    y, _ = TRANSFORMS["hadamard"]().forward(torch.zeros(4, 16, 8).index_fill(2, torch.tensor([2]), 1.0), 2.0)
    torch.testing.assert_close(y.abs(), torch.full((4, 16, 8), 8**-0.5))


def test_dct_gathers_what_is_smooth_in_one_place_of_sixteen():
    y, _ = TRANSFORMS["dct"]().forward(torch.ones(2, 3, 8, 8), 2.0)
    assert torch.allclose(y[:, :, ::4, ::4], torch.tensor(4.0)) and int((y.abs() > 1e-5).sum()) == 2 * 3 * 4


def test_klt_gathers_correlated_channels_in_the_first():
    y, _ = TRANSFORMS["klt"]().forward(correlated(0), 2.0)
    energy = y.square().sum((0, 2, 3))
    assert energy[:4].sum() > 0.99 * energy.sum() and energy.argmax() == 0


def test_a_basis_pays_where_channels_are_correlated():
    maps = [correlated(seed) for seed in range(3)]
    with_basis, without = (error_of(EntropyCodedQuantizer(0.65, transform=name), maps) for name in ("klt", "none"))
    assert with_basis < 0.6 * without


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("compressor", [MaskSparsifier, UniformQuantizer, EntropyCodedQuantizer])
def test_an_end_with_another_transform_refuses(compressor, name):
    payload = compressor(transform=name).encode(correlated(0))
    for other in ["none", *NAMES]:
        receiver = compressor(transform=other)
        if other == name:
            assert receiver.decode(payload).shape == payload.shape
        else:
            with pytest.raises(PayloadError):
                receiver.decode(payload)
    with pytest.raises(PayloadError):
        compressor(transform=name).decode(compressor().encode(correlated(0)))


def test_a_basis_is_sent_once_and_missing_ones_are_refused():
    sender, receiver, late = (MaskSparsifier(transform="klt") for _ in range(3))
    first, second = (Payload.parse(sender.encode(correlated(seed)).tensor) for seed in (0, 1))
    assert sender.basis_nbytes(first) == 24 * 24 * 5 / 8 and sender.basis_nbytes(second) == 0
    for payload in (first, second):
        receiver.decode(payload)
    assert sender.keeps_state and not MaskSparsifier().keeps_state
    with pytest.raises(PayloadError, match="where this end has 0 of basis 0"):
        late.decode(second)
    late.load_state_dict(sender.state_dict())
    assert torch.equal(late.decode(second), receiver.decode(second))
    assert sender.flaw_of(sender.state_dict(), (1, 24, 8, 8)) is None
    assert sender.flaw_of(sender.state_dict(), (1, 25, 8, 8)) is not None
    assert MaskSparsifier().flaw_of({"number": 1}, (1, 24, 8, 8)) == "nothing is kept for it"


def test_evaluation_begins_anew():
    codec = UniformQuantizer(transform="klt")
    codec.encode(correlated(0))
    assert codec.for_evaluation().state_dict() == {} != codec.state_dict()
    assert UniformQuantizer().for_evaluation().transform == "none"


@pytest.mark.parametrize("name", ["none", "klt", "linked"])
def test_who_has_no_use_for_one_refuses_it(name):
    with pytest.raises(ValueError, match=f"transform=dct does not go with compressor={name}"):
        REGISTRY[name](transform="dct")
    with pytest.raises(ValueError, match="transform=wavelet is unknown"):
        MaskSparsifier(transform="wavelet")
