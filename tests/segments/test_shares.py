"""What a client has to compute, and to hold, for each cut."""

import pytest
import torch
from torch import nn

from splitlearn.segments.cutting import split, valid_cuts
from splitlearn.segments.shares import Work, work_up_to
from splitlearn.tasks import task_from


class Attends(nn.Module):
    """Has parameters of its own, which it uses late, and attention, whose kernels are fused where they can be."""

    def __init__(self):
        super().__init__()
        self.first, self.layer = nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.scale, self.unused = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(100))

    def forward(self, x):
        return (self.layer(self.first(x)) * self.scale).sum(1)


def test_work_is_counted_as_by_hand():
    work = work_up_to(Attends(), ["first", "layer"], torch.randn(3, 5, 8))
    first = 2 * 5 * 8 * 8
    attention = 2 * 5 * 8 * (3 * 8 + 8) + 2 * (2 * 2 * 5 * 5 * 4)  # projections in and out; two products of each head
    layer = attention + 2 * (2 * 5 * 8 * 16)
    num = 4 * (8 * 8 + 8) + (8 * 16 + 16) + (16 * 8 + 8) + 2 * 2 * 8
    assert work == {
        "first": Work(72, first),
        "layer": Work(72 + num, first + layer),
        "": Work(72 + num + 8, first + layer),
    }


@pytest.mark.parametrize("options", [["arch=resnet18"], ["arch=googlenet"], ["task=causal_lm"]], ids=" ".join)
def test_it_is_what_the_client_segment_holds_and_does(options, config):
    cfg = config(*options)
    task = task_from(cfg)
    model, example = task.network(cfg, task.default_about(cfg)), task.example(cfg)
    paths = [point.path for point in valid_cuts(model, example)][::4]
    work = work_up_to(model, paths, example)
    for path in paths:
        client, server = split(model, path, example)
        of_client = work_up_to(client, [], example)[""]
        assert work[path] == of_client
        assert of_client.weights == sum(parameter.numel() for parameter in client.parameters())
        of_server = work_up_to(server, [], client.eval()(example).detach())[""]
        assert of_client.flops + of_server.flops == work[""].flops
