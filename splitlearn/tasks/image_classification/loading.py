"""What a client loads of a data set, in which order, and how an image file is read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from torchvision import datasets
from torchvision.transforms import v2

from splitlearn.batches import batch_sizes
from splitlearn.errors import UserError
from splitlearn.seeds import derive, generator
from splitlearn.tasks.image_classification.partition import partition


class EpochBatches(Sampler):
    """The batches of one epoch, from any batch on: lists of (epoch, index). A client's order is its own each epoch.

    Order and augmentation are drawn anew from the seed for each epoch and batch, so that a run goes on from any batch
    without the state of a generator, and with any number of loading processes.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        client: int,
        shuffle: bool = True,
        last_batch: str = "keep",
    ):
        self.num_samples, self.sizes = num_samples, batch_sizes(num_samples, batch_size, last_batch)
        self.seed, self.client, self.shuffle = seed, client, shuffle
        self.start_at(1)

    def start_at(self, epoch: int, batch: int = 0) -> None:
        """What the next iteration is over: `epoch`, from 1, without its first batches."""
        self.epoch, self.batch = epoch, batch

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = torch.arange(self.num_samples)
        if self.shuffle:
            stream = generator(self.seed, "shuffle", self.client, self.epoch)
            order = torch.randperm(self.num_samples, generator=stream)
        for batch in range(self.batch, len(self.sizes)):
            start = sum(self.sizes[:batch])
            yield [(self.epoch, index) for index in order[start : start + self.sizes[batch]].tolist()]


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

    last_batch says what becomes of a last batch that is not full; no test sample is dropped.
    `loader.batch_sampler.start_at` chooses the epoch.
    """
    last_batch = cfg.get("last_batch", "keep")
    parts = partition(train, num_clients, cfg.partition, cfg.seed)[client], np.arange(client, len(test), num_clients)
    return tuple(
        DataLoader(
            Samples(dataset, part, cfg.seed, client),
            batch_sampler=EpochBatches(
                len(part),
                cfg.batch_size,
                cfg.seed,
                client,
                shuffle=dataset is train,
                last_batch=last_batch if dataset is train else "keep",
            ),
            generator=torch.Generator(),  # else starting the loading processes would draw from the global one
            num_workers=cfg.data.num_workers,
            persistent_workers=cfg.data.num_workers > 0,
        )
        for dataset, part in zip((train, test), parts, strict=True)
    )


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


def _name_of(dataset: Dataset, index: int) -> str:
    """A sample's file, where it has one, or its number."""
    while isinstance(dataset, Subset):
        dataset, index = dataset.dataset, int(dataset.indices[index])
    return dataset.samples[index][0] if isinstance(dataset, datasets.ImageFolder) else str(index)
