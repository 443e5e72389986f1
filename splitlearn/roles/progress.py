"""Where a run is, and a client in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """
    Attributes:
        epoch: the current one, from 1.
        epoch_step: steps of it that are done.
        step: steps of the run that are done.
    """

    epoch: int = 1
    epoch_step: int = 0
    step: int = 0

    def begin_step(self) -> None:
        self.epoch_step += 1
        self.step += 1

    def end_epoch(self) -> None:
        self.epoch, self.epoch_step = self.epoch + 1, 0


@dataclass
class ClientProgress:
    """Where a client is.

    Attributes:
        epoch: the current one, from 1.
        epoch_step: steps of it that are done, this client's and others'.
        batch: this client's batches of it that are begun.
    """

    epoch: int
    epoch_step: int
    batch: int

    def end_epoch(self) -> None:
        self.epoch, self.epoch_step, self.batch = self.epoch + 1, 0, 0
