"""What defences draw at random: numbers that nobody can guess who does not know the secret, and so take away again.

They are named by the secret, by their purpose and place in the run, and by what they are to protect. So a run that goes
on draws the same for the same tensor, which tells nothing new; and a server that has a batch computed again with other
weights gets other noise, of which no difference is free.

The generator is Philox with a key of 128 bits: PyTorch's on the CPU has 32, and tells its state by its numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


class Draws:
    """
    Args:
        secret: of who draws.
        x: what is to be protected.
        purpose: words and numbers.
    """

    def __init__(self, secret: bytes, x: Tensor, *purpose: object):
        self._key, self._x, self._purpose = hashlib.sha256(secret).digest(), x, repr(purpose).encode()

    @cached_property
    def _generator(self) -> np.random.Generator:
        """Made at the first draw: it reads all of x, and some defences draw nothing."""
        digest = hashlib.blake2b(self._purpose, digest_size=16, key=self._key)
        digest.update(self._x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest(), "little")))

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Of mean 0 and standard deviation 1: float32, on the CPU."""
        return torch.from_numpy(self._generator.standard_normal(tuple(shape), np.float32))

    def laplace(self, shape: Sequence[int]) -> Tensor:
        """Of Laplace's distribution with mean 0 and scale 1: float32, on the CPU."""
        return torch.from_numpy(self._generator.laplace(size=tuple(shape)).astype(np.float32))

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """From 0 to below 1: float32, on the CPU."""
        return torch.from_numpy(self._generator.random(tuple(shape), np.float32))
