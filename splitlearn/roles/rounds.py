"""Who takes part in an epoch: all that are there, or membership.sample of them, drawn anew for each epoch.

Seed and epoch put all clients into an order, and the first that are there make the round. The others wait, and cost
neither traffic nor computing. In an open run one that joins while the round has room takes part at once, and where the
round has lost so many that a step would have no quorum, the next in the order take their places.
"""

from __future__ import annotations

import math

import torch

from splitlearn.exchange.exchange import exchange_from
from splitlearn.exchange.plan import Plan
from splitlearn.exchange.rounds import asks
from splitlearn.roles.attendance import Attendance
from splitlearn.seeds import generator


def order(seed: int, epoch: int, num_clients: int) -> list[int]:
    """The clients, in the order in which they are drawn for an epoch."""
    return torch.randperm(num_clients, generator=generator(seed, "round", epoch)).tolist()


class Rounds(Attendance):
    """The part of the roster that says who takes part in an epoch. Arguments as Attendance's."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sample: int | None = self.cfg.membership.sample
        self.asks, self.exchange = asks(self.cfg), exchange_from(self.cfg)

    @property
    def plan(self) -> Plan:
        """Of the epoch."""
        return self.exchange.plan(self.progress.epoch, self.progress.phase)

    def in_round(self) -> list[int]:
        """Clients that are there and take part in the epoch."""
        here = self.here()
        return here if self.sample is None else [client for client in here if client in self.progress.drawn]

    def waiting(self) -> list[int]:
        """Clients that are there and do not."""
        return sorted(set(self.here()) - set(self.in_round()))

    def on_time(self) -> list[int]:
        """Clients that steps wait for."""
        return [client for client in self.in_round() if not self.members[client].is_late]

    def unfinished(self) -> list[int]:
        """Clients that take part and have batches of the epoch left."""
        return [client for client in self.in_round() if self.members[client].batch < self.members[client].num_due]

    def start_epoch(self) -> None:
        """An epoch begins, or goes on. While one end trains alone, nobody is late."""
        self.deadline_s = self.cfg.membership.step_deadline_s if self.plan.every else math.inf
        self.inbox.timeout_s = self.cfg.rpc.timeout_s if self.plan.every else math.inf
        for member in self.members.values():
            member.start(self.progress.epoch, self.plan)
        if self.sample is not None and not self.progress.drawn:
            self.draw(self.sample)

    def draw(self, number: int) -> None:
        """Draws clients until so many take part, or all that are there do."""
        able = [client for client in self.here() if not self.is_open or self._is_able(client)]
        for client in order(self.cfg.seed, self.progress.epoch, self.cfg.num_clients):
            if len(set(able) & set(self.progress.drawn)) >= number:
                break
            if client in able and client not in self.progress.drawn:
                self.progress.drawn.append(client)

    def _is_able(self, client: int) -> bool:
        return not self.members[client].is_late and self.inbox.is_alive(client)

    def has_room(self) -> bool:
        """Whether one that joins the epoch takes part in it."""
        return bool(self.progress.drawn) and len(self.in_round()) < self.sample

    def hear_waiting(self) -> None:
        """One that waits may have been asked to end, which ends the run of a fixed fleet."""
        for client, request in () if self.is_open else self.inbox.new_requests().items():
            if self.wants_to_stop(request):
                self.let_go(client)
