"""What holds for every compressor."""

import pytest
import torch
from torch import Tensor

from splitlearn.compressors import REGISTRY, Payload
from splitlearn.errors import NonFiniteError

NOISY = {"c3sl"}  # whose samples disturb one another; test_superposed.py has its bound
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


MAPS = {
    "signed": randn(4, 3, 5, 7),
    "post-ReLU": randn(4, 3, 5, 7).relu(),
    "large": randn(2, 16, 33, 31).relu(),
    "negative": -randn(101).abs(),
    "prime": randn(997),
    "zero": torch.zeros(3, 5),
    "constant": torch.full((6, 7), 0.75),
    "negative constant": torch.full((6, 7), -0.75),
    "one positive": torch.eye(1, 50),
    "one element": torch.tensor([1.5]),
    "one negative element": torch.tensor([[-1.5]]),
    "one zero": torch.zeros(1),
    "scalar": torch.tensor(2.0),
    "transposed": randn(6, 8).t(),
    "strided": randn(4, 6, 8)[:, ::2, ::3],
}


@pytest.fixture(params=list(REGISTRY))
def compressor(request):
    return REGISTRY[request.param]()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MAPS)
def test_round_trip_through_bytes(compressor, name, dtype):
    x = MAPS[name].to(dtype)
    payload = compressor.encode(x)
    assert payload.tensor.dtype == torch.uint8 and payload.tensor.dim() == 1
    assert payload.nbytes == payload.tensor.numel()
    decoded = compressor.decode(Payload.parse(payload.tensor.clone()))
    assert decoded.shape == x.shape and decoded.dtype == dtype
    assert decoded.isfinite().all()
    if compressor.name not in NOISY:
        decoded = compressor.for_evaluation().decode(compressor.for_evaluation().encode(x))
        assert (decoded - x).double().norm() <= 1.001 * x.double().norm()


def test_a_constant_or_zero_map_that_fits_the_codes_is_exact(compressor):
    for name in ("zero", "one element", "one negative element", "one zero", "scalar"):
        assert torch.equal(compressor.decode(compressor.encode(MAPS[name])), MAPS[name])


def test_the_same_seed_and_state_give_the_same_bytes(compressor):
    payloads, state = [], compressor.state_dict()
    for _ in range(2):
        compressor.seed(3)
        compressor.load_state_dict(state)
        payloads.append(compressor.encode(MAPS["large"]).tensor)
    assert torch.equal(*payloads)


def test_the_input_is_left_alone(compressor):
    x = MAPS["large"].clone().requires_grad_()
    decoded = compressor.decode(compressor.encode(x))
    assert torch.equal(x, MAPS["large"])
    assert not decoded.requires_grad


def test_the_payload_is_the_formula_and_a_header(compressor):
    x = MAPS["large"]
    payload = compressor.encode(x)
    num_bytes = sum(section.numel() for section in payload.sections) - compressor.basis_nbytes(payload)
    formula = compressor.formula_bits(x.shape) / 8
    assert num_bytes == pytest.approx(formula, abs=0.03 * formula if compressor.meets_target else 9)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_refused(compressor, value, dtype):
    x = MAPS["post-ReLU"].to(dtype).clone()
    x[1, 2, 3, 4] = value
    with pytest.raises(NonFiniteError, match="1 NaN" if value != value else "1 Inf"):
        compressor.encode(x)


def test_large_values_whose_sum_overflows_are_not_refused(compressor):
    x = torch.full((40,), 3e38)
    x[::2] = 1e38
    assert compressor.decode(compressor.encode(x)).isfinite().all()


def test_integers_and_empty_tensors_are_refused(compressor):
    with pytest.raises(TypeError, match="int64"):
        compressor.encode(torch.arange(5))
    with pytest.raises(ValueError, match="without elements"):
        compressor.encode(torch.zeros(0, 3))


def test_the_label_names_the_compressor(compressor):
    assert compressor.label.split()[0] == compressor.name
