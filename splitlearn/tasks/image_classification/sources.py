"""The data sets: their training and test samples, scaled, normalised and augmented as the config group `data` says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision import datasets
from torchvision.transforms import v2

from splitlearn.errors import UserError
from splitlearn.tasks.classes import given_classes
from splitlearn.tasks.image_classification import custom
from splitlearn.tasks.image_classification.folders import Folder, Part, layout_of
from splitlearn.tasks.image_classification.images import ImageLoader
from splitlearn.tasks.image_classification.prepared import Prepared
from splitlearn.tasks.image_classification.transforms import Pipeline, moments_of
from splitlearn.tasks.loading import held_out, limited

Built = tuple[Dataset, Dataset, list[str]]
Tell = Callable[[str], None]


def build(cfg: DictConfig, seed: int, tell: Tell = lambda note: None) -> Built:
    """Training set, test set and names of the classes of the config group `data`.

    Samples are (3 × size × size float32 image, int label). `seed` draws the held-out and limited parts, and `tell` is
    given what the user should know. A set may be empty.

    Raises:
        UserError: the data are not where `data.root` says, or cannot be read there.
    """
    name = "custom" if cfg.get("_target_") else cfg.name
    if name not in _BUILDERS:
        raise UserError(f"data={name} is unknown: choose one of {', '.join(_BUILDERS)}, or set data._target_")
    try:
        train, test, classes = _BUILDERS[name](cfg, seed, tell)
    except OSError as error:
        raise UserError(
            f"data.root={cfg.root} cannot be read ({error}): let this user read it, or set data.root to another folder"
        ) from None
    if cfg.num_classes is not None and len(classes) != cfg.num_classes:
        what = cfg.get("_target_") or cfg.root or cfg.name
        number = len(classes)
        raise UserError(f"data.num_classes={cfg.num_classes} but {what} has {number} classes: set {number}, or null")
    return limited(train, cfg.max_train_samples, seed), limited(test, cfg.max_test_samples, seed), classes


def _root(cfg: DictConfig) -> Path:
    """The folder data.root."""
    if cfg.root is None:
        raise UserError(f"data={cfg.name} needs a folder: set data.root=<folder>")
    root = Path(cfg.root).expanduser()
    if not root.is_dir() and not cfg.download:
        raise UserError(f"data.root={cfg.root} does not exist: set data.root to the folder that holds the data")
    return root


def _digits(cfg: DictConfig, seed: int, tell: Tell) -> Built:
    """scikit-learn's 1,797 handwritten digits (8×8), resized; a fifth of each class is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    # The split is the data set's, the same whatever the run's seed.
    parts = train_test_split(np.arange(len(bunch.target)), test_size=0.2, stratify=bunch.target, random_state=0)
    classes, targets = _named(cfg, map(str, range(10))), torch.from_numpy(bunch.target).long()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1).div_(16)
    if cfg.augment != "none" or cfg.get("transform") is not None or cfg.get("test_transform") is not None:
        images = v2.functional.to_dtype(images, torch.uint8, scale=True).expand(-1, 3, -1, -1)
        return *(
            Prepared(TensorDataset(images[part], targets[part]), Pipeline(cfg, is_train), len(classes))
            for part, is_train in zip(parts, (True, False), strict=True)
        ), classes
    images = torch.nn.functional.interpolate(images, size=cfg.image_size, mode="bilinear").expand(-1, 3, -1, -1)
    if (moments := moments_of(cfg)) is not None:
        images = v2.functional.normalize(images, *moments)
    return *(TensorDataset(images[part], targets[part]) for part in parts), classes


def _cifar(cfg: DictConfig, seed: int, tell: Tell) -> Built:
    _root(cfg)
    cls = datasets.CIFAR10 if cfg.name == "cifar10" else datasets.CIFAR100
    try:
        parts = [cls(cfg.root, train=train, download=cfg.download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        why = "and it cannot be fetched" if cfg.download else "that can be read"
        do = "set data.root to where it is" + ("" if cfg.download else ", or data.download=true")
        raise UserError(f"data.root={cfg.root} has no {cls.__name__} {why} ({error}): {do}") from None
    classes = _named(cfg, parts[0].classes)
    prepared = (
        Prepared(part, Pipeline(cfg, train), len(classes)) for part, train in zip(parts, (True, False), strict=True)
    )
    return *prepared, classes


def _image_folder(cfg: DictConfig, seed: int, tell: Tell) -> Built:
    """Images in folders of their class (see folders.py), of which test_fraction is held out if none are for test."""
    given = given_classes(cfg)
    layout = layout_of(_root(cfg), given)
    for note in layout.notes:
        tell(note)
    classes = given or (layout.train or layout.test).classes
    if layout.train and layout.test and (unknown := [name for name in layout.test.classes if name not in classes]):
        raise UserError(
            f"data.root={cfg.root}: {layout.test.root.name}/ has classes that {layout.train.root.name}/ has not:"
            f" {', '.join(unknown)}; remove or rename them, or give all with data.classes=[…]"
        )

    def images(part: Part | None, is_train: bool) -> Dataset:
        if part is None:
            return TensorDataset(torch.empty(0))
        pipeline = Pipeline(cfg, is_train)
        # What is drawn of each image anew needs it as it is.
        loader = ImageLoader(cfg.keep_in_memory is True and pipeline.draws)
        return Prepared(Folder(part, classes, loader), pipeline, len(classes))

    train = images(layout.train, True)
    if layout.test:
        return train, images(layout.test, False), classes
    return *_held_out(train, images(layout.train, False), cfg, seed), classes


def _custom(cfg: DictConfig, seed: int, tell: Tell) -> Built:
    train, test, classes, is_one = custom.build(cfg)
    return *(_held_out(train, test, cfg, seed) if is_one else (train, test)), classes


def _held_out(train: Dataset, test: Dataset, cfg: DictConfig, seed: int) -> tuple[Dataset, Dataset]:
    """The same samples, once for training and once for test, without a random test_fraction, and that."""
    parts = held_out(train, cfg.get("test_fraction", 0.2), seed)
    return Subset(train, parts[0]), Subset(test, parts[1])


def _named(cfg: DictConfig, known: Iterable[str]) -> list[str]:
    """The names of the classes: those of data.classes, of which there must be as many as are known, or these."""
    known, given = list(known), given_classes(cfg)
    if given is None:
        return known
    if len(given) != len(known):
        raise UserError(
            f"data.classes=[{', '.join(given)}] has {len(given)} names; {cfg.name} has {len(known)} classes"
        )
    return given


_BUILDERS = {
    "digits": _digits,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "imagenet": _image_folder,
    "image_folder": _image_folder,
    "custom": _custom,
}
