"""What a client loads of a data set, and in which order; the same for every task."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from splitlearn.batches import batch_sizes
from splitlearn.errors import UserError
from splitlearn.seeds import derive, drawing_from, generator
from splitlearn.tasks.origin import Origin, fingerprint
from splitlearn.tasks.partition import file_of, partition, sharing, source_of
from splitlearn.tasks.task import ClientData

NUM_NAMED = 5  # of samples that are left out
TRAIN = {"train", "training", "trn", "trainset"}  # what people call their training data, and their test data
TEST = (  # the first that is there
    {"test", "testing", "tst", "testset"},
    {"val", "valid", "validation", "valset"},
    {"dev", "eval", "evaluation"},
)


class EpochBatches(Sampler):
    """The batches of one epoch, from any batch on: lists of (epoch, index). A client's order is its own each epoch.

    An epoch of fewer samples than there are goes on where the one before it has ended: all have their turn before one
    comes again.

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
        in_epoch: int | None = None,
    ):
        self.num_samples, self.in_epoch = num_samples, min(in_epoch or num_samples, num_samples)
        self.sizes = batch_sizes(self.in_epoch, batch_size, last_batch)
        self.seed, self.client, self.shuffle = seed, client, shuffle
        self.start_at(1)

    def start_at(self, epoch: int, batch: int = 0) -> None:
        """What the next iteration is over: `epoch`, from 1, without its first batches."""
        self.epoch, self.batch = epoch, batch

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self._order()
        starts = [0, *accumulate(self.sizes)]
        for start, end in list(pairwise(starts))[self.batch :]:
            yield [(self.epoch, index) for index in order[start:end].tolist()]

    def _order(self) -> torch.Tensor:
        if not self.shuffle or not self.num_samples:
            return torch.arange(self.in_epoch)
        first = (self.epoch - 1) * self.in_epoch  # of all that are drawn in the run
        start = first % self.num_samples
        number, orders = first // self.num_samples + 1, []
        while sum(map(len, orders)) < start + self.in_epoch:
            stream = generator(self.seed, "shuffle", self.client, number + len(orders))
            orders.append(torch.randperm(self.num_samples, generator=stream))
        return torch.cat(orders)[start : start + self.in_epoch]


