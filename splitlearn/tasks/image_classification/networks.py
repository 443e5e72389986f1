"""The networks: a ConvNet, the CIFAR variants that torchvision lacks, all of torchvision and timm, and your own."""

from __future__ import annotations

import difflib
from typing import Any

import torch
import torchvision
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchvision.models import vgg

from splitlearn.errors import UserError
from splitlearn.hydras import instantiate
from splitlearn.segments import valid_cuts
from splitlearn.segments.tracing import in_short
from splitlearn.targets import parameters_of
from splitlearn.tasks.task import NAMED_CUTS

SMALL_IMAGE = 64  # pixels; up to here a ResNet gets the CIFAR stem and a VGG the CIFAR head
OURS = {"_target_", "name", "cuts", "weights", "download", "model"}  # keys of `arch` that are no arguments of a network
TORCHVISION = torchvision.models.list_models(module=torchvision.models)

for _name in set(TORCHVISION) - {"resnet18", "resnet34", "vgg16", "vgg19"}:  # those have files in conf/arch
    ConfigStore.instance().store(group="arch", name=_name, node={"defaults": ["own"], "name": _name})


class ConvNet(nn.Sequential):
    """Three blocks of convolution, batch norm, ReLU and pooling (32, 64, 128 channels), and a linear classifier."""

    def __init__(self, num_classes: int):
        def block(in_channels: int, out_channels: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )

        super().__init__()
        self.block1 = block(3, 32)
        self.block2 = block(32, 64)
        self.block3 = block(64, 128)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(128, num_classes)


class Residual(nn.Sequential):
    """Layers whose output is added to their input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class SlimResNet(nn.Sequential):
    """Eight convolutions of `channels` to 8 · `channels`, four of them in two residual blocks, and a classifier.

    Maps are pooled before their batch norm, so that less is computed of the large ones.

    Source: Page 2018, "How to Train Your ResNet", whose network has 64 of them.
    """

    def __init__(self, num_classes: int, channels: int = 16):
        def layer(inputs: int, outputs: int, *pooling: nn.Module) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            return nn.Sequential(conv, *pooling, nn.BatchNorm2d(outputs), nn.ReLU())

        def block(inside: int) -> nn.Module:
            return Residual(layer(inside, inside), layer(inside, inside))

        super().__init__()
        self.stem = layer(3, channels)
        self.layer1 = layer(channels, 2 * channels, nn.MaxPool2d(2))
        self.block1 = block(2 * channels)
        self.layer2 = layer(2 * channels, 4 * channels, nn.MaxPool2d(2))
        self.layer3 = layer(4 * channels, 8 * channels, nn.MaxPool2d(2))
        self.block3 = block(8 * channels)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(8 * channels, num_classes)


def slim_vgg(num_classes: int) -> nn.Module:
    """A VGG13 with batch norm, a quarter of its channels (16 to 128), and a linear classifier: one for a CPU."""
    channels = [16, 16, "M", 32, 32, "M", 64, 64, "M", 128, 128, "M", 128, 128, "M"]
    model = vgg.VGG(vgg.make_layers(channels, batch_norm=True), num_classes=num_classes, init_weights=True)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Linear(128, num_classes)
    return model


def title(arch: DictConfig) -> str:
    """What people call the network of the config group `arch`."""
    if target := arch.get("_target_"):
        return target.rpartition(".")[2]
    return arch.get("model") or arch.name


def from_config(arch: DictConfig, num_classes: int, image_size: int) -> nn.Module:
    """The freshly initialised network that the config group `arch` describes.

    Raises:
        UserError: there is no such network, or it does not take the keys of `arch` as arguments.
    """
    options = {key: value for key, value in OmegaConf.to_container(arch, resolve=True).items() if key not in OURS}
    try:
        if target := arch.get("_target_"):
            return own(target, num_classes, image_size, options)
        if arch.name == "timm":
            return timm_network(arch.model, num_classes, image_size, options)
        if arch.name == "own":
            raise UserError("arch=own needs arch._target_=<module>.<class or function> (see docs/networks.md)")
        return build(arch.name, num_classes, image_size, **options)
    except TypeError as error:
        if options and any(f"'{key}'" in str(error) for key in options):
            raise UserError(f"arch {title(arch)} does not take these arguments: {in_short(error)}") from None
        raise


def own(target: str, num_classes: int, image_size: int, options: dict[str, Any]) -> nn.Module:
    """What a class or function of the user's gives, of these options, and of number and size where it takes them."""
    parameters = parameters_of(target, "arch._target_")
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    given = {"image_size": image_size} if "image_size" in parameters else {}
    if "num_classes" in parameters or takes_any:
        given["num_classes"] = num_classes
    try:
        model = instantiate({"_target_": target, "_convert_": "all", **given, **options})
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, TypeError):
            raise UserError(f"arch._target_={target} does not take these arguments: {in_short(cause)}") from None
        raise cause from None
    if not isinstance(model, nn.Module):
        raise UserError(f"arch._target_={target} gives a {type(model).__name__}, where a torch.nn.Module is needed")
    return model


