"""Data sets, and how their samples are shared out over the clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, TensorDataset
from torchvision import datasets
from torchvision.transforms import v2

from splitlearn.errors import UserError
from splitlearn.seeds import derive, generator


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


def labels(dataset: Dataset) -> np.ndarray:
    """The label of every sample, without loading the images."""
    if isinstance(dataset, Subset):
        return labels(dataset.dataset)[np.asarray(dataset.indices)]
    return np.asarray(dataset.tensors[1] if isinstance(dataset, TensorDataset) else dataset.targets)


def partition(dataset: Dataset, num_clients: int, cfg: DictConfig, seed: int) -> list[np.ndarray]:
    """Indices of each client's samples: every sample in exactly one part, no part empty.

    partition=iid: even parts at random, as in the MS paper. partition=dirichlet: each class is shared out in
    proportions drawn from Dirichlet(alpha); the smaller alpha, the less alike the clients.

    Source: Hsu et al. 2019, arXiv:1909.06335 (Dirichlet).
    """
    if len(dataset) < num_clients:
        raise UserError(f"{len(dataset)} samples cannot be shared out over num_clients={num_clients}")
    rng = np.random.default_rng([seed, num_clients])
    if cfg.name == "iid":
        return [np.sort(part) for part in np.array_split(rng.permutation(len(dataset)), num_clients)]
    if cfg.alpha <= 0:
        raise UserError(f"partition.alpha={cfg.alpha} must be above 0")
    targets = labels(dataset)
    for _ in range(100):
        parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
        for label in np.unique(targets):
            samples = rng.permutation(np.flatnonzero(targets == label))
            bounds = np.cumsum(rng.dirichlet([cfg.alpha] * num_clients))[:-1] * len(samples)
            for part, share in zip(parts, np.split(samples, bounds.astype(int)), strict=True):
                part.append(share)
        parts = [np.sort(np.concatenate(part)) for part in parts]
        if all(part.size for part in parts):
            return parts
    raise UserError(
        f"partition.alpha={cfg.alpha} leaves some of {num_clients} clients without samples: raise it or lower"
        " num_clients"
    )


class EpochBatches(Sampler):
    """The batches of one epoch, from any batch on: lists of (epoch, index). A client's order is its own each epoch.

    Order and augmentation are drawn anew from the seed for each epoch and batch, so that a run goes on from any batch
    without the state of a generator, and with any number of loading processes.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, client: int, shuffle: bool = True):
        self.num_samples, self.batch_size = num_samples, batch_size
        self.seed, self.client, self.shuffle = seed, client, shuffle
        self.start_at(1)

    def start_at(self, epoch: int, batch: int = 0) -> None:
        """What the next iteration is over: `epoch`, from 1, without its first batches."""
        self.epoch, self.batch = epoch, batch

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = torch.arange(self.num_samples)
        if self.shuffle:
            stream = generator(self.seed, "shuffle", self.client, self.epoch)
            order = torch.randperm(self.num_samples, generator=stream)
        for indices in order.split(self.batch_size)[self.batch :]:
            yield [(self.epoch, index) for index in indices.tolist()]


class Samples(Dataset):
    """Some samples of a data set, by the keys of EpochBatches, each batch augmented by a random stream of its own."""

    def __init__(self, dataset: Dataset, indices: np.ndarray, seed: int, client: int):
        self.dataset, self.indices, self.seed, self.client = dataset, indices, seed, client

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[tuple[Tensor, int]]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(self.seed, "augment", self.client, *keys[0]))
            return [self._sample(int(self.indices[index])) for _, index in keys]

    def _sample(self, index: int) -> tuple[Tensor, int]:
        try:
            return self.dataset[index]
        except (OSError, Image.DecompressionBombError) as error:  # PIL's UnidentifiedImageError is an OSError
            raise UserError(
                f"sample {_name_of(self.dataset, index)} cannot be read ({error}): mend it or take it out of data.root"
            ) from None


def loaders(
    train: Dataset, test: Dataset, client: int, num_clients: int, cfg: DictConfig
) -> tuple[DataLoader, DataLoader]:
    """One client's loaders: its part of the training set, shuffled, and every num_clients-th test sample.

    The last batch of an epoch may be smaller; no sample is dropped. `loader.batch_sampler.start_at` chooses the epoch.
    """
    parts = partition(train, num_clients, cfg.partition, cfg.seed)[client], np.arange(client, len(test), num_clients)
    return tuple(
        DataLoader(
            Samples(dataset, part, cfg.seed, client),
            batch_sampler=EpochBatches(len(part), cfg.batch_size, cfg.seed, client, shuffle=dataset is train),
            generator=torch.Generator(),  # else starting the loading processes would draw from the global one
            num_workers=cfg.data.num_workers,
            persistent_workers=cfg.data.num_workers > 0,
        )
        for dataset, part in zip((train, test), parts, strict=True)
    )


def _name_of(dataset: Dataset, index: int) -> str:
    """A sample's file, where it has one, or its number."""
    while isinstance(dataset, Subset):
        dataset, index = dataset.dataset, int(dataset.indices[index])
    return dataset.samples[index][0] if isinstance(dataset, datasets.ImageFolder) else str(index)


class ImageLoader:
    """Loads an image file as a (3, height, width) uint8 tensor; with `keeps` once, and from memory from then on."""

    def __init__(self, keeps: bool):
        self.keeps, self.kept = keeps, {}

    def __call__(self, path: str) -> Tensor:
        image = self.kept.get(path)
        if image is None:
            image = v2.functional.pil_to_tensor(datasets.folder.pil_loader(path))
            if self.keeps:
                self.kept[path] = image
        return image


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


def to_device(batch: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    images, targets = batch
    return images.to(device), targets.to(device)
