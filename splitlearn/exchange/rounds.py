"""The message by which a client asks what its part in the epoch is, where a run has something to say to that.

That is, where clients take turns in epochs (membership.sample), where a run may end before its last epoch
(early_stopping.patience), or where the server plans epochs as it goes (Exchange.phases). A request may wait for as long
as others train.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from splitlearn.exchange.agreement import Agreement, Unfit
from splitlearn.exchange.exchange import exchange_from
from splitlearn.exchange.messages import Message

PARTS = ("train", "evaluate", "over", "stop")


def asks(cfg: DictConfig) -> bool:
    """Whether the clients of a run ask before each epoch."""
    return (
        cfg.membership.sample is not None or cfg.early_stopping.patience is not None or bool(exchange_from(cfg).phases)
    )


@dataclass
class Round(Message):
    kind = "round"
    wants_to_stop: bool

    def check(self, agreement: Agreement) -> None:
        if type(self.wants_to_stop) is not bool:
            raise Unfit("whether it wants to stop is no bool")


@dataclass
class RoundReply(Message):
    kind = "answer for its round"
    part: str  # train in the epoch, or evaluate after it; or the run is over, or stops
    epoch: int  # the current one, from 1
    num_steps: int  # of all clients, in this epoch
    state: dict[str, Any] | None  # of segment and optimizer, to begin with; None: what the client has
    phase: str | None  # see Exchange.next_phase

    def check(self, agreement: Agreement) -> None:
        if self.part not in PARTS:
            raise Unfit(f"it asks for {self.part!r:.40}")
        if type(self.epoch) is not int or not 0 <= self.epoch <= agreement.cfg.epochs + 1:
            raise Unfit("its epoch is none of the run")
        if type(self.num_steps) is not int or self.num_steps < 0:
            raise Unfit("num_steps is no number from 0")
        if self.state is not None:
            agreement.check_trainable(self.state)
        agreement.check_phase(self.phase)
