"""The networks: our small ConvNet, the CIFAR variants that torchvision lacks, and all of torchvision by name."""

from __future__ import annotations

import torch
import torchvision
from hydra.core.config_store import ConfigStore
from torch import nn
from torchvision.models import vgg

from splitlearn.errors import UserError
from splitlearn.segments import valid_cuts
from splitlearn.tasks.task import NAMED_CUTS

SMALL_IMAGE = 64  # pixels; up to here a ResNet gets the CIFAR stem and a VGG the CIFAR head
TORCHVISION = torchvision.models.list_models(module=torchvision.models)

for _name in set(TORCHVISION) - {"resnet18", "resnet34", "vgg16", "vgg19"}:  # those have files in conf/arch
    ConfigStore.instance().store(group="arch", name=_name, node={"name": _name, "cuts": {}})


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


def slim_vgg(num_classes: int) -> nn.Module:
    """A VGG13 with batch norm, a quarter of its channels (16 to 128), and a linear classifier: one for a CPU."""
    channels = [16, 16, "M", 32, 32, "M", 64, 64, "M", 128, 128, "M", 128, 128, "M"]
    model = vgg.VGG(vgg.make_layers(channels, batch_norm=True), num_classes=num_classes, init_weights=True)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Linear(128, num_classes)
    return model


def build(name: str, num_classes: int, image_size: int) -> nn.Module:
    """A freshly initialised network for 3 × image_size × image_size images.

    vgg16 and vgg19 have batch norm. On images of up to 64 pixels they have one pooled feature vector of 512 and a
    512-4096-4096 classifier with dropout, and ResNets a 3×3 stem without max-pooling, as in the MS paper.
    """
    small = image_size <= SMALL_IMAGE
    if name == "convnet":
        return ConvNet(num_classes)
    if name == "vgg_slim":
        return slim_vgg(num_classes)
    if name in ("vgg16", "vgg19"):
        model = torchvision.models.get_model(f"{name}_bn", weights=None, num_classes=num_classes)
        if small:
            model.avgpool = nn.AdaptiveAvgPool2d(1)
            model.classifier[0] = nn.Linear(512, 4096)
        return model
    if name not in TORCHVISION:
        known = ", ".join(TORCHVISION)
        raise UserError(f"arch={name} is unknown: choose convnet, vgg_slim, or one of torchvision's {known}")
    auxiliary = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **auxiliary)
    if name in ("resnet18", "resnet34") and small:
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model


def resolve_cut(cut: str, cuts: dict[str, str], model: nn.Module, image_size: int) -> str:
    """The module path that `cut` stands for: by the arch's own names, else by depth, else it is a path already."""
    if cut in cuts:
        return cuts[cut]
    if cut in NAMED_CUTS:
        points = valid_cuts(model, example(image_size))
        return points[int(NAMED_CUTS[cut] * len(points))].path
    return cut


def example(image_size: int) -> torch.Tensor:
    """A batch of two images for tracing: (2, 3, image_size, image_size) float32."""
    return torch.zeros(2, 3, image_size, image_size)
