"""Cuts of networks that are not torchvision's: optional arguments, tuples, recurrence, shared weights, odd forwards."""

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from runs import slow
from test_cutting import assert_split_equals_whole
from torch import nn

from splitlearn.errors import UserError
from splitlearn.segments import split, valid_cuts
from splitlearn.segments.bottleneck import with_bottleneck
from splitlearn.segments.cutting import run
from splitlearn.segments.parts import Parts


class Optional(nn.Module):
    """Optional arguments, dropout as a function, and a constant and a buffer that no state holds."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 10)
        self.register_buffer("scales", torch.rand(6, 1, 1), persistent=False)

    def forward(self, x, scale=2.0, *, mask=None):
        x = F.dropout(self.first(x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) * scale, 0.5, self.training)
        return self.head(F.dropout(self.second(x) * self.scales, training=self.training).mean((2, 3)))


class Dropping(nn.Module):
    """Drops half of what each of its layers gives, as a function."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return F.dropout(self.b(F.dropout(self.a(x), 0.5, self.training)), 0.5, self.training)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Linear(96, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 10)

    def forward(self, x):
        outputs, _ = self.rnn(self.embed(x.permute(0, 2, 1, 3).flatten(2)))
        return self.head(outputs[:, -1])


class Block(nn.Module):
    """One whose forward depends on its data, which no trace follows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else self.conv(-x)


class Counting(nn.BatchNorm2d):
    """A batch norm of one's own, which counts its batches while it is traced."""

    def __init__(self):
        super().__init__(4)
        self.drop = nn.Identity()

    def forward(self, x):
        if self.training:
            self.num_batches_tracked.add_(1)
        return self.drop(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training))


class Chain(nn.Module):
    """First, what is between, and a head; `forward` as one likes."""

    def __init__(self, forward=None, between=None):
        super().__init__()
        self.first, self.between = nn.Conv2d(3, 4, 3), between or nn.Conv2d(4, 4, 3)
        self.last, self.head, self.how = nn.Conv2d(4, 4, 1), nn.Linear(4, 10), forward

    def forward(self, x):
        if self.how:
            return self.how(self, x)
        return self.head(self.last(self.between(self.first(x))).mean((2, 3)))


def noisy(model, x):
    x = model.first(x)
    return model.head((x + torch.randn_like(x) if model.training else x).mean((2, 3)))


def branching(model, x):
    return model.head(model.first(x if x.sum() > 0 else -x).mean((2, 3)))


def branching_late(model, images):
    x = model.first(images)
    return model.head((x if images.sum() > 0 else -x).mean((2, 3)))


def twice(model, x):
    return model.head(model.last(model.between(model.last(model.first(x)))).mean((2, 3)))


def two_outputs(model, x):
    x = model.first(x)
    return model.head(x.mean((2, 3))), x


def in_place(model, x):
    x = model.first(x.mul_(2))
    x.relu_()
    return model.head(x.mean((2, 3)))


def paths(model, images):
    return [point.path for point in valid_cuts(model, images)]


@pytest.mark.parametrize(
    "model, cuts",
    [
        (Optional, ["first", "second"]),
        (Recurrent, ["embed"]),
        (lambda: Chain(between=Block()), ["first", "between", "last"]),
        (lambda: Chain(between=Counting()), ["first", "between", "last"]),
        (lambda: Chain(twice), ["first", "last"]),
        (lambda: Chain(branching), ["first"]),
    ],
    ids=["optional", "recurrent", "a block that cannot be traced", "a batch norm of one's own", "twice", "branching"],
)
def test_all_that_is_listed_splits(model, cuts, noise):
    torch.manual_seed(0)
    model, images = model(), noise(2, 3, 32, 32)
    before = copy.deepcopy(model.state_dict())
    assert paths(model, images) == cuts
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    for cut in cuts:
        assert_split_equals_whole(copy.deepcopy(model), cut, images)


@pytest.mark.parametrize(
    "model, cut, reason",
    [
        (Recurrent, "rnn", "the module's output is not one tensor of floats with the samples as its first dimension"),
        (lambda: Chain(between=Counting()), "between.drop", "both segments would change between.num_batches_tracked"),
        (lambda: Chain(twice), "between", "both segments would have last.weight"),
        (lambda: Chain(two_outputs), "first", "the model gives a tuple, where one tensor is needed.*Valid cuts: none"),
        (lambda: Chain(noisy), "first", "something else in training than in evaluation.*module of its own"),
        (lambda: Chain(branching_late), "first", "the halves do not compute what the model does.*Valid cuts: none"),
        (lambda: Chain(in_place), "first", "the halves do not compute what the model does"),
    ],
)
def test_what_cannot_be_is_one_sentence(model, cut, reason, noise):
    torch.manual_seed(0)
    with pytest.raises(UserError, match=f"^cut={cut} is not possible: .*{reason}"):
        split(model(), cut, noise(2, 3, 32, 32))


@pytest.mark.parametrize("frozen", [["one"], ["two"], ["one", "two"], []], ids=str)
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("cuts", [["one.a"], ["one.a", "two.a"], ["one", "two.a"]], ids=str)
def test_a_module_that_a_cut_opens_drops_nothing_where_it_is_frozen(cuts, narrow, frozen, noise):
    model, x = nn.Sequential(OrderedDict(one=Dropping(), two=Dropping(), head=nn.Linear(6, 10))), noise(4, 6)
    if narrow:
        model = with_bottleneck(model, cuts[0], 2, x)
        cuts = [f"bottleneck_{cuts[0].replace('.', '_')}.reduce", *cuts[1:]]
    rest, reached, parts = model, x, []
    for cut in cuts:
        part, rest = split(rest, cut, reached)
        reached = run(part, reached)
        parts.append(Parts([part]))
    parts.append(Parts([rest]))
    for part in (one := Parts([model])), *parts:
        part.freeze(frozen)
        part.train()
    drawn = set()
    for seed in range(4):
        torch.manual_seed(seed)
        expected = one(x)
        torch.manual_seed(seed)
        found = x
        for part in parts:
            found = part(found)
        assert torch.equal(found, expected)
        drawn.add(found.sum().item())
    assert len(drawn) == (1 if len(frozen) == 2 else 4)


def test_sequences_before_samples_are_no_cut(noise):
    model = Chain(lambda model, x: model.head(model.last(model.first(x).permute(2, 1, 0, 3)).mean((2, 3))))
    with pytest.raises(UserError, match=r"^cut=last is not possible: .*first dimension"):
        split(model, "last", noise(2, 3, 32, 32))


def test_images_that_it_cannot_take_are_one_sentence(noise):
    with pytest.raises(UserError, match=r"cannot take a torch.float32 tensor of shape 2×1×32×32: RuntimeError: .*"):
        split(Chain(), "first", noise(2, 1, 32, 32))


@pytest.mark.parametrize(
    "name, image_size, cut",
    [
        ("vit_tiny_patch16_224", 224, "blocks.5"),
        slow("deit_tiny_patch16_224", 224, "blocks.3"),
        slow("eva02_tiny_patch14_224", 224, "blocks.5"),
        slow("vit_small_patch14_dinov2", 224, "blocks.1"),
        slow("mobilevit_xs", 64, "stages.1"),
    ],
)
def test_timms_networks_split(name, image_size, cut, noise):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    options = {"img_size": image_size} if "vit_small" in name else {}
    model, images = timm.create_model(name, num_classes=10, **options), noise(2, 3, image_size, image_size)
    assert cut in paths(model, images)
    assert_split_equals_whole(model, cut, images)
