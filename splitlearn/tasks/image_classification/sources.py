"""The data sets: their training and test samples, scaled, normalised and augmented as the config group `data` says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision import datasets
from torchvision.transforms import v2

from splitlearn.errors import UserError
from splitlearn.tasks.image_classification.images import ImageLoader


def build(cfg: DictConfig, seed: int) -> tuple[Dataset, Dataset, int]:
    """Training set, test set and number of classes of the config group `data`.

    Samples are (3 × size × size float32 image, int label). `seed` draws the held-out and limited parts.

    Raises:
        UserError: the data are not where `data.root` says, or cannot be read there.
    """
    if cfg.name not in _BUILDERS:
        raise UserError(f"data={cfg.name} is unknown: choose one of {', '.join(_BUILDERS)}")
    try:
        train, test, num_classes = _BUILDERS[cfg.name](cfg, seed)
    except OSError as error:
        raise UserError(
            f"data.root={cfg.root} cannot be read ({error}): let this user read it, or set data.root to another folder"
        ) from None
    if cfg.num_classes is not None and num_classes != cfg.num_classes:
        raise UserError(f"data.num_classes={cfg.num_classes} but {cfg.root or cfg.name} has {num_classes} classes")
    return _limit(train, cfg.max_train_samples, seed), _limit(test, cfg.max_test_samples, seed), num_classes


def _limit(dataset: Dataset, num_samples: int | None, seed: int) -> Dataset:
    """A random part of `num_samples`; the whole where there are no more, or `num_samples` is None."""
    if num_samples is None or num_samples >= len(dataset):
        return dataset
    return Subset(dataset, np.sort(np.random.default_rng(seed).permutation(len(dataset))[:num_samples]))


def _folder(cfg: DictConfig, *candidates: str) -> Path | None:
    """The first of these folders below data.root that exists."""
    if cfg.root is None:
        raise UserError(f"data={cfg.name} needs a folder: set data.root=<folder>")
    root = Path(cfg.root).expanduser()
    if not root.is_dir() and not cfg.download:
        raise UserError(f"data.root={cfg.root} does not exist: set data.root to the folder that holds the data")
    return next((root / name for name in candidates if (root / name).is_dir()), None)


def _transforms(cfg: DictConfig, train: bool) -> v2.Compose:
    size = cfg.image_size
    steps: list = [v2.ToImage()]
    if cfg.augment == "resized_crop" and train:
        steps += [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    elif cfg.augment == "resized_crop":
        steps += [v2.Resize(size * 256 // 224, antialias=True), v2.CenterCrop(size)]
    else:
        steps += [v2.Resize((size, size), antialias=True)]
        if cfg.augment == "crop_flip" and train:
            steps += [v2.RandomCrop(size, padding=size // 8), v2.RandomHorizontalFlip()]
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(cfg.mean), list(cfg.std))])


def _digits(cfg: DictConfig, seed: int) -> tuple[Dataset, Dataset, int]:
    """scikit-learn's 1,797 handwritten digits (8×8), resized; a fifth of each class is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1).div_(16)
    images = torch.nn.functional.interpolate(images, size=cfg.image_size, mode="bilinear").expand(-1, 3, -1, -1)
    images = v2.functional.normalize(images, list(cfg.mean), list(cfg.std))
    # The split is the data set's, the same whatever the run's seed.
    train, test = train_test_split(np.arange(len(images)), test_size=0.2, stratify=bunch.target, random_state=0)
    targets = torch.from_numpy(bunch.target).long()
    return TensorDataset(images[train], targets[train]), TensorDataset(images[test], targets[test]), 10


def _cifar(cfg: DictConfig, seed: int) -> tuple[Dataset, Dataset, int]:
    _folder(cfg)
    cls = datasets.CIFAR10 if cfg.name == "cifar10" else datasets.CIFAR100
    try:
        parts = [
            cls(cfg.root, train=train, transform=_transforms(cfg, train), download=cfg.download)
            for train in (True, False)
        ]
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"data.root={cfg.root} has no {cls.__name__} that can be read ({error}): set data.root to where it is, or"
            " data.download=true"
        ) from None
    return *parts, len(parts[0].classes)


def _image_folder(cfg: DictConfig, seed: int) -> tuple[Dataset, Dataset, int]:
    """root/train/<class> with root/test or root/val, or root/<class> alone, of which data.test_fraction is held out."""
    train_root, test_root = _folder(cfg, "train") or Path(cfg.root).expanduser(), _folder(cfg, "test", "val")
    try:
        train, test = (
            datasets.ImageFolder(root, _transforms(cfg, is_train), loader=ImageLoader(cfg.keep_in_memory))
            for root, is_train in ((train_root, True), (test_root or train_root, False))
        )
    except FileNotFoundError as error:
        raise UserError(f"data.root={cfg.root} is no image folder: {error}") from None
    if test.classes != train.classes:
        raise UserError(f"data.root={cfg.root}: {train_root.name}/ and {test_root.name}/ have different classes")
    if test_root:
        return train, test, len(train.classes)
    order = np.random.default_rng(seed).permutation(len(train))
    num_test = max(1, round(cfg.test_fraction * len(train)))
    return Subset(train, np.sort(order[num_test:])), Subset(test, np.sort(order[:num_test])), len(train.classes)


_BUILDERS = {
    "digits": _digits,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "imagenet": _image_folder,
    "image_folder": _image_folder,
}
