"""What a client loads of a data set, and in which order; the same for every task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader, Dataset, Sampler

from splitlearn.errors import UserError
from splitlearn.seeds import derive, generator
from splitlearn.tasks.origin import Origin, fingerprint
from splitlearn.tasks.partition import partition, sharing, source_of
from splitlearn.tasks.task import ClientData


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
        batches = order.split(self.batch_size) if self.num_samples else ()  # no samples are one empty batch else
        for indices in batches[self.batch :]:
            yield [(self.epoch, index) for index in indices.tolist()]


class Samples(Dataset):
    """Some samples of a data set, by the keys of EpochBatches, each batch augmented by a random stream of its own."""

    def __init__(self, dataset: Dataset, indices: np.ndarray, seed: int, client: int):
        self.dataset, self.indices, self.seed, self.client = dataset, indices, seed, client

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[Any]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(self.seed, "augment", self.client, *keys[0]))
            return [self._sample(int(self.indices[index])) for _, index in keys]

    def _sample(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except OSError as error:
            raise UserError(
                f"sample {_name_of(self.dataset, index)} cannot be read ({error}): mend it or take it out of data.root"
            ) from None


def loaders(
    train: Dataset, test: Dataset, client: int, num_clients: int, cfg: DictConfig
) -> tuple[DataLoader, DataLoader]:
    """One client's loaders: its part of the training set, shuffled, and every num_clients-th test sample.

    With partition=none all samples are its own. The last batch of an epoch may be smaller; no sample is dropped.
    `loader.batch_sampler.start_at` chooses the epoch.
    """
    if sharing(cfg) == "none":
        parts = np.arange(len(train)), np.arange(len(test))
    else:
        parts = (
            partition(train, num_clients, cfg.partition, cfg.seed)[client],
            np.arange(client, len(test), num_clients),
        )
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


def client_data(
    train: Dataset, test: Dataset, about: dict[str, Any], client: int, num_clients: int, cfg: DictConfig
) -> ClientData:
    """What `Task.load` gives, of a training and a test set that are shared out as `partition` says.

    Args:
        train, test: map-style data sets of (input, target).
        about: as of ClientData.
        client, num_clients, cfg: as of Task.load.

    Raises:
        UserError: they cannot be shared out like this.
    """
    parts = loaders(train, test, client, num_clients, cfg)
    origin = Origin(sharing(cfg), len(train), len(test), fingerprint(train), fingerprint(test))
    return ClientData(*parts, about, *(len(part.dataset) for part in parts), origin)


def _name_of(dataset: Dataset, index: int) -> str:
    """A sample's file, where it has one, or its number."""
    source, number = source_of(dataset, index)
    return str(source.samples[number][0] if hasattr(source, "samples") else number)  # as torchvision's folders
