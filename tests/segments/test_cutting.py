import copy

import pytest
import torch
from runs import slow
from torch import nn

from splitlearn.errors import UserError
from splitlearn.segments import CutPoint, split, valid_cuts
from splitlearn.tasks.image_classification import networks

ARCHS = ["convnet", "vgg16", "vgg19", "resnet18", "resnet34"]
NAMES = ["shallow", "medium", "deep"]


@pytest.fixture(scope="module")
def network():
    """network(name, image_size): built once; copied where a test changes it."""
    built = {}

    def get(name, image_size=32):
        if (name, image_size) not in built:
            torch.manual_seed(0)
            built[name, image_size] = networks.build(name, 10, image_size)
        return built[name, image_size]

    return get


def assert_split_equals_whole(model, cut, images):
    """In training mode, where batch norm and dropout change, and in evaluation mode; the names are the whole's."""
    whole = copy.deepcopy(model)
    client, server = split(model, cut, images)
    for training in (True, False):
        for part in (whole, client, server):
            part.train(training)
        torch.manual_seed(1)
        expected = whole(images)
        torch.manual_seed(1)
        smashed = client(images)
        before = smashed.detach().clone()
        assert torch.equal(server(smashed), expected)
        assert torch.equal(smashed, before)
    state = {**client.state_dict(), **server.state_dict()}
    assert len(state) == len(client.state_dict()) + len(server.state_dict())
    assert state.keys() == whole.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.state_dict().items())
    mine = [name for part in (client, server) for name, _ in part.named_parameters()]
    assert sorted(mine) == sorted(name for name, _ in whole.named_parameters())
    return smashed


@pytest.mark.parametrize("cut", NAMES)
@pytest.mark.parametrize("arch", ARCHS)
def test_segments_are_the_network_bit_for_bit(arch, cut, network, config, noise):
    path = config(f"arch={arch}").arch.cuts[cut]
    assert_split_equals_whole(copy.deepcopy(network(arch)), path, noise(3, 3, 32, 32))


@pytest.mark.parametrize("cut", ["block1", "block2.0", "block3.2", "pool", "flatten"])
def test_gradients_are_those_of_the_whole_network(cut, network, noise):
    images = noise(3, 3, 32, 32)
    whole, model = copy.deepcopy(network("convnet")), copy.deepcopy(network("convnet"))
    client, server = split(model, cut, images)
    whole(images).square().sum().backward()
    server(client(images)).square().sum().backward()
    mine = dict(client.named_parameters()) | dict(server.named_parameters())
    assert all(torch.equal(mine[name].grad, parameter.grad) for name, parameter in whole.named_parameters())


@pytest.mark.parametrize(
    "arch, image_size, shapes",
    [
        ("vgg19", 32, [(64, 16, 16), (256, 4, 4), (512, 2, 2)]),
        ("resnet18", 32, [(64, 32, 32), (128, 16, 16), (256, 8, 8)]),
        ("resnet34", 224, [(64, 56, 56), (128, 28, 28), (256, 14, 14)]),
    ],
)
def test_maps_are_those_of_the_papers_table(arch, image_size, shapes, network, config):
    points = {point.path: point for point in valid_cuts(network(arch, image_size), networks.example(image_size))}
    cuts = config(f"arch={arch}").arch.cuts
    assert [points[cuts[name]].shape for name in NAMES] == shapes
    assert points[cuts["shallow"]].nbytes == 4 * torch.Size(shapes[0]).numel()


@pytest.mark.parametrize("arch", ["convnet", slow("resnet18")])
def test_every_valid_cut_splits_into_the_map_it_names(arch, network, noise):
    images = noise(2, 3, 32, 32)
    points = valid_cuts(network(arch), images)
    assert len({point.path for point in points}) == len(points) > 8
    for point in points:
        smashed = assert_split_equals_whole(copy.deepcopy(network(arch)), point.path, images)
        assert (tuple(smashed.shape[1:]), smashed.dtype) == (point.shape, point.dtype)


