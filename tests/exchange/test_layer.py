import pytest
import torch
from torch import nn

import splitlearn
from splitlearn.compressors import Identity, MaskSparsifier, TopKSparsifier, UniformQuantizer
from splitlearn.errors import NonFiniteError, PayloadError
from splitlearn.exchange.layer import compress, mask_sparsify

OPTIONS = [
    {},
    {"ratio": 0.0},
    {"ratio": 0.9, "bits": 1},
    {"ratio": 0.75, "bits": 3, "rounding": "floor"},
    {"ratio": 0.9, "bits": 8},
    {"ratio": 0.9, "bits": 2, "scope": "sample"},
]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def through(x: torch.Tensor, incoming: torch.Tensor, function) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of `function`, and the gradient that reaches `x` when `incoming` reaches the output."""
    x = x.clone().requires_grad_()
    out = function(x)
    (gradient,) = torch.autograd.grad(out, x, incoming)
    return out.detach(), gradient


@pytest.mark.parametrize("signed", [False, True], ids=["relu", "signed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_mask_sparsify_is_what_the_server_decodes(options, dtype, signed):
    x = randn(4, 3, 5, 5, dtype=dtype)
    x = x if signed else x.relu()
    compressor = MaskSparsifier(**options)
    before, expected = x.clone(), compressor.decode(compressor.encode(x))
    out = mask_sparsify(x, **options)
    assert out.dtype == dtype and out.shape == x.shape
    assert torch.equal(out, expected)
    assert torch.equal(x, before)


def test_mask_sparsify_takes_a_strided_map():
    x = randn(2, 3, 4, 5)
    strided = x.permute(0, 2, 3, 1)
    assert not strided.is_contiguous()
    assert torch.equal(mask_sparsify(strided, 0.9), mask_sparsify(strided.contiguous(), 0.9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_straight_through_passes_the_gradient_unchanged(options, dtype):
    x, incoming = randn(4, 60, dtype=dtype).relu(), randn(4, 60, seed=1, dtype=dtype)
    _, gradient = through(x, incoming, lambda x: mask_sparsify(x, **options))
    assert gradient.dtype == dtype
    assert torch.equal(gradient, incoming)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gated_passes_the_gradient_only_where_decoded_is_not_zero(options, dtype):
    x, incoming = randn(4, 60, dtype=dtype).relu(), randn(4, 60, seed=1, dtype=dtype)
    out, gradient = through(x, incoming, lambda x: mask_sparsify(x, **options, backward="gated"))
    passes = out != 0
    assert passes.any() and not passes.all()
    assert torch.equal(gradient[passes], incoming[passes])
    assert not gradient[~passes].any()


@pytest.mark.parametrize("backward", ["straight_through", "gated"])
@pytest.mark.parametrize("downlink", [UniformQuantizer(4), TopKSparsifier(0.5)], ids=lambda downlink: downlink.name)
def test_compress_sends_the_gradient_through_the_downlink(downlink, backward):
    x, incoming = randn(4, 60).relu(), randn(4, 60, seed=1)
    out, gradient = through(x, incoming, lambda x: compress(x, MaskSparsifier(0.9), downlink, backward))
    expected = downlink.decode(downlink.encode(incoming))
    assert not torch.equal(expected, incoming)
    assert torch.equal(gradient, expected * (out != 0) if backward == "gated" else expected)


@pytest.mark.parametrize("shape", [(4, 9, 24), (4, 24), (4, 24, 3, 3), (24,)], ids=str)
def test_tangent_takes_off_what_lies_along_each_vector_and_nothing_else(shape, dtype=torch.float64):
    x, incoming = randn(*shape).to(dtype), randn(*shape, seed=1).to(dtype)
    out, plain = through(x, incoming, lambda x: compress(x, MaskSparsifier(0.9), UniformQuantizer(3)))
    same, gradient = through(x, incoming, lambda x: compress(x, MaskSparsifier(0.9), UniformQuantizer(3), "tangent"))
    axis = {3: 2, 1: 0}.get(len(shape), 1)
    assert torch.equal(out, same)
    along = (gradient * x).sum(axis) / (gradient.norm(dim=axis) * x.norm(dim=axis))
    assert along.abs().max() < 1e-6
    taken = plain - gradient
    assert torch.allclose(
        taken, x * (taken * x).sum(axis, keepdim=True) / x.square().sum(axis, keepdim=True), atol=1e-6
    )
    assert taken.norm() > 0.05 * plain.norm()


def test_tangent_leaves_an_exact_gradient_and_a_vector_of_zeros_alone():
    x, incoming = randn(4, 6), randn(4, 6, seed=1)
    _, gradient = through(x, incoming, lambda x: compress(x, MaskSparsifier(0.9), Identity(), "tangent"))
    assert torch.equal(gradient, incoming)
    x[1], x[2] = 0, 1e-30 * x[2]
    _, plain = through(x, incoming, lambda x: compress(x, Identity(), UniformQuantizer(4)))
    _, gradient = through(x, incoming, lambda x: compress(x, Identity(), UniformQuantizer(4), "tangent"))
    assert torch.equal(gradient[1], plain[1]) and gradient.isfinite().all()
    tiny = 1e30 * x[2]
    assert (gradient[2] * tiny).sum().abs() < 1e-5 * gradient[2].norm() * tiny.norm()


def test_identity_is_no_compression():
    x, incoming = randn(4, 6), randn(4, 6, seed=1)
    out, gradient = through(x, incoming, lambda x: compress(x, Identity()))
    assert torch.equal(out, x) and torch.equal(gradient, incoming)


@pytest.mark.parametrize("backward", ["foo", "", "Gated", None])
def test_unknown_backward_is_refused(backward):
    with pytest.raises(ValueError, match=f"^backward={backward} is unknown"):
        mask_sparsify(randn(8), backward=backward)
    with pytest.raises(ValueError, match=f"^backward={backward} is unknown"):
        compress(randn(8), Identity(), backward=backward)


@pytest.mark.parametrize(
    "option, value",
    [
        ("ratio", 1),
        ("ratio", 1.5),
        ("ratio", -0.1),
        ("ratio", float("nan")),
        ("bits", 0),
        ("bits", 9),
        ("rounding", "up"),
        ("scope", "pixel"),
    ],
)
def test_option_out_of_range_is_named(option, value):
    with pytest.raises(ValueError, match=f"^{option}={value} is "):
        mask_sparsify(randn(8), **{option: value})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_values_are_refused(value, dtype):
    x = randn(4, 6, dtype=dtype)
    x[2, 3] = value
    with pytest.raises(NonFiniteError, match="1 NaN" if value != value else "1 Inf"):
        mask_sparsify(x)


def test_non_finite_gradient_is_refused():
    with pytest.raises(NonFiniteError):
        through(randn(4), torch.tensor([0, 1, float("inf"), 0]), lambda x: compress(x, Identity(), UniformQuantizer(4)))


@pytest.mark.parametrize("backward", ["straight_through", "gated"])
def test_model_with_mask_sparsify_trains(backward):
    class Layer(nn.Module):
        def forward(self, x):
            return mask_sparsify(x, 0.75, backward=backward)

    inputs = randn(32, 8)
    targets = (inputs[:, :1] * inputs[:, 1:2] > 0).float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), Layer(), nn.Linear(32, 1))
    before = model[0].weight.detach().clone()
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.01), []
    for _ in range(100):
        loss = nn.functional.binary_cross_entropy_with_logits(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    assert not torch.equal(model[0].weight, before)


@pytest.mark.parametrize("backward", ["straight_through", "gated"])
@pytest.mark.parametrize("downlink", [None, UniformQuantizer(bits=4)])
def test_send_and_receive_are_compress_with_a_wire_between(backward, downlink, noise):
    one, other = (noise(4, 8, relu=True).requires_grad_() for _ in range(2))
    weights, up = noise(4, 8, seed=1), MaskSparsifier(0.7)
    joined = splitlearn.compress(one, up, downlink, backward)
    (joined * weights).sum().backward()
    sent = splitlearn.send(other, up, downlink, backward)
    received = splitlearn.receive(sent.wire, up, downlink)
    assert torch.equal(received.tensor, joined) and sent.wire.dtype == torch.uint8
    (received.tensor * weights).sum().backward()
    sent.backward(received.gradient_wire)
    assert torch.equal(other.grad, one.grad)


def test_another_shape_or_dtype_than_is_expected_is_refused_before_memory_is_taken(noise, monkeypatch):
    up, x = UniformQuantizer(lossless="zstd"), noise(4, 8)
    wire = splitlearn.send(x.clone().requires_grad_(), up).wire
    received = splitlearn.receive(wire, up, expected=((4, 8), torch.float32))
    assert torch.equal(received.tensor, splitlearn.receive(wire, up).tensor)
    large = splitlearn.send(torch.zeros(1 << 22, requires_grad=True), up).wire
    assert large.numel() < 1 << 10
    monkeypatch.setattr(UniformQuantizer, "from_sections", None)
    for sent, expected in (
        (large, ((4, 8), torch.float32)),
        (wire, ((8, 4), torch.float32)),
        (wire, ((4, 8), torch.half)),
    ):
        with pytest.raises(PayloadError, match="is expected"):
            splitlearn.receive(sent, up, expected=expected)


def test_what_is_no_payload_is_refused_at_both_ends(noise):
    up = MaskSparsifier(0.7)
    sent = splitlearn.send(noise(4, 8).requires_grad_(), up)
    received = splitlearn.receive(splitlearn.send(noise(2, 8).requires_grad_(), up).wire, up)
    received.tensor.sum().backward()
    for wire in (received.gradient_wire, torch.zeros(3, dtype=torch.uint8)):
        with pytest.raises(PayloadError):
            sent.backward(wire)
    with pytest.raises(PayloadError):
        splitlearn.receive(sent.wire, UniformQuantizer())
    with pytest.raises(ValueError, match="backward=sideways"):
        splitlearn.send(noise(4, 8), up, backward="sideways")
