import pytest
import torch
from torch import nn

from splitlearn import models
from splitlearn.errors import UserError


@pytest.mark.parametrize(
    "arch, num_classes, image_size",
    [
        ("convnet", 10, 32),
        ("convnet", 7, 64),
        ("vgg_slim", 10, 32),
        ("vgg16", 7, 64),
        ("vgg19", 10, 32),
        ("resnet18", 10, 32),
        ("resnet34", 7, 64),
    ],
)
def test_network_gives_a_score_a_class(arch, num_classes, image_size):
    model = models.build(arch, num_classes, image_size).eval()
    with torch.no_grad():
        assert model(models.example(image_size)).shape == (2, num_classes)


@pytest.mark.parametrize("image_size, small", [(32, True), (64, True), (65, False), (224, False)])
def test_small_images_get_the_papers_stem_and_head(image_size, small):
    with torch.device("meta"):  # no weights, as none are used
        resnet, vgg = models.build("resnet18", 10, image_size), models.build("vgg19", 10, image_size)
    assert resnet.conv1.kernel_size == ((3, 3) if small else (7, 7))
    assert isinstance(resnet.maxpool, nn.Identity if small else nn.MaxPool2d)
    linear = [layer for layer in vgg.classifier if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in linear] == [512 if small else 512 * 49, 4096, 4096]
    assert sum(isinstance(layer, nn.Dropout) for layer in vgg.classifier) == 2


@pytest.mark.parametrize("arch, num_norms", [("vgg16", 13), ("vgg19", 16)])
def test_vgg_has_batch_norm(arch, num_norms):
    with torch.device("meta"):
        modules = models.build(arch, 10, 32).modules()
    assert sum(isinstance(module, nn.BatchNorm2d) for module in modules) == num_norms


def test_unknown_network_is_refused_by_name():
    with pytest.raises(UserError, match=r"arch=resnet19 is unknown: .*resnet18"):
        models.build("resnet19", 10, 32)


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_heads_give_one_tensor(arch):
    model = models.build(arch, 10, 96)
    with torch.no_grad():
        assert model(models.example(96)).shape == (2, 10)


@pytest.mark.parametrize("cut, path", [("medium", "here"), ("block1.0", "block1.0"), ("nonsense", "nonsense")])
def test_own_names_come_first_and_paths_stay(cut, path):
    model = models.build("convnet", 10, 32)
    assert models.resolve_cut(cut, {"medium": "here"}, model, 32) == path


@pytest.mark.parametrize("arch", ["convnet", "resnet18"])
def test_seed_gives_the_weights_and_leaves_the_generator_alone(arch, config):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (models.build_segments(config(f"arch={arch}", f"seed={seed}"), 10) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert first[2] == again[2] == other[2]
    weights = [next(segments[0].parameters()) for segments in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "cut, path, shape",
    [("shallow", "block1", (32, 16, 16)), ("deep", "block3", (128, 4, 4)), ("block2.2", "block2.2", (64, 16, 16))],
)
def test_segments_of_a_config_name_their_cut(cut, path, shape, config):
    client, server, point = models.build_segments(config(f"cut={cut}"), 4)
    assert (point.path, point.shape, point.dtype) == (path, shape, torch.float32)
    assert client.training and server.training
    assert server(client(models.example(32))).shape == (2, 4)
    assert client.get_submodule("block1.1").num_batches_tracked == 1  # the check of the shape is no training step


def test_cuts_are_printed_with_their_names_and_sizes(config, capsys):
    models.print_cuts(config("arch=resnet18"))
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.split()}
    assert rows["layer2"] == ["medium", "128×16×16", "131,072"]
    assert rows["conv1"] == ["64×32×32", "262,144"]
    assert "layer1.0.conv1" not in printed
