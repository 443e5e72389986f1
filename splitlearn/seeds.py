"""Randomness has owners: one seed, and a stream of its own for every purpose, so that no use disturbs another."""

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# While torch gets a generator's state it holds that generator's lock, and may hand over Python's (the GIL), as where
# garbage is collected: a second thread that seeds it, or asks for its state, and the first would wait for each other
# for ever.
one_at_a_time = threading.RLock()


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
    with torch_drawing_from(seed):
        before = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed % (1 << 32))
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@contextmanager
def torch_drawing_from(seed: int) -> Iterator[None]:
    """All that torch draws at random on the CPU is from this seed; its generator is as before afterwards."""
    with one_at_a_time, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def start_from(seed: int) -> None:
    """All that torch draws at random from here on, on any device, is from this seed."""
    with one_at_a_time:
        torch.manual_seed(seed)
