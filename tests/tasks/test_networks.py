import pytest
import torch
from runs import slow
from torch import nn

from splitlearn.errors import UserError
from splitlearn.exchange import listing, network
from splitlearn.tasks import task_from
from splitlearn.tasks.image_classification import networks

TORCHVISION_AT_32 = ["squeezenet1_1", "vgg11", "shufflenet_v2_x0_5", "mnasnet0_5"]
OTHERS = [
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
]
OTHERS += ["mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet50", "resnext50_32x4d"]
OTHERS += ["shufflenet_v2_x2_0", "swin_t", "swin_v2_t", "vgg19_bn", "vit_b_16", "vit_b_32", "wide_resnet50_2"]


@pytest.mark.parametrize(
    "arch, num_classes, image_size",
    [
        ("convnet", 10, 32),
        ("convnet", 7, 64),
        ("vgg_slim", 10, 32),
        ("resnet_slim", 7, 64),
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


# What does not fit the data


LEAST = {"alexnet": 63, "vit_h_14": 42, "convnet": 8, "inception_v3": 75, "maxvit_t": 221}


@pytest.mark.parametrize(
    "arch, image_size",
    [("alexnet", 32), ("convnet", 5)] + [slow(name, 32) for name in ("inception_v3", "maxvit_t", "vit_h_14")],
)
def test_images_that_are_too_small_are_one_sentence_with_the_least_size(arch, image_size, config):
    cfg = config(f"arch={arch}", f"data.image_size={image_size}")
    expected = (
        rf"^arch {arch} cannot take images of 3×{image_size}×{image_size} .*set data\.image_size={LEAST[arch]}, or"
    )
    with pytest.raises(UserError, match=expected):
        network.check(cfg)


@pytest.mark.parametrize("arch", [*TORCHVISION_AT_32, *(slow(a) for a in OTHERS)])
def test_at_the_default_size_it_runs_or_says_which_it_needs(arch, config):
    """In the default suite some families, in the slow one a network of each."""
    cfg = config(f"arch={arch}")
    if arch not in LEAST:
        return network.check(cfg)
    with pytest.raises(UserError, match=rf"set data\.image_size={LEAST[arch]}"):
        network.check(cfg)


@pytest.mark.parametrize("image_size", [32, 48])
def test_a_vision_transformer_is_made_for_the_datas_size(image_size, config):
    cfg = config("arch=vit_b_16", f"data.image_size={image_size}")
    with torch.device("meta"):
        model = networks.from_config(cfg.arch, 10, image_size)
    assert model.encoder.pos_embedding.shape[1] == 1 + (image_size // 16) ** 2


def test_looking_for_cuts_at_a_size_that_is_too_small_is_the_same_sentence(config):
    with pytest.raises(UserError, match=r"set data\.image_size=63"):
        listing.print_cuts(config("arch=alexnet", "cut=?"))


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["arch=own"], r"^arch=own needs arch\._target_="),
        (["arch=timm"], r"^arch\.model=None is no network of timm .*vit_tiny_patch16_224"),
        (["arch=timm", "arch.model=resnet1o8"], r"^arch\.model=resnet1o8 is no network of timm .*resnet18"),
        (
            ["arch._target_=nowhere.Net"],
            r"^arch\._target_=nowhere\.Net cannot be imported: there is no module nowhere",
        ),
        (
            ["arch._target_=torch.nn.Nothing"],
            r"^arch\._target_=torch\.nn\.Nothing cannot be imported: .*__init__\.py has no Not",
        ),
        (["arch._target_=collections.Counter"], r"^arch\._target_=collections\.Counter gives a Counter, where a"),
        (["arch._target_=torch.nn.Linear"], r"^arch\._target_=torch\.nn\.Linear does not take .*missing 2 required"),
        (["+arch.widht=2"], r"^arch convnet does not take these arguments: .*'widht'"),
        (["arch=resnet18", "+arch.widht=2"], r"^arch resnet18 does not take these arguments: .*'widht'"),
        (
            ["arch._target_=own_nets.OneChannel"],
            r"^arch OneChannel cannot take images of 3×32×32 .*1 channels.*no size",
        ),
        (["arch._target_=own_nets.Auxiliary"], r"^arch Auxiliary gives a tuple, where a B×classes tensor"),
        (["arch._target_=own_nets.Pixels"], r"^arch Pixels gives a B×10×30×30 tensor, where a B×classes tensor"),
        (["arch._target_=own_nets.LooksBack"], r"^cut=first is not possible: the halves do not compute what the model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_network_that_cannot_be_is_one_sentence_before_the_start(overrides, expected, config):
    if "arch=timm" in overrides:
        pytest.importorskip("timm")
    with pytest.raises(UserError, match=expected):
        network.check(config(*overrides))


def test_scores_of_other_classes_than_the_datas_are_one_sentence(config):
    cfg = config("arch._target_=own_nets.Fixed", "data.num_classes=null")
    network.check(cfg)
    network.build(cfg, {"num_classes": 7})
    with pytest.raises(UserError, match=r"^arch Fixed gives a B×7 tensor, where a B×10 tensor of scores is needed"):
        network.build(cfg, {"num_classes": 10})


def test_a_network_of_ones_own(config):
    cfg = config("arch._target_=own_nets.Plain", "+arch.width=6", "+arch.kernels=[3,5]", "cut=medium")
    built = network.build(cfg, {"num_classes": 4})
    state = built.client.state_dict() | built.server.state_dict()
    assert state["first.weight"].shape == (6, 3, 3, 3) and state["second.weight"].shape == (6, 6, 5, 5)
    assert state["head.weight"].shape[0] == 4 and built.cuts[0].path == "second"
    assert task_from(cfg).headline(cfg) == ("Plain", "digits")
    cfg = config("arch._target_=own_nets.Plain", "arch.cuts.medium=first")
    assert network.build(cfg, {"num_classes": 4}).cuts[0].path == "first"


@pytest.mark.parametrize("model, image_size", [("vit_tiny_patch16_224", 32), ("resnet10t", 32)])
def test_a_network_of_timms(model, image_size, config):
    pytest.importorskip("timm")
    cfg = config("arch=timm", f"arch.model={model}", f"data.image_size={image_size}", "+arch.drop_rate=0.1")
    network.check(cfg)
    assert task_from(cfg).headline(cfg)[0] == model
