"""The pair of layers at a cut: where it sits in any model, and that it starts as the maps' PCA."""

import copy
from functools import reduce
from operator import add

import pytest
import torch
from torch import nn

import splitlearn
from splitlearn.errors import UserError
from splitlearn.segments import CutPoint, split, valid_cuts, with_bottleneck
from splitlearn.segments.bottleneck import Bottleneck, Moments, channels_at, fitted, insert
from splitlearn.tasks.image_classification import networks

SHAPES = [(12, 5, 4), (12, 3, 4, 2), (7, 12), (12,)]


def maps_of(shape, num_samples=40, seed=0):
    """Maps whose 12 channels are correlated, with a mean that is not zero."""
    draw = torch.Generator().manual_seed(seed)
    axis = len(shape) - 1 if len(shape) == 2 else 0
    places = [size for dimension, size in enumerate(shape) if dimension != axis]
    x = torch.randn(num_samples, *places, 5, generator=draw) @ torch.randn(5, 12, generator=draw)
    return (x + 0.3 * torch.randn(x.shape, generator=draw) + torch.arange(12.0)).movedim(-1, axis + 1)


def rows_of(maps):
    return (maps if maps.dim() == 3 else maps.movedim(1, -1)).reshape(-1, 12).double()


def least_error(maps, channels):
    """Of the best affine projection, by a singular value decomposition."""
    rows = rows_of(maps)
    return torch.linalg.svdvals(rows - rows.mean(0))[channels:].square().sum().sqrt() / rows.norm()


def error(pair, maps):
    with torch.no_grad():
        return (pair(maps) - maps).norm() / maps.norm()


def start_of(maps, shape, channels, parts=3):
    """A pair that was fitted to the moments of several parts of the maps, as they are sent."""
    moments = [Moments.unpack(*Moments.of(part).packed()) for part in maps.chunk(parts)]
    pair = Bottleneck(shape, channels)
    reduced = tuple(pair.reduce(maps).shape[1:])
    weights, share = fitted(CutPoint("a.b", reduced, torch.float32, (channels, 12)), reduce(add, moments))
    pair.load_state_dict({name.removeprefix("bottleneck_a_b."): value for name, value in weights.items()})
    return pair, share


@pytest.mark.parametrize("channels", [1, 4, 11])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_starts_as_the_best_projection_of_the_maps(shape, channels):
    maps = maps_of(shape)
    pair, share = start_of(maps, shape, channels)
    best = least_error(maps, channels)
    assert error(pair, maps).item() == pytest.approx(best.item(), rel=1e-4)
    assert error(Bottleneck(shape, channels), maps) > best + 0.01
    rows = rows_of(maps)
    lost = (best * rows.norm()).square() / (rows - rows.mean(0)).square().sum()
    assert share == pytest.approx(1 - lost.item(), abs=1e-5)
    with torch.no_grad():
        crossing = pair.reduce(maps)
    mean = (crossing if crossing.dim() == 3 else crossing.movedim(1, -1)).flatten(0, -2).mean(0)
    torch.testing.assert_close(mean, torch.zeros(channels), atol=1e-4, rtol=0)


def test_parts_of_very_different_sizes_and_means_add_up():
    shape = (12,)
    parts = [maps_of(shape, 3), maps_of(shape, 500, seed=1) + 100, maps_of(shape, 1, seed=2) - 50]
    zero = Moments.zero(12)
    total, whole = reduce(add, map(Moments.of, parts), zero + zero), Moments.of(torch.cat(parts))
    assert total.count == whole.count == 504
    torch.testing.assert_close(total.mean, whole.mean)
    torch.testing.assert_close(total.scatter, whole.scatter, rtol=1e-6, atol=1e-4)


def test_where_nobody_has_maps_nothing_is_fitted():
    weights, share = fitted(CutPoint("a", (4,), torch.float32, (4, 12)), Moments.zero(12))
    assert weights == {} and share != share


def test_maps_that_are_all_the_same_are_kept_whole():
    maps = torch.arange(12.0).expand(6, 12)
    pair, share = start_of(maps, (12,), 2)
    assert share == 1 and error(pair, maps) < 1e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_at_random_it_is_an_orthogonal_projection(shape):
    pair, other = Bottleneck(shape, 5, seed=3), Bottleneck(shape, 5, seed=4)
    weight = pair.reduce.weight.flatten(1)
    torch.testing.assert_close(weight @ weight.T, torch.eye(5), atol=1e-5, rtol=0)
    assert torch.equal(pair.expand.weight.flatten(1), weight.T)
    assert torch.equal(Bottleneck(shape, 5, seed=3).reduce.weight, pair.reduce.weight)
    assert not torch.equal(other.reduce.weight, pair.reduce.weight)


