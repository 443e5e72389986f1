import pytest
import torch
from simulation import compose
from torch import nn

from splitlearn.errors import UserError
from splitlearn.exchange import network

LAST = torch.channels_last


class Viewed(nn.Module):
    """A network that needs values one behind the other."""

    def __init__(self, num_classes):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=8)
        self.second = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(64, num_classes)

    def forward(self, x):
        x = self.second(self.first(x).relu())
        return self.head(x.view(x.shape[0], -1))


def built(*overrides):
    return network.build(compose(*overrides), {"num_classes": 10})


@pytest.mark.parametrize(
    "overrides, is_last",
    [
        ([], False),
        (["precision=bf16"], True),
        (["channels_last=true"], True),
        (["precision=bf16", "channels_last=false"], False),
    ],
)
def test_weights_and_maps_have_their_channels_last_where_that_is_wanted(overrides, is_last):
    plain, found = built("channels_last=false"), built(*overrides)
    x = torch.rand(2, 3, 32, 32)
    for side, other in ((found.client, plain.client), (found.server, plain.server)):
        for (name, weight), expected in zip(side.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(weight, expected), name
            if weight.dim() == 4 and weight.shape[1] > 1:
                assert weight.is_contiguous(memory_format=LAST) == is_last and weight.is_contiguous() != is_last
        x = side(x)
        assert x.dim() == 2 or x.is_contiguous(memory_format=LAST) == is_last
    assert found.client.training and found.server.training


def test_a_network_that_cannot_be_computed_like_that_is_as_it_was(monkeypatch):
    options = ["arch=own", "arch._target_=test_layout.Viewed", "cut=first", "precision=bf16"]
    assert all(weight.is_contiguous() for weight in built(*options).model.parameters())
    with pytest.raises(UserError, match=r"^channels_last=true does not go with this network \(.*view.*flatten"):
        built(*options, "channels_last=true")
