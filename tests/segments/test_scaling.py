"""Gradients that float16 does not hold come through a part all the same."""

import copy

import pytest
import torch
from runs import metrics, slow, summary
from simulation import compose
from torch import nn

from splitlearn import local
from splitlearn.segments.parts import Older, Parts


def part() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(144, 5))


def gradients(precision: str, size: float, older: bool = False) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Of an output, and of input and weights, for an output's gradient of a size."""
    parts = Parts([part()], precision)
    run = Older(parts) if older else parts
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    output = run(x)
    output.backward(size * torch.randn(4, 5, generator=torch.Generator().manual_seed(2)))
    if older:
        run.hand_gradients_on()
    return output, [x.grad, *(weight.grad for weight in parts.parameters())]


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("size", [1e-30, 1e-9, 1.0, 1e7])
def test_gradients_of_any_size_are_those_of_full_precision(size, older):
    _, expected = gradients("fp32", size)
    output, found = gradients("fp16", size, older)
    assert output.dtype == torch.float32
    for one, other in zip(expected, found, strict=True):
        assert other.dtype == torch.float32
        assert (one.double() - other.double()).norm() < 0.01 * one.double().norm()


def test_without_it_they_vanish():
    plain, x = copy.deepcopy(part()), torch.randn(4, 3, 8, 8)
    with torch.autocast("cpu", torch.float16):
        output = plain(x)
    output.backward((1e-9 * torch.randn(4, 5)).half())
    assert not plain[0].weight.grad.any()


def test_what_is_not_finite_stays_so():
    parts = Parts([part()], "fp16")
    parts(torch.randn(2, 3, 8, 8)).backward(torch.full((2, 5), torch.inf))
    assert not parts.parts[0][0].weight.grad.isfinite().all()


def test_a_gradient_of_zeros():
    parts = Parts([part()], "fp16")
    parts(torch.randn(2, 3, 8, 8)).backward(torch.zeros(2, 5))
    assert not parts.parts[0][0].weight.grad.any()


@pytest.mark.parametrize("exchange", ["labels_up", slow("u_shaped")])
def test_a_run_learns_as_in_full_precision(exchange, tmp_path):
    options = ["num_clients=2", "batch_size=16", "epochs=1", "data.max_train_samples=64", f"exchange={exchange}"]
    losses = []
    for precision in ("fp32", "fp16"):
        local.run(compose(*options, "compressor=none", f"precision={precision}"), tmp_path / precision)
        (line,) = metrics(tmp_path / precision, "epoch")
        losses.append(line["loss"])
        assert summary(tmp_path / precision)["uplink"]["saving"] == pytest.approx(1, abs=0.01)
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