class Sequences(nn.Module):
    """(B, 6) numbers, (B, 6, 12) within."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(1, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.mix(self.embed(x.unsqueeze(-1)).relu()).mean(1))


def vgg():
    return networks.build("vgg_slim", 10, 32), torch.zeros(2, 3, 32, 32)


@pytest.mark.parametrize(
    ("model", "cut", "crosses"),
    [
        (vgg, "features.9", (2, 4, 16, 16)),
        (lambda: (networks.build("resnet18", 10, 32), torch.zeros(2, 3, 32, 32)), "layer1.0.relu", (2, 4, 32, 32)),
        (lambda: (networks.build("convnet", 10, 32), torch.zeros(2, 3, 32, 32)), "flatten", (2, 4)),
        (lambda: (Sequences(), torch.zeros(2, 6)), "mix", (2, 6, 4)),
    ],
    ids=["4-D", "an activation that is used twice", "2-D", "3-D"],
)
def test_any_model_is_cut_within_it(model, cut, crosses, noise):
    torch.manual_seed(0)
    model, example = model()
    before, x = copy.deepcopy(model), noise(*example.shape)
    whole = with_bottleneck(model, cut, 4, example)
    name = f"bottleneck_{cut.replace('.', '_')}"
    own = {f"{name}.{key}" for key in ("reduce.weight", "reduce.bias", "expand.weight", "expand.bias")}
    assert whole.state_dict().keys() == model.state_dict().keys() | own
    client, server = split(whole, f"{name}.reduce", example)
    assert client.state_dict().keys() & own == {f"{name}.reduce.weight", f"{name}.reduce.bias"}
    for training in (True, False):
        for part in (whole, client, server, before):
            part.train(training)
        torch.manual_seed(1)
        smashed = client(x)
        assert smashed.shape == crosses
        found = server(smashed)
        torch.manual_seed(1)
        expected = copy.deepcopy(whole)(x)
        assert torch.equal(found, expected)
        assert not torch.allclose(before(x), expected)
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in model.state_dict().items())


def test_one_that_loses_nothing_changes_nothing(noise):
    torch.manual_seed(0)
    model, x = Sequences().eval(), noise(4, 6)
    pair = Bottleneck((6, 12), 12)  # a rotation and back
    whole = insert(model, "mix", pair)
    torch.testing.assert_close(whole(x), model(x))
    assert [point.path for point in valid_cuts(whole, x)] == [
        *("embed", "mix", "bottleneck_mix.reduce", "bottleneck_mix.expand")
    ]


def test_two_in_a_row_and_what_export_writes_loads(noise):
    example = torch.zeros(2, 3, 32, 32)
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = splitlearn.with_bottleneck(networks.build("convnet", 10, 32), "block1", 8, example, seed)
        models.append(splitlearn.with_bottleneck(model, "pool", 4, example, seed).eval())
    x = noise(*example.shape)
    assert not torch.allclose(models[0](x), models[1](x))
    models[1].load_state_dict(models[0].state_dict())
    assert torch.equal(models[0](x), models[1](x))


@pytest.mark.parametrize(
    ("cut", "channels", "words"),
    [
        ("block2", 64, "bottleneck=64 leaves as many channels as the map after block2 has, 64, or more: choose fewer"),
        ("block9", 4, "cut=block9 is not possible: no module has this path"),
    ],
)
def test_what_cannot_be_is_one_sentence(cut, channels, words):
    with pytest.raises(UserError, match=words):
        with_bottleneck(networks.build("convnet", 10, 32), cut, channels, torch.zeros(2, 3, 32, 32))


def test_a_map_without_channels_is_one_sentence():
    class Number(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), nn.Linear(1, 2)

        def forward(self, x):
            return self.last(self.first(x).unsqueeze(1))

    with pytest.raises(UserError, match="bottleneck=1 is not possible after first, whose map is a number a sample"):
        with_bottleneck(Number(), "first", 1, torch.zeros(2, 3))


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "abc", {}, [], [None], [0], [True, 4], [4, "a"]])
def test_other_values_are_refused(value):
    with pytest.raises(UserError, match=r"^bottleneck=.* must be null, a whole number of channels"):
        channels_at(value, 1, "labels_up")


def test_a_number_is_for_each_cut_and_a_list_one_for_each():
    assert channels_at(None, 2, "u_shaped") == [None, None] and channels_at(8, 2, "u_shaped") == [8, 8]
    assert channels_at([8, None], 2, "u_shaped") == [8, None] and channels_at([8], 1, "labels_up") == [8]
    with pytest.raises(UserError, match=r"bottleneck=\[8, 4\] is of 2 cuts, and exchange=labels_up has 1"):
        channels_at([8, 4], 1, "labels_up")
