"""A codec of one's own that moves on with each payload, on either end, and takes no care of where it is called."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from splitlearn.compressors.base import Compressor
from splitlearn.exchange.layer import compress, receive, send
from splitlearn.kernels.sections import view_as


class RunningMean:
    keeps_state = True
    mean = None

    def state_dict(self):
        return {} if self.mean is None else {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state.get("mean")


@dataclass
class Around(Compressor):
    """Sends the sign of what differs from the mean of the maps before, and how much that is in the mean."""

    codec: ClassVar[int] = 102
    name: ClassVar[str] = "around"

    def __post_init__(self):
        super().__post_init__()
        self.keeper = RunningMean()

    def to_sections(self, x):
        base = self.base(x.shape)
        step = (x - base).abs().mean().view(1)
        signs = (x >= base).view(-1).byte()
        self.arrived(signs, step, x.shape)
        return [step, signs], ()

    def from_sections(self, sections, payload):
        return self.arrived(sections[1], view_as(sections[0], torch.float32), payload.shape).view(-1)

    def arrived(self, signs, step, shape):
        found = self.base(shape) + (2 * signs.view(shape).float() - 1) * step
        self.keeper.mean = (self.base(shape) + found.mean(0)) / 2
        return found

    def base(self, shape):
        return torch.zeros(shape[1:]) if self.keeper.mean is None else self.keeper.mean

    def formula_bits(self, shape, value_bits=32):
        return 8


def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 6, generator=generator) + 3 for _ in range(5)]


@pytest.mark.parametrize("backward", ["straight_through", "gated", "gain"])
def test_both_ends_in_one_process_are_as_two(backward):
    alone, up, down, there_up, there_down = (Around() for _ in range(5))
    way_down = Around()
    for x in batches():
        here = x.clone().requires_grad_()
        y = compress(here, alone, way_down, backward)
        (y**2).sum().backward()

        apart = x.clone().requires_grad_()
        sent = send(apart, up, down, backward)
        received = receive(sent.wire, there_up, there_down)
        (received.tensor**2).sum().backward()
        sent.backward(received.gradient_wire)
        assert torch.equal(y, received.tensor)
        assert torch.equal(here.grad, apart.grad)
    for one in (alone, up):
        assert torch.equal(one.keeper.mean, there_up.keeper.mean)
    for one in (way_down, down):
        assert torch.equal(one.keeper.mean, there_down.keeper.mean)
    assert (there_up.keeper.mean - 3).abs().max() < 1  # it has come to where they are
