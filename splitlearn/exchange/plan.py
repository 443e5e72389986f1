"""What the clients do with their batches in an epoch: which of them are sent, and whether the others train alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        every: of a client's batches, the first and every so manieth after it are sent; 0: none is.
        is_trained: the clients' weights change in the epoch.
    """

    every: int = 1
    is_trained: bool = True

    def sends(self, batch: int) -> bool:
        """Whether a client's batch, from 1, is sent."""
        return self.every > 0 and (batch - 1) % self.every == 0

    def num_sent(self, num_batches: int) -> int:
        """How many of a client's batches are sent."""
        return -(-num_batches // self.every) if self.every else 0

    def begun(self, num_sent: int, num_batches: int) -> int:
        """Batches that a client has done when it has sent so many, with those that follow the last one alone."""
        return min(num_sent * self.every, num_batches)
