import pytest
import torch
from torch import nn

from splitlearn.errors import UserError
from splitlearn.tasks.image_classification import networks


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
    model = networks.build(arch, num_classes, image_size).eval()
    with torch.no_grad():
        assert model(networks.example(image_size)).shape == (2, num_classes)


@pytest.mark.parametrize("image_size, small", [(32, True), (64, True), (65, False), (224, False)])
def test_small_images_get_the_papers_stem_and_head(image_size, small):
    with torch.device("meta"):  # no weights, as none are used
        resnet, vgg = networks.build("resnet18", 10, image_size), networks.build("vgg19", 10, image_size)
    assert resnet.conv1.kernel_size == ((3, 3) if small else (7, 7))
    assert isinstance(resnet.maxpool, nn.Identity if small else nn.MaxPool2d)
    linear = [layer for layer in vgg.classifier if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in linear] == [512 if small else 512 * 49, 4096, 4096]
    assert sum(isinstance(layer, nn.Dropout) for layer in vgg.classifier) == 2


@pytest.mark.parametrize("arch, num_norms", [("vgg16", 13), ("vgg19", 16)])
def test_vgg_has_batch_norm(arch, num_norms):
    with torch.device("meta"):
        modules = networks.build(arch, 10, 32).modules()
    assert sum(isinstance(module, nn.BatchNorm2d) for module in modules) == num_norms


def test_unknown_network_is_refused_by_name():
    with pytest.raises(UserError, match=r"arch=resnet19 is unknown: .*resnet18"):
        networks.build("resnet19", 10, 32)


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_heads_give_one_tensor(arch):
    model = networks.build(arch, 10, 96)
    with torch.no_grad():
        assert model(networks.example(96)).shape == (2, 10)


@pytest.mark.parametrize("cut, path", [("medium", "here"), ("block1.0", "block1.0"), ("nonsense", "nonsense")])
def test_own_names_come_first_and_paths_stay(cut, path):
    model = networks.build("convnet", 10, 32)
    assert networks.resolve_cut(cut, {"medium": "here"}, model, 32) == path
