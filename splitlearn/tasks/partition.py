"""How the training samples are shared out over the clients."""

from __future__ import annotations

import numpy as np
from omegaconf import DictConfig
from torch.utils.data import Dataset, Subset, TensorDataset

from splitlearn.errors import UserError


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


def labels(dataset: Dataset) -> np.ndarray:
    """The label of every sample, without loading the samples."""
    if isinstance(dataset, Subset):
        return labels(dataset.dataset)[np.asarray(dataset.indices)]
    return np.asarray(dataset.tensors[1] if isinstance(dataset, TensorDataset) else dataset.targets)