class Samples(Dataset):
    """Some samples of a data set, by the keys of EpochBatches, each batch augmented by a random stream of its own.

    Attributes:
        unreadable: names of samples that were left out.
    """

    def __init__(self, dataset: Dataset, indices: np.ndarray, seed: int, client: int):
        self.dataset, self.indices, self.seed, self.client = dataset, indices, seed, client
        self.unreadable: list[str] = []

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[Any]:
        with drawing_from(derive(self.seed, "augment", self.client, *keys[0])):
            return [self._sample(int(self.indices[index])) for _, index in keys]

    def _sample(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except OSError as error:
            raise UserError(
                f"sample {_name_of(self.dataset, index)} cannot be read ({error}): mend it or take it out of data.root,"
                " or leave out all that cannot with data.skip_unreadable=true"
            ) from None

    def leave_out_unreadable(self, num_threads: int) -> None:
        """Reads every sample once: which there are is certain from here on, also where the run goes on later."""
        has_files = len(self) and file_of(*source_of(self.dataset, 0)) is not None

        def reads(index: int) -> bool:
            source, number = source_of(self.dataset, index)
            path, load = file_of(source, number), getattr(source, "loader", None)
            try:
                load(path) if path and load else self.dataset[index]
                return True
            except OSError:
                return False

        with drawing_from(self.seed), ThreadPoolExecutor(max(1, num_threads)) as pool:
            reading = (pool.map if has_files else map)(reads, self.indices.tolist())
            can_read = np.fromiter(reading, bool, len(self.indices))
        self.unreadable = [_name_of(self.dataset, int(index)) for index in self.indices[~can_read]]
        self.indices = self.indices[can_read]


def loaders(
    train: Dataset, test: Dataset, client: int, num_clients: int, cfg: DictConfig
) -> tuple[DataLoader, DataLoader]:
    """One client's loaders: its part of the training set, shuffled, and every num_clients-th test sample.

    With partition=none all samples are its own. last_batch says what becomes of a last batch that is not full;
    no test sample is dropped. `loader.batch_sampler.start_at` chooses the epoch.
    """
    if sharing(cfg) == "none":
        parts = np.arange(len(train)), np.arange(len(test))
    else:
        parts = (
            partition(train, num_clients, cfg.partition, cfg.seed)[client],
            np.arange(client, len(test), num_clients),
        )
    return tuple(
        loader_of(dataset, part, client, cfg, shuffle=dataset is train)
        for dataset, part in zip((train, test), parts, strict=True)
    )


def loader_of(dataset: Dataset, part: np.ndarray, client: int, cfg: DictConfig, shuffle: bool) -> DataLoader:
    """A loader of some samples of a data set; with data.skip_unreadable without those that cannot be read."""
    samples = Samples(dataset, part, cfg.seed, client)
    last_batch = cfg.get("last_batch", "keep") if shuffle else "keep"  # no test sample is left out
    if cfg.data.get("skip_unreadable"):
        samples.leave_out_unreadable(cfg.data.num_workers)
    return DataLoader(
        samples,
        batch_sampler=EpochBatches(
            len(samples),
            cfg.batch_size,
            cfg.seed,
            client,
            shuffle,
            last_batch,
            cfg.get("samples_per_epoch") if shuffle else None,
        ),
        generator=torch.Generator(),  # else starting the loading processes would draw from the global one
        num_workers=cfg.data.num_workers,
        persistent_workers=cfg.data.num_workers > 0,
    )


def limited(dataset: Dataset, num_samples: int | None, seed: int) -> Dataset:
    """A random part of `num_samples`; the whole where there are no more, or `num_samples` is None."""
    if num_samples is None or num_samples >= len(dataset):
        return dataset
    return Subset(dataset, np.sort(np.random.default_rng(seed).permutation(len(dataset))[:num_samples]))


def held_out(dataset: Dataset, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending numbers of samples to train on, and of a random part of them to test on; 0: none."""
    order = np.random.default_rng(seed).permutation(len(dataset))
    num_test = max(1, round(fraction * len(dataset))) if fraction else 0
    return np.sort(order[num_test:]), np.sort(order[:num_test])


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
    if not len(train):
        raise UserError(f"data.root={cfg.data.get('root')} holds no training samples: client {client} needs some")
    if cfg.evaluate.get("on") == "server":
        test = Subset(test, [])
    parts = loaders(train, test, client, num_clients, cfg)
    of_train, of_test = (part.dataset for part in parts)
    if left_out := [*of_train.unreadable, *of_test.unreadable]:
        names = ", ".join(left_out[:NUM_NAMED]) + ", …" * (len(left_out) > NUM_NAMED)
        print(f"client {client} leaves out {len(left_out)} samples that cannot be read: {names}")
    if not len(of_train):
        raise UserError(f"client {client} has no training sample that can be read: look at data.root={cfg.data.root}")
    origin = Origin(
        *(sharing(cfg), len(train), len(test), fingerprint(train), fingerprint(test)),
        *(len(of_train.unreadable), len(of_test.unreadable)),
    )
    return ClientData(*parts, about, parts[0].batch_sampler.in_epoch, len(of_test), origin)


def test_data(train: Dataset, test: Dataset, about: dict[str, Any], cfg: DictConfig) -> ClientData:
    """What `Task.load_test` gives, of all of a test set.

    Raises:
        UserError: there are no test samples.
    """
    nothing, loader = (loader_of(one, np.arange(n), 0, cfg, shuffle=False) for one, n in ((test, 0), (test, len(test))))
    if not len(loader.dataset):
        raise UserError(
            f"evaluate.on=server: there are no test samples at the server's data.root={cfg.data.get('root')}; set"
            " data.root there, or evaluate.on=clients"
        )
    own = sharing(cfg), len(train), len(test), fingerprint(train), fingerprint(test)
    origin = Origin(*own, unreadable_test=len(loader.dataset.unreadable))
    return ClientData(nothing, loader, about, 0, len(loader.dataset), origin)


def _name_of(dataset: Dataset, index: int) -> str:
    """A sample's file, where it has one, or its number."""
    source, number = source_of(dataset, index)
    return file_of(source, number) or str(number)
