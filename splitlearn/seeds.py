"""Randomness has owners: one seed, and a stream of its own for every purpose, so that no use disturbs another."""

import hashlib

import torch


def derive(seed: int, *purpose) -> int:
    """A seed for `purpose` (words and numbers), the same on every machine; independent of every other purpose's."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # below 2^63, as torch asks


def generator(seed: int, *purpose) -> torch.Generator:
    """A generator for `purpose`, on the CPU."""
    return torch.Generator().manual_seed(derive(seed, *purpose))