@pytest.mark.parametrize("training", [True, False])
def test_listing_the_cuts_changes_nothing(training, network, noise):
    model = copy.deepcopy(network("convnet")).train(training)
    model.block1.eval()
    before = copy.deepcopy(model.state_dict())
    valid_cuts(model, noise(2, 3, 32, 32))
    assert model.training is training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "cut, reason",
    [
        ("layer1.0.conv1", "1 more tensor would cross it"),
        ("layer2.0.downsample", "would cross it"),
        ("layer9", "no module has this path"),
        ("", "no module has this path"),
        ("fc", "leaves the server segment without parameters"),
    ],
)
def test_impossible_cut_is_refused_with_the_valid_ones(cut, reason, network):
    with pytest.raises(
        UserError, match=f"cut={cut} is not possible: .*{reason}.*Valid cuts: conv1, .*layer1.0, .*layer4"
    ):
        split(network("resnet18"), cut, networks.example(32))


def test_client_needs_parameters():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2))
    with pytest.raises(UserError, match=r"leaves the client segment without parameters.*Valid cuts: 1"):
        split(model, "0", torch.zeros(2, 3, 2, 2))


def test_unused_module_is_no_cut():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.spare = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.second(self.first(x))

    with pytest.raises(UserError, match=r"the module is not used.*Valid cuts: first"):
        split(Unused(), "spare", torch.zeros(2, 3))


def test_forward_that_depends_on_its_map_is_cut(noise):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            x = self.first(x)
            return self.second(x) if x.sum() > 0 else self.second(-x)

    model = Branching()
    client, server = split(model, "first", torch.zeros(2, 3))
    for x in (noise(4, 3), -noise(4, 3)):
        assert torch.equal(server(client(x)), model(x))


def test_point_counts_bytes_of_one_sample():
    assert CutPoint("a", (2, 3, 4), torch.float32).nbytes == 96
    assert CutPoint("a", (), torch.float64).nbytes == 8


@pytest.mark.parametrize(
    "arch, cuts",
    [
        ("mobilenet_v3_small", ["features.0", "features.4", "avgpool"]),
        ("squeezenet1_1", ["features.0", "features.5", "features.12"]),  # features.1 is an in-place ReLU
        slow("densenet121", ["features.conv0", "features.denseblock1", "features"]),
        slow("swin_v2_t", ["features.0", "features.3", "permute"]),
    ],
)
def test_torchvision_networks_split(arch, cuts, network, noise):
    for cut in cuts:
        assert_split_equals_whole(copy.deepcopy(network(arch, 64)), cut, noise(2, 3, 64, 64))


def test_vision_transformer_splits(network, noise):
    assert_split_equals_whole(network("vit_b_16", 224), "encoder.layers.encoder_layer_5", noise(1, 3, 224, 224))


@pytest.mark.parametrize("arch", ["squeezenet1_1", "mobilenet_v3_small", "densenet121"])
def test_named_cuts_follow_the_depth(arch, network):
    model = network(arch, 64)
    paths = [point.path for point in valid_cuts(model, networks.example(64))]
    places = [paths.index(networks.resolve_cut(name, {}, model, 64)) for name in NAMES]
    assert places == [int(share * len(paths)) for share in (0.25, 0.5, 0.75)]
    assert places == sorted(set(places))


@pytest.mark.slow
@pytest.mark.parametrize("arch", networks.TORCHVISION)
def test_all_of_torchvision_splits(arch, noise):
    torch.manual_seed(0)
    image_size = 299 if arch == "inception_v3" else 224
    model = networks.build(arch, 10, image_size)
    points = valid_cuts(model, networks.example(image_size))
    point = points[len(points) // 2]
    smashed = assert_split_equals_whole(model, point.path, noise(2, 3, image_size, image_size))
    assert tuple(smashed.shape[1:]) == point.shape