def timm_network(name: str | None, num_classes: int, image_size: int, options: dict[str, Any]) -> nn.Module:
    """A network of timm's by its name there, for this size where it depends on it."""
    try:
        import timm
    except ImportError:
        raise UserError("arch=timm needs the package timm: pip install timm") from None
    if not name or not timm.is_model(name):
        close = difflib.get_close_matches(name or "", timm.list_models(), 5) or ["vit_tiny_patch16_224", "resnet18"]
        raise UserError(f"arch.model={name} is no network of timm {timm.__version__}: such are {', '.join(close)}")
    try:
        return timm.create_model(name, num_classes=num_classes, **{"img_size": image_size, **options})
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, num_classes=num_classes, **options)


def build(name: str, num_classes: int, image_size: int, **options: Any) -> nn.Module:
    """A freshly initialised network for 3 × image_size × image_size images, one of ours or torchvision's by its name.

    vgg16 and vgg19 have batch norm. On images of up to 64 pixels they have one pooled feature vector of 512 and a
    512-4096-4096 classifier with dropout, and ResNets a 3×3 stem without max-pooling, as in the MS paper.
    """
    small = image_size <= SMALL_IMAGE
    if name == "convnet":
        return ConvNet(num_classes, **options)
    if name == "vgg_slim":
        return slim_vgg(num_classes, **options)
    if name == "resnet_slim":
        return SlimResNet(num_classes, **options)
    if name in ("vgg16", "vgg19"):
        model = torchvision.models.get_model(f"{name}_bn", weights=None, num_classes=num_classes, **options)
        if small:
            model.avgpool = nn.AdaptiveAvgPool2d(1)
            model.classifier[0] = nn.Linear(512, 4096)
        return model
    if name not in TORCHVISION:
        known = f"convnet, vgg_slim, resnet_slim, timm, own, or one of torchvision's {', '.join(TORCHVISION)}"
        raise UserError(f"arch={name} is unknown: choose {known}")
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True, **options}
    elif name.startswith("vit_"):
        options = {"image_size": image_size, **options}
    elif name == "maxvit_t":
        options = {"input_size": (image_size, image_size), **options}
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    if name in ("resnet18", "resnet34") and small:
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model


def cuts_of(arch: DictConfig, model: nn.Module) -> dict[str, str]:
    """What shallow, medium and deep stand for; of a network of one's own nothing that was meant for another."""
    modules = dict(model.named_modules())
    is_of_another = arch.get("_target_") and not any(path in modules for path in arch.cuts.values())
    return {} if is_of_another else arch.cuts


def resolve_cut(cut: str, cuts: dict[str, str], model: nn.Module, image_size: int) -> str:
    """The module path that `cut` stands for: by the arch's own names, else by depth, else it is a path already."""
    if cut in cuts:
        return cuts[cut]
    if cut in NAMED_CUTS:
        points = valid_cuts(model, example(image_size))
        if not points:
            return next(path for path, _ in model.named_modules() if path)  # splitting there says why
        return points[int(NAMED_CUTS[cut] * len(points))].path
    return cut


def example(image_size: int) -> torch.Tensor:
    """A batch of two images for tracing: (2, 3, image_size, image_size) float32."""
    return torch.zeros(2, 3, image_size, image_size)
