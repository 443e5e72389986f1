"""From an image to what the network gets: resized, augmented, scaled and normalised, as the group `data` says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from splitlearn.errors import UserError
from splitlearn.hydras import instantiate
from splitlearn.targets import imported
from splitlearn.tasks.image_classification.images import to_rgb


class Pipeline:
    """Makes a (3, image_size, image_size) float32 tensor of a PIL image, an array or a tensor.

    It has two halves: `load` is of an image alone, and `finish` of a whole batch, which is ten times as fast. What
    data.augment says is in the second one, but for resized crops.

    data.transform, or in test data.test_transform, comes in the place of what data.augment says, and all is in the
    first half. Before it is an image a (channels, height, width) tensor; after it uint8 is scaled to 0–1, and then
    normalised by data.mean and data.std, if these are given and the transform does not normalise.

    Args:
        cfg: the config group `data`.
        train: whether training samples are to be augmented.
        scales: whether `load` scales to float32: of images that may have different number types. Else they are uint8.

    Attributes:
        draws: whether `load` may draw at random.
        nbytes: of what `load` gives.

    Raises:
        UserError: a transform cannot be made, or not be applied.
    """

    def __init__(self, cfg: DictConfig, train: bool, scales: bool = False):
        self.size, self.key = cfg.image_size, "transform" if train else "test_transform"
        own = cfg.get(self.key)
        self.is_own = own is not None
        steps = own_steps(own, f"data.{self.key}") if self.is_own else size_steps(cfg, train)
        self.draws = self.is_own or (train and cfg.augment == "resized_crop")
        self.crops = cfg.image_size // 8 if train and cfg.augment == "crop_flip" and not self.is_own else None
        after = [v2.ToDtype(torch.float32, scale=True)]
        normalises = any(isinstance(step, (v2.Normalize, torchvision.transforms.Normalize)) for step in steps)
        if (moments := moments_of(cfg)) is not None and not normalises:
            after.append(v2.Normalize(*moments))
        num_early = len(after) if self.is_own else int(scales)
        self.early = v2.Compose([v2.ToImage(), *steps, *after[:num_early]])
        self.late = after[num_early:]
        self.nbytes = 3 * self.size**2 * (4 if num_early else 1)

    def load(self, image: Any) -> Tensor:
        """The first half: (3, image_size, image_size)."""
        if isinstance(image, Image.Image):
            image = to_rgb(image)
        elif not isinstance(image, (Tensor, np.ndarray)):
            raise UserError(f"{_form(image)} is no image: give a PIL image, or a tensor or an array of one")
        found = self._applied(self.early, image)
        if not isinstance(found, Tensor) or found.shape != (3, self.size, self.size):
            what = (
                f"data.{self.key} makes {_form(found)} of {_form(image)}" if self.is_own else f"there is {_form(image)}"
            )
            raise UserError(
                f"{what}, but the network takes 3×{self.size}×{self.size} (data.image_size={self.size}): a"
                f" torchvision.transforms.v2.RGB or Resize in data.{self.key} may help"
            )
        return found.as_subclass(Tensor)

    def finish(self, images: Tensor) -> Tensor:
        """The second half, of (B, 3, image_size, image_size) images: draws from torch's generator."""
        if self.crops is not None:
            images = crop_and_flip(images, self.crops)
        for step in self.late:
            images = self._applied(step, images)
        return images

    def _applied(self, step: Callable, image: Any) -> Any:
        try:
            return step(image)
        except Exception as error:
            name = f"data.{self.key}" if self.is_own else f"what data.{self.key} is without a value"
            raise UserError(f"{name} cannot be applied to {_form(image)} ({first_line(error)})") from None


def moments_of(cfg: DictConfig) -> tuple[list[float], list[float]] | None:
    """The mean and the standard deviation of each channel that images are normalised by; None where they are not.

    Raises:
        UserError: they are not as many as there are channels, or a deviation is not above 0.
    """
    for key in ("mean", "std"):
        given = cfg.get(key)
        if given is not None and len(given) not in (1, 3):
            raise UserError(f"data.{key}={given} must have 3 numbers, one for each channel, or 1 for all")
    if cfg.get("std") is not None and min(cfg.std) <= 0:
        raise UserError(f"data.std={cfg.std} must have numbers above 0: images are divided by them")
    if cfg.get("mean") is None or cfg.get("std") is None:
        return None
    return list(cfg.mean), list(cfg.std)


def size_steps(cfg: DictConfig, train: bool) -> list:
    """What makes an image as large as it is to be, as data.augment says."""
    size = cfg.image_size
    if cfg.augment == "resized_crop" and train:
        return [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    if cfg.augment == "resized_crop":
        return [v2.Resize(size * 256 // 224, antialias=True), v2.CenterCrop(size)]
    return [v2.Resize((size, size), antialias=True)]


def crop_and_flip(images: Tensor, padding: int) -> Tensor:
    """Each image of a batch moved by up to `padding` pixels each way, with black behind it, and half of them mirrored.

    Args:
        images: (B, C, H, W), of any number type.
        padding: in pixels.
    """
    num, channels, height, width = images.shape
    down, right = torch.randint(2 * padding + 1, (2, num, 1))
    columns = torch.arange(width)
    columns = torch.where(torch.rand(num, 1) < 0.5, columns, columns.flip(0)) + right
    rows = torch.arange(height) + down
    padded = F.pad(images, (padding,) * 4).flatten(2)
    places = (rows.unsqueeze(2) * (width + 2 * padding) + columns.unsqueeze(1)).view(num, 1, -1)
    return padded.gather(2, places.expand(-1, channels, -1)).view(images.shape)


def own_steps(nodes: Any, key: str) -> list[Callable]:
    """The steps that a list of `_target_` nodes, or of names of classes without arguments, stands for."""
    if not isinstance(nodes, (ListConfig, list)):
        raise UserError(
            f"{key}={nodes} has to be null, or a list such as [{{_target_: torchvision.transforms.v2.RGB}}]"
        )
    steps = []
    for node in nodes:
        node = OmegaConf.create({"_target_": node}) if isinstance(node, str) else node
        if not isinstance(node, DictConfig) or "_target_" not in node:
            raise UserError(f"{key}: {node} names no class: give it as {{_target_: <module>.<class>, <argument>: …}}")
        imported(node._target_, f"{key}: _target_")
        try:
            step = instantiate(node, _convert_="all")
        except InstantiationException as error:
            cause = error.__cause__ or error
            raise UserError(f"{key}: {node._target_} cannot be made ({first_line(cause)})") from None
        if not callable(step):
            raise UserError(f"{key}: {node._target_} cannot be called with an image")
        if not isinstance(step, (torchvision.transforms.ToTensor, torchvision.transforms.PILToTensor)):  # it is one
            steps.append(step)
    return steps


def first_line(error: BaseException) -> str:
    """What an error says, without what comes below."""
    return f"{error}".partition("\n")[0]


def _form(image: Any) -> str:
    """An image in words: its kind, shape and numbers."""
    if isinstance(image, Image.Image):
        return f"an image of {image.width}×{image.height}"
    if not isinstance(image, (Tensor, np.ndarray)):
        return f"a {type(image).__name__}"
    kind = "an array" if isinstance(image, np.ndarray) else "a tensor"
    return f"{kind} of {'×'.join(map(str, image.shape))} {str(image.dtype).removeprefix('torch.')}"
