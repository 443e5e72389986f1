"""Randomness has owners: one seed, and a stream of its own for every purpose, so that no use disturbs another."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *purpose) -> int:
    """A seed for `purpose` (words and numbers), the same on every machine; independent of every other purpose's."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # below 2^63, as torch asks


def generator(seed: int, *purpose) -> torch.Generator:
    """A generator for `purpose`, on the CPU."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """All that transforms draw at random is from this seed; the generators of others are as before afterwards."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
