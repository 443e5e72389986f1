"""What defences draw at random: numbers that nobody can guess who does not know the secret, and so take away again.

They are named by the secret, by their purpose and place in the run, and by what they are to protect. So a run that goes
on draws the same for the same tensor, which tells nothing new; and a server that has a batch computed again with other
weights gets other noise, of which no difference is free.

The generator is Philox with a key of 128 bits: PyTorch's on the CPU has 32, and tells its state by its numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

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
        digest = hashlib.blake2b(repr(purpose).encode(), digest_size=16, key=hashlib.sha256(secret).digest())
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        key = int.from_bytes(digest.digest(), "little")
        self._generator = np.random.Generator(np.random.Philox(key=key))

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Of mean 0 and standard deviation 1: float32, on the CPU."""
        return torch.from_numpy(self._generator.standard_normal(tuple(shape), np.float32))

    def laplace(self, shape: Sequence[int]) -> Tensor:
        """Of Laplace's distribution with mean 0 and scale 1: float32, on the CPU."""
        return torch.from_numpy(self._generator.laplace(size=tuple(shape)).astype(np.float32))

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """From 0 to below 1: float32, on the CPU."""
        return torch.from_numpy(self._generator.random(tuple(shape), np.float32))
