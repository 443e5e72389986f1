"""What an epoch does: which of the clients' batches are sent, who trains, and on what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        every: of a client's batches, the first and every n-th after it are sent; 0: none is.
        is_trained: the clients' weights change in the epoch, by the batches that are sent and by those that are not.
        is_held: the server keeps what comes, and forgets what it has kept before.
        replays: the server trains alone, on what it holds.
        part: of the run that the epoch is in, which learning rates go over: its first epoch, and how many it has; None
            for all that are left.
    """

    every: int = 1
    is_trained: bool = True
    is_held: bool = False
    replays: bool = False
    part: tuple[int, int | None] = (1, None)

    def sends(self, batch: int) -> bool:
        """Whether a client's batch, from 1, is sent."""
        return self.every > 0 and (batch - 1) % self.every == 0

    def num_sent(self, num_batches: int) -> int:
        """How many of a client's batches are sent."""
        return -(-num_batches // self.every) if self.every else 0

    def begun(self, num_sent: int, num_batches: int) -> int:
        """Batches that a client has done when it has sent so many, with those that follow the last one alone."""
        return min(num_sent * self.every, num_batches)

    @property
    def is_alone(self) -> bool:
        """Whether the clients train alone, all epoch."""
        return self.is_trained and not self.every
