"""A client's samples: which they are, in which order they come, and a whole batch of them at once.

How it works: a data set may have halves, `load` of a sample and `finish` of a batch. What `load` gives is the same each
time where the data set says how large it is (`sample_nbytes`), and can be kept in memory: a batch is then a few rows of
one tensor. What is drawn at random in `finish`, such as augmentation, is the same whether it was kept or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from splitlearn.batches import batch_sizes
from splitlearn.errors import UserError
from splitlearn.seeds import derive, drawing_from, generator
from splitlearn.tasks.partition import file_of, name_of, source_of, within

AUTO_NBYTES = 1 << 28  # of a client's training or test samples, up to which they are kept without being asked to
AT_ONCE = 512  # samples that wait to be put with the others
TELL_EVERY_S = 5.0


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
        self._known: tuple[int, tuple[torch.Tensor, ...]] | None = None  # an epoch, and its batches
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

    def samples_of(self, batch: int) -> torch.Tensor:
        """Which samples are in a batch of the epoch, from 1: their numbers, int64, from 0 to num_samples - 1."""
        if self._known is None or self._known[0] != self.epoch:
            self._known = self.epoch, self._order().split([*self.sizes, self.in_epoch - sum(self.sizes)])
        return self._known[1][batch - 1]

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
    """Some samples of a data set, in batches by the keys of EpochBatches, each with a random stream of its own.

    Args:
        dataset: map-style, of (input, target); may have halves (see above).
        indices: of the samples.
        seed, client: of the streams.

    Attributes:
        unreadable: names of samples that were left out.
        kept: (N, …) inputs and targets as loaded; None where they are loaded when they are wanted.
    """

    def __init__(self, dataset: Dataset, indices: np.ndarray, seed: int, client: int):
        self.dataset, self.indices, self.seed, self.client = dataset, indices, seed, client
        self.unreadable: list[str] = []
        self.kept: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, keys: list[tuple[int, int]]) -> Any:
        """A batch, put together."""
        places = [index for _, index in keys]
        with drawing_from(derive(self.seed, "augment", self.client, *keys[0])):
            if self.kept is not None:
                batch = [tensor[places] for tensor in self.kept]
            else:
                batch = default_collate([self._sample(int(self.indices[place])) for place in places])
            source, _ = within(self.dataset, 0)
            return [source.finish(batch[0]), batch[1]] if hasattr(source, "finish") else batch

    def _sample(self, index: int) -> Any:
        try:
            return self._loaded(index)
        except OSError as error:
            raise UserError(
                f"sample {name_of(self.dataset, index)} cannot be read ({error}): mend it or take it out of data.root,"
                " or leave out all that cannot with data.skip_unreadable=true"
            ) from None

    def _loaded(self, index: int) -> Any:
        source, number = within(self.dataset, index)
        return source.load(number) if hasattr(source, "finish") else self.dataset[index]

    def may_be_kept(self, wish: bool | str) -> bool:
        """Whether they can be kept in memory, and with wish="auto" are small enough."""
        nbytes = getattr(within(self.dataset, 0)[0], "sample_nbytes", None) if len(self) else None
        return bool(wish and nbytes) and (wish is True or nbytes * len(self) <= AUTO_NBYTES)

    def keep(self, num_threads: int, skip_unreadable: bool, tell: Callable[[str], None]) -> None:
        """Loads every sample, and keeps it in memory.

        Args:
            num_threads: that load.
            skip_unreadable: leave out what cannot be read.
            tell: is given a line every few seconds.

        Raises:
            UserError: a sample cannot be read.
        """
        load = _or_none(self._loaded) if skip_unreadable else self._sample
        inputs, targets, can_read = None, torch.empty(len(self), dtype=torch.int64), np.zeros(len(self), bool)
        told = time.monotonic()
        with ThreadPoolExecutor(max(1, num_threads)) as pool:
            for start in range(0, len(self), AT_ONCE):
                found = list(pool.map(load, self.indices[start : start + AT_ONCE].tolist()))
                for place, sample in enumerate(found, start):
                    if sample is not None:
                        inputs = sample[0].new_empty(len(self), *sample[0].shape) if inputs is None else inputs
                        inputs[place], targets[place], can_read[place] = *sample, True
                if time.monotonic() > told + TELL_EVERY_S:
                    told = time.monotonic()
                    tell(f"{start + len(found):,} of {len(self):,} samples are in memory")
        self._leave_out(can_read)
        if inputs is not None:
            are_all = can_read.all()
            self.kept = (inputs, targets) if are_all else (inputs[can_read], targets[can_read])

    def leave_out_unreadable(self, num_threads: int) -> None:
        """Reads every sample once: which there are is certain from here on, also where the run goes on later."""
        has_files = len(self) and file_of(*source_of(self.dataset, 0)) is not None

        def read(index: int) -> Any:
            source, number = source_of(self.dataset, index)
            path, load = file_of(source, number), getattr(source, "loader", None)
            return load(path) if path and load else self.dataset[index]

        with drawing_from(self.seed), ThreadPoolExecutor(max(1, num_threads)) as pool:
            reading = (pool.map if has_files else map)(_or_none(read), self.indices.tolist())
            self._leave_out(np.fromiter((found is not None for found in reading), bool, len(self)))

    def _leave_out(self, can_read: np.ndarray) -> None:
        self.unreadable = [name_of(self.dataset, int(index)) for index in self.indices[~can_read]]
        self.indices = self.indices[can_read]


def _or_none(load: Callable[[int], Any]) -> Callable[[int], Any]:
    """The same; None of what cannot be read."""

    def loaded(index: int) -> Any:
        try:
            return load(index)
        except OSError:
            return None

    return loaded
