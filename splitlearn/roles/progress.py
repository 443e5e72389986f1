"""Where a run is, and a client in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from splitlearn.batches import counted


@dataclass
class Progress:
    """
    Attributes:
        epoch: the current one, from 1.
        epoch_step: steps of it that are done.
        step: steps of the run that are done.
        since_update: steps since the server's optimizer stepped.
        update: steps of its optimizer in the epoch.
        num_updates: that the learning rate counts an epoch as; 0: not known yet.
        num_sending: epochs that are done whose plan had the clients send.
        phase: of the run, where the exchange plans its epochs as it goes, and
        reference: what it goes by; see Exchange.next_phase.
        drawn: clients that take part in the epoch, where not all do; see rounds.py.
        mark: what an evaluation has to be better than, and
        misses: how many in a row were not; see verdict.py.
    """

    epoch: int = 1
    epoch_step: int = 0
    step: int = 0
    since_update: int = 0
    update: int = 0
    num_updates: int = 0
    num_sending: int = 0
    phase: str | None = None
    reference: float | None = None
    drawn: list[int] = field(default_factory=list)
    mark: float | None = None
    misses: int = 0

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps; later steps do not change it."""
        return {**vars(self), "drawn": list(self.drawn)}

    def begin_step(self) -> None:
        self.epoch_step += 1
        self.step += 1
        self.since_update += 1

    def end_update(self) -> None:
        self.since_update, self.update = 0, self.update + 1

    def end_epoch(self, phase: str | None = None, reference: float | None = None) -> None:
        self.epoch, self.epoch_step, self.update, self.drawn = self.epoch + 1, 0, 0, []
        self.phase, self.reference = phase, reference


@dataclass
class ClientProgress:
    """Where a client is.

    Attributes:
        epoch: the current one, from 1.
        epoch_step: steps of it that are done, this client's and others'.
        batch: this client's batches of it that are begun.
        phase: as of Progress.
    """

    epoch: int
    epoch_step: int
    batch: int
    phase: str | None = None

    def end_epoch(self) -> None:
        self.epoch, self.epoch_step, self.batch = self.epoch + 1, 0, 0


def share_of(batch: int, num_samples: int, cfg: DictConfig) -> float:
    """How many of the samples of a client's optimizer step are in a batch, as a part of one.

    Args:
        batch: of the epoch, from 1.
        num_samples: of the client, in an epoch.
        cfg: of the run: a step is over `accumulate` batches, or those that are left.
    """
    before = (batch - 1) // cfg.accumulate * cfg.accumulate  # batches of the steps before
    size = cfg.batch_size
    num_full, last = counted(num_samples, size, cfg.last_batch)
    end = min(before + cfg.accumulate, num_full + (last > 0))
    sizes = [size if number < num_full else last for number in range(before, end)]
    return sizes[batch - 1 - before] / sum(sizes)
