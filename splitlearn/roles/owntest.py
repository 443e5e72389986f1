"""The server's own test data through both sides of the network, in one process: nothing crosses the wire."""

from __future__ import annotations

from typing import Any

import torch

from splitlearn.errors import NonFiniteError, UserError
from splitlearn.exchange.codecs import Codecs
from splitlearn.exchange.exchange import Outcome, converse
from splitlearn.exchange.halves import client_half, server_half
from splitlearn.exchange.passage import Passage
from splitlearn.roles.evaluation import diverged
from splitlearn.segments.parts import Parts
from splitlearn.tasks.loading import of_server


class OwnTest:
    """Evaluates the clients' segment, as averaged or handed on last, with the server's own part.

    Args:
        server: whose test data they are.

    Raises:
        UserError: there are none.
    """

    def __init__(self, server: Any):
        self.server, self.data = server, of_server(server.task, server.cfg)

    def know(self, segment: Parts, about: dict[str, Any]) -> dict[str, Any]:
        """The network is built, for data of the clients that are like this; returns that with what is tested.

        Raises:
            UserError: the server's are not.
        """
        if reason := self.server.task.disagreement(about, self.data.about):
            raise UserError(f"the server's test data do not fit (evaluate.on=server): {reason}")
        self.segment = segment.to(self.server.device).eval()
        self.server.exchange.know_test(self.server.task.to_device(batch, "cpu")[0] for batch in self.data.test)
        return self.server.task.tested(about, [self.data.about])

    @torch.no_grad()
    def evaluate(self) -> list[tuple[None, Outcome]]:
        """What comes out for every test batch, through the exchange and its codecs; the samples are no client's."""
        server, (state, *_) = self.server, self.server.client_states
        self.segment.load_state_dict(state.get("segment", state))
        outcomes, both = [], (Codecs(server.channels, "up"), Codecs(server.channels, "down"))
        for loaded in self.data.test:
            inputs, targets = server.task.to_device(loaded, server.device)
            ends = [
                Passage(codecs, (), server.device, "the server", server.cfg.batch_size, in_evaluation=True)
                for codecs in both
            ]
            client = client_half(server.exchange, self.segment, ends[0], server.task, inputs, targets)
            try:
                other = server_half(server.exchange, server.trainable.segment, ends[1], server.task)
                outcomes.append((None, converse(client, other)))
            except NonFiniteError as error:
                raise diverged(server.progress.epoch, "the values", error) from None
        return outcomes
