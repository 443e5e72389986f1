"""What the server holds of what its clients have sent, and the epochs in which it trains on that, alone.

Kept are the messages themselves, payloads as they came, with what the codecs knew that decodes them; a replayed batch
goes through the server's half of the exchange as one that has just come. Batches stay as they were sent, and each
client's come in an order of their own in every epoch, a step having one of each client.
"""

from __future__ import annotations

from typing import Any

import torch

from splitlearn.errors import UserError
from splitlearn.exchange.parts import Part
from splitlearn.measure.costs import size
from splitlearn.seeds import generator
from splitlearn.segments.trainable import nbytes_of

Kept = tuple[Part, dict[str, Any]]  # a message, and what the codecs knew before it


class Held:
    """
    Args:
        server: whose it is.
    """

    def __init__(self, server: Any):
        self.server, self.limit_mb = server, server.cfg.exchange.get("hold_mb")
        self._of_clients: dict[int, list[Kept]] = {}
        self.num_bytes = 0

    def start_epoch(self) -> None:
        """Forgets what it has, where an epoch brings it anew."""
        if self.server.roster.plan.is_held and not self.server.progress.epoch_step:
            self._of_clients, self.num_bytes = {}, 0

    def keep(self, client: int, part: Part, known: dict[str, Any]) -> None:
        """
        Raises:
            UserError: it is too much.
        """
        self._of_clients.setdefault(client, []).append((part, known))
        self.num_bytes += nbytes_of(part.body())
        if self.num_bytes > 1e6 * self.limit_mb:
            members = self.server.roster.members.values()
            done, due = (sum(getattr(member, name) for member in members) for name in ("batch", "num_due"))
            raise UserError(
                f"the server holds {size(self.num_bytes)} after {done} of {due} batches, more than exchange.hold_mb="
                f"{self.limit_mb}: raise it, or send fewer bits a value"
            )

    def train(self) -> None:
        """What is left of an epoch on what it holds."""
        server, progress = self.server, self.server.progress
        orders = {client: self._order(client, len(kept)) for client, kept in self._of_clients.items()}
        for step in range(progress.epoch_step, max(map(len, orders.values()), default=0)):
            server.roster.hear_waiting()
            if server.roster.is_open:
                server.roster.sort_out()
            batches = {one: self._of_clients[one][order[step]] for one, order in orders.items() if step < len(order)}
            server.updates.begin_step([*batches])
            directive = server.runstate.directive()
            measured = server.conversation.replay(batches)
            server.updates.step()
            server.recorder.step(progress, measured, server.updates.rates["lr"])
            if directive:
                server.roster.hear_states([], directive)
                server.runstate.save()
            if directive == "stop":
                server.runstate.end_early()

    def _order(self, client: int, number: int) -> list[int]:
        stream = generator(self.server.cfg.seed, "held", self.server.progress.epoch, client)
        return torch.randperm(number, generator=stream).tolist()

    def state(self) -> dict[int, list[tuple]]:
        return {client: [(part.body(), known) for part, known in kept] for client, kept in self._of_clients.items()}

    def load(self, state: dict[int, list[tuple]]) -> None:
        """The agreement has to be known."""
        sent, agreement = self.server.exchange.rounds[0][0], self.server.agreement
        self._of_clients = {
            client: [(sent.parse(body, agreement), known) for body, known in kept] for client, kept in state.items()
        }
        self.num_bytes = sum(nbytes_of(body) for kept in state.values() for body, _ in kept)
