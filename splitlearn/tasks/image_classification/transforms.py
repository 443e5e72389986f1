"""From an image to what the network gets: resized, augmented, scaled and normalised, as the group `data` says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchvision
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from splitlearn.errors import UserError
from splitlearn.tasks.image_classification.images import to_rgb


class Pipeline:
    """Makes a (3, image_size, image_size) float32 tensor of a PIL image, an array or a tensor.

    data.transform, or in test data.test_transform, comes in the place of what data.augment says. Before it is an image
    a (channels, height, width) tensor; after it uint8 is scaled to 0–1, and then normalised by data.mean and data.std,
    if these are given and the transform does not normalise.

    Args:
        cfg: the config group `data`.
        train: whether training samples are to be augmented.

    Raises:
        UserError: a transform cannot be made, or not be applied.
    """

    def __init__(self, cfg: DictConfig, train: bool):
        self.size, self.key = cfg.image_size, "transform" if train else "test_transform"
        own = cfg.get(self.key)
        self.is_own = own is not None
        steps = own_steps(own, f"data.{self.key}") if self.is_own else augment_steps(cfg, train)
        after: list = [v2.ToDtype(torch.float32, scale=True)]
        normalises = any(isinstance(step, (v2.Normalize, torchvision.transforms.Normalize)) for step in steps)
        if cfg.get("mean") is not None and cfg.get("std") is not None and not normalises:
            after.append(v2.Normalize(list(cfg.mean), list(cfg.std)))
        self.steps = v2.Compose([v2.ToImage(), *steps, *after])

    def __call__(self, image: Any) -> Tensor:
        if isinstance(image, Image.Image):
            image = to_rgb(image)
        elif not isinstance(image, (Tensor, np.ndarray)):
            raise UserError(f"{_form(image)} is no image: give a PIL image, or a tensor or an array of one")
        try:
            found = self.steps(image)
        except Exception as error:
            name = f"data.{self.key}" if self.is_own else f"what data.{self.key} is without a value"
            raise UserError(f"{name} cannot be applied to {_form(image)} ({first_line(error)})") from None
        if not isinstance(found, Tensor) or found.shape != (3, self.size, self.size):
            what = (
                f"data.{self.key} makes {_form(found)} of {_form(image)}" if self.is_own else f"there is {_form(image)}"
            )
            raise UserError(
                f"{what}, but the network takes 3×{self.size}×{self.size} (data.image_size={self.size}): a"
                f" torchvision.transforms.v2.RGB or Resize in data.{self.key} may help"
            )
        return found


def augment_steps(cfg: DictConfig, train: bool) -> list:
    """The steps that data.augment names, without scaling and normalisation."""
    size = cfg.image_size
    if cfg.augment == "resized_crop" and train:
        return [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    if cfg.augment == "resized_crop":
        return [v2.Resize(size * 256 // 224, antialias=True), v2.CenterCrop(size)]
    steps: list = [v2.Resize((size, size), antialias=True)]
    if cfg.augment == "crop_flip" and train:
        steps += [v2.RandomCrop(size, padding=size // 8), v2.RandomHorizontalFlip()]
    return steps


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
