"""What the server knows of a client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from splitlearn.exchange.plan import Plan


@dataclass
class Member:
    """
    Attributes:
        num_train, num_test: samples of its own.
        num_numbered: training samples that are told apart, of which an epoch may have fewer.
        origin: the data set that they are of (see Origin).
        num_batches, num_test_batches: of its data.
        num_due: of these batches, those that it sends in the epoch (see plan.py).
        epoch: that the next two are of.
        batch: batches that it has sent.
        num_samples: in these.
        state: as handed in last; None before.
        state_epoch: when that was.
        is_in: it has joined, and was not sent away since.
        is_late: no step waits for it.
        is_leaving: it was asked to end.
    """

    num_train: int = 0
    num_test: int = 0
    num_numbered: int = 0
    origin: dict[str, Any] | None = None
    num_batches: int = 0
    num_test_batches: int = 0
    num_due: int = 0
    epoch: int = 0
    batch: int = 0
    num_samples: int = 0
    state: dict[str, Any] | None = None
    state_epoch: int = 0
    is_in: bool = False
    is_late: bool = False
    is_leaving: bool = False

    @property
    def is_at_last(self) -> bool:
        """Whether its next batch is the last of its epoch."""
        return self.batch + 1 >= self.num_due

    def start(self, epoch: int, plan: Plan) -> None:
        self.num_due = plan.num_sent(self.num_batches)
        if self.epoch != epoch:
            self.epoch, self.batch, self.num_samples = epoch, 0, 0

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps: nobody is there when a run goes on."""
        return {**vars(self), "is_in": False, "is_late": False, "is_leaving": False}
