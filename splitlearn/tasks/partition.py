"""How the training samples are shared out over the clients."""

from __future__ import annotations

import numpy as np
from omegaconf import DictConfig
from torch.utils.data import Dataset, Subset, TensorDataset

from splitlearn.errors import UserError

OF_USERS = ("image_folder", "text", "text_classification")  # data sets that are a user's own folder or file


def sharing(cfg: DictConfig) -> str:
    """How the data are shared out over the clients: what partition=auto comes to in this process, or as it says.

    auto: a client that was started on its own, on a user's own folder or data set, brings data of its own; else all
    clients have the same data set, and each its part of it.
    """
    if cfg.partition.name != "auto":
        return cfg.partition.name
    is_users = bool(cfg.data.get("_target_")) or cfg.data.get("name") in OF_USERS
    return "none" if cfg.role is not None and is_users else "iid"


def partition(dataset: Dataset, num_clients: int, cfg: DictConfig, seed: int) -> list[np.ndarray]:
    """Indices of each client's samples: every sample in exactly one part, no part empty.

    partition=iid (or auto): even parts at random, as in the MS paper. partition=dirichlet: each class is shared out in
    proportions drawn from Dirichlet(alpha); the smaller alpha, the less alike the clients. partition=natural: each
    client has some classes, or some of the texts, whole.

    Sources: Hsu et al. 2019, arXiv:1909.06335 (Dirichlet); Caldas et al. 2018, arXiv:1812.01097 (LEAF's natural parts).
    """
    if len(dataset) < num_clients:
        raise UserError(f"{len(dataset)} samples cannot be shared out over num_clients={num_clients}")
    rng = np.random.default_rng([seed, num_clients])
    if cfg.name not in ("dirichlet", "natural"):
        return [np.sort(part) for part in np.array_split(rng.permutation(len(dataset)), num_clients)]
    targets = read_labels(dataset, np.arange(len(dataset)), f"partition={cfg.name}", "partition=iid")
    if cfg.name == "natural":
        groups = rng.permutation(np.unique(targets))
        if len(groups) < num_clients:
            raise UserError(
                f"partition=natural has {len(groups)} classes or texts for num_clients={num_clients}: lower"
                " num_clients, or set partition=iid"
            )
        return [np.flatnonzero(np.isin(targets, part)) for part in np.array_split(groups, num_clients)]
    if cfg.alpha <= 0:
        raise UserError(f"partition.alpha={cfg.alpha} must be above 0")
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


def read_labels(dataset: Dataset, indices: np.ndarray, option: str, otherwise: str) -> np.ndarray:
    """The labels of some samples, which are loaded one by one where the data set does not list its labels.

    Raises:
        UserError: a sample cannot be read: `option` needs its label, and `otherwise` none.
    """
    if (known := labels(dataset)) is not None:
        return known[indices]

    def label(index: int) -> int:
        try:
            return int(dataset[index][1])
        except OSError as error:
            raise UserError(
                f"sample {name_of(dataset, index)} cannot be read ({error}), and {option} needs its label: mend it,"
                f" take it out of the data, give the data set `targets`, or set {otherwise}"
            ) from None

    return np.array([label(index) for index in indices.tolist()])


def labels(dataset: Dataset) -> np.ndarray | None:
    """The label of every sample, without loading the samples; None where that is not possible."""
    if isinstance(dataset, Subset):
        known = labels(dataset.dataset)
        return None if known is None else known[np.asarray(dataset.indices)]
    known = dataset.tensors[1] if isinstance(dataset, TensorDataset) else getattr(dataset, "targets", None)
    return None if known is None else np.asarray(known)


def source_of(dataset: Dataset, index: int) -> tuple[Dataset, int]:
    """The data set that a part of one is from, and the number that a sample has there."""
    while True:
        dataset, index = within(dataset, index)
        if not hasattr(dataset, "wrapped"):
            return dataset, index
        dataset = dataset.wrapped


def within(dataset: Dataset, index: int) -> tuple[Dataset, int]:
    """The same, of parts alone, and not of what wraps a data set."""
    while isinstance(dataset, Subset):
        dataset, index = dataset.dataset, int(dataset.indices[index])
    return dataset, index


def file_of(source: Dataset, number: int) -> str | None:
    """The file that a sample is in, of data sets that list theirs as torchvision's folders do."""
    try:
        path = source.samples[number][0]
    except (AttributeError, TypeError, LookupError):
        return None
    return path if isinstance(path, str) else None


def name_of(dataset: Dataset, index: int) -> str:
    """A sample's file, where it has one, or its number."""
    source, number = source_of(dataset, index)
    return file_of(source, number) or str(number)
