"""Where a run is, and a client in it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """
    Attributes:
        epoch: the current one, from 1.
        epoch_step: steps of it that are done.
        step: steps of the run that are done.
        drawn: clients that take part in the epoch, where not all do; see rounds.py.
        mark: what an evaluation has to be better than, and
        misses: how many in a row were not; see verdict.py.
    """

    epoch: int = 1
    epoch_step: int = 0
    step: int = 0
    drawn: list[int] = field(default_factory=list)
    mark: float | None = None
    misses: int = 0

    def begin_step(self) -> None:
        self.epoch_step += 1
        self.step += 1

    def end_epoch(self) -> None:
        self.epoch, self.epoch_step, self.drawn = self.epoch + 1, 0, []


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
