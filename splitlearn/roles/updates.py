"""When the optimizers step, over how many batches, and with which rates: the server decides, and tells its clients.

With accumulate=n, a step of the optimizers is over n batches of each client, or over those that are left of its epoch.
"""

from __future__ import annotations

from typing import Any

from splitlearn.rates import Clock
from splitlearn.roles.epochs import num_steps
from splitlearn.roles.member import Member


class Updates:
    """
    Args:
        server: whose optimizer it is.

    Attributes:
        rates: what the optimizers step with; see rates.py.
        is_due: they step at the end of this step.
    """

    def __init__(self, server: Any):
        self.server, self.accumulate = server, server.cfg.accumulate
        self.rates: dict[str, Any] = {}
        self.is_due = False

    def start(self) -> None:
        """The clients are there, so that it is known how many steps an epoch has."""
        server, progress = self.server, self.server.progress
        if not progress.num_updates:
            progress.num_updates = num_steps(server, self.accumulate)
        self._clock = Clock(server.cfg, progress.num_updates)

    def begin_step(self, participants: list[int]) -> None:
        """A batch of each participant is next."""
        progress = self.server.progress
        progress.begin_step()
        plan = self.server.roster.plan
        self.rates = self._clock.at(plan.part, progress.epoch, progress.update)
        members = [self.server.roster.members[client] for client in participants]
        self.is_due = (
            plan.replays
            or progress.since_update >= self.accumulate
            or all((member.batch + 1) % self.accumulate == 0 or member.is_at_last for member in members)
        )
        if progress.since_update == 1:
            self.server.trainable.optimizer.zero_grad()

    def rates_for(self, member: Member, directive: str | None) -> dict[str, Any] | None:
        """What a client steps with after this batch of its own; None where it waits for more, or for a mean."""
        if self.server.topology.averages_steps or not (self.is_due or member.is_at_last or directive):
            return None
        return self.rates

    def step(self) -> None:
        """A step of the server's optimizer, over the batches since its last one."""
        if self.server.progress.since_update:
            self.server.trainable.step(self.rates)
            self.server.progress.end_update()
