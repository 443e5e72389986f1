"""What a client loads of a data set, and in which order; the same for every task."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader, Dataset, Subset

from splitlearn.errors import UserError
from splitlearn.tasks.origin import Origin, fingerprint
from splitlearn.tasks.partition import partition, sharing
from splitlearn.tasks.samples import EpochBatches, Samples
from splitlearn.tasks.task import ClientData, Task

NUM_NAMED = 5  # of samples that are left out
TRAIN = {"train", "training", "trn", "trainset"}  # what people call their training data, and their test data
TEST = (  # the first that is there
    {"test", "testing", "tst", "testset"},
    {"val", "valid", "validation", "valset"},
    {"dev", "eval", "evaluation"},
)


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
    """A loader of some samples of a data set; with data.skip_unreadable without those that cannot be read.

    Samples that data.keep_in_memory keeps are loaded here, by data.num_workers threads.
    """
    samples = Samples(dataset, part, cfg.seed, client)
    last_batch = cfg.get("last_batch", "keep") if shuffle else "keep"  # no test sample is left out
    num_workers, skips = cfg.data.num_workers, bool(cfg.data.get("skip_unreadable"))
    if samples.may_be_kept(cfg.data.get("keep_in_memory", "auto")):
        tells = client == 0 or cfg.role is not None  # once on a screen
        samples.keep(num_workers, skips, print if tells else lambda line: None)
        num_workers = 0  # which would have a copy each, and take longer than the batch
    elif skips:
        samples.leave_out_unreadable(num_workers)
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
        collate_fn=_as_it_is,  # Samples puts the batch together
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
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


def source(data: DictConfig) -> str:
    """Where the samples of the config group `data` come from, by the key that says so."""
    key = next((key for key in ("_target_", "root") if data.get(key)), None)
    return f"data.{key}={data[key]}" if key else f"data={data.name}"


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
        raise UserError(f"{source(cfg.data)} holds no training samples: client {client} needs some")
    if cfg.evaluate.get("on") == "server":
        test = Subset(test, [])
    parts = loaders(train, test, client, num_clients, cfg)
    of_train, of_test = (part.dataset for part in parts)
    if left_out := [*of_train.unreadable, *of_test.unreadable]:
        names = ", ".join(left_out[:NUM_NAMED]) + ", …" * (len(left_out) > NUM_NAMED)
        print(f"client {client} leaves out {len(left_out)} samples that cannot be read: {names}")
    if not len(of_train):
        raise UserError(f"client {client} has no training sample that can be read: look at {source(cfg.data)}")
    origin = Origin(
        *(sharing(cfg), len(train), len(test), fingerprint(train), fingerprint(test)),
        *(len(of_train.unreadable), len(of_test.unreadable)),
    )
    return ClientData(*parts, about, parts[0].batch_sampler.in_epoch, len(of_test), origin)


def test_data(train: Dataset, test: Dataset, about: dict[str, Any], cfg: DictConfig) -> ClientData:
    """What `Task.load_test` gives, of all of a test set."""
    nothing, loader = (loader_of(one, np.arange(n), 0, cfg, shuffle=False) for one, n in ((test, 0), (test, len(test))))
    own = sharing(cfg), len(train), len(test), fingerprint(train), fingerprint(test)
    origin = Origin(*own, unreadable_test=len(loader.dataset.unreadable))
    return ClientData(nothing, loader, about, 0, len(loader.dataset), origin)


def of_server(task: Task, cfg: DictConfig) -> ClientData:
    """What `Task.load_test` gives, of whatever task.

    Raises:
        UserError: there are no test samples.
    """
    data = task.load_test(cfg)
    if not data.num_test:
        raise UserError(
            f"evaluate.on=server: there are no test samples at the server's {source(cfg.data)}"
            f" ({type(task).__name__}.load_test): give it some there, or set evaluate.on=clients"
        )
    return data


def _as_it_is(batch: Any) -> Any:
    return batch
