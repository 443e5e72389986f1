"""What a topology is: the rounds of an epoch, and what is averaged or handed on after a step and after an epoch.

Both ends of it are methods of one object; the server and each client have one of their own. They talk to each other
with the messages Gradients and Weights (see exchange/messages.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from omegaconf import DictConfig

from splitlearn.config import clients_evaluate, path_of
from splitlearn.errors import UserError
from splitlearn.exchange.changes import Changes, changes_of
from splitlearn.exchange.messages import StepReply, Weights, WeightsReply
from splitlearn.exchange.plain import are_kept
from splitlearn.hydras import instantiate
from splitlearn.segments.trainable import nbytes_of


class Topology(ABC):
    """Base of the topologies.

    Attributes:
        averages_steps: clients step with the mean of their gradients, which what is asked of them comes with.
        keeps_own: each client goes on with weights of its own.
        hands_on: one client's weights and optimizer state are all there are.
        changes: of the clients' average, where these are what is sent; else None.
    """

    averages_steps = False
    keeps_own = False
    hands_on = False
    changes: Changes | None = None

    # The server's end

    @abstractmethod
    def num_steps(self, roster: Any, accumulate: int = 1) -> int:
        """Steps of an epoch, where a client takes this many of its batches in each."""

    @abstractmethod
    def train(self, server: Any) -> None:
        """What is left of the epoch's steps, each a `server.step(participants)`."""

    def end_step(self, server: Any, directive: str | None) -> None:
        """After the server's own step."""

    @abstractmethod
    def end_epoch(self, server: Any) -> None:
        """After the last step, before the evaluation."""

    def take_states(self, server: Any, participants: list[int]) -> None:
        """After the participants of a step have handed in their states for a checkpoint."""

    def told(self, server: Any, client: int, state: dict[str, Any]) -> dict[str, Any]:
        """A client's state, as it is told it when it joins."""
        return state

    # Either end

    def kept(self) -> dict[str, Any]:
        """What this end needs beside weights and optimizer to go on: plain values and tensors on the CPU, by name."""
        return {}

    def restore(self, kept: dict[str, Any]) -> None:
        """Goes on with what this end has `kept`; with nothing, as at first."""

    def state(self) -> dict[str, Any]:
        """What a client's state and a checkpoint have of it.

        Raises:
            UserError: it keeps what cannot be sent.
        """
        kept = self.kept()
        if not are_kept(kept):
            what = "must be a dict of plain values and of tensors on the CPU, by name"
            raise UserError(f"topology {path_of(type(self))}: kept() {what}")
        return (self.changes.state() if self.changes else {}) | ({"kept": kept} if kept else {})

    def load(self, state: dict[str, Any]) -> None:
        """The converse."""
        if self.changes:
            self.changes.left_out = state.get("left_out")
        self.restore(state.get("kept", {}))

    # A client's end

    def begin(self, client: Any, state: dict[str, Any]) -> None:
        """The client has joined, and goes on from a state, or from weights alone."""

    @abstractmethod
    def train_client(self, client: Any) -> None:
        """What is left of the epoch."""

    def end_batch(self, client: Any, share: float, reply: StepReply) -> str | None:
        """Takes up a batch's gradients, and steps if it is time; returns what the server wants next.

        Args:
            client: whose it is.
            share: the batch's, of the optimizer's step; 0 if it is left out.
            reply: the server's last to it.
        """
        if share:
            client.trainable.collect(share)
        if reply.rates is not None:
            client.trainable.step(reply.rates)
        return reply.directive


def topology_from(cfg: DictConfig) -> Topology:
    """The topology that the config group describes."""
    topology = instantiate(cfg.topology)
    topology.changes = changes_of(cfg)
    return topology


def take_weights(server: Any, client: int, holds: str | None) -> tuple[Any, Any]:
    """A client's request with its weights, and these (see Weights.check)."""
    request, message = server.roster.take(client, Weights, holds)
    server.recorder.ledger.book("weights_up", nbytes_of(message.state))
    server.stopwatch.seconds.update(message.seconds)
    server.recorder.tally.add_own(message.own or {})
    return request, message.state


def send_weights(server: Any, request: Any, state: Any, directive: str | None = None) -> None:
    server.recorder.ledger.book("weights_down", nbytes_of(state))
    request.reply(WeightsReply(state, directive, True).body())


def is_evaluated(role: Any) -> bool:
    """Whether the epoch that a server or a client is in ends with an evaluation on the clients."""
    return clients_evaluate(role.cfg, role.progress.epoch)
