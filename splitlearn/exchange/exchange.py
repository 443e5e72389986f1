"""What an exchange is: both halves of a step, as generators that do no I/O.

A half yields what it sends and is given what comes back; the client's begins, the server's is begun with `yield`:

    client:   message ──yield──►  ... answer = yield message ...          return
    server:   step = yield        ... yield answer                        return Outcome

Who drives them is not their business: over RPC one does on each side (roles/), in one process `converse` does both, and
a client that computes ahead starts one half before it has finished the one before. A half draws its random numbers,
codes its tensors and books its bytes through the `Passage` that it is given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from splitlearn.config import made_from
from splitlearn.errors import UserError
from splitlearn.exchange.channel import ChannelSpec
from splitlearn.exchange.parts import Part
from splitlearn.exchange.passage import Passage
from splitlearn.exchange.plan import Plan
from splitlearn.segments.parts import Parts
from splitlearn.tasks import Task

EVERY_BATCH = Plan()


@dataclass
class Outcome:
    """What one batch came to.

    Attributes:
        num_samples: in it.
        sums: over its samples: {"loss": …, and metrics by name}.
        loss: the mean, as it was computed; None in evaluation.
        told_apart: of test samples, see Task.told_apart; None where the server has not got the labels.
    """

    num_samples: int
    sums: dict[str, float] = field(default_factory=dict)
    loss: float | None = None
    told_apart: Tensor | None = None


ClientHalf = Generator[Part, Part, "Tensor | Outcome | None"]
ServerHalf = Generator[Part | None, Part, Outcome]


class Exchange(ABC):
    """Base of the exchanges.

    Attributes:
        name: for people.
        channels: what crosses.
        rounds: of a training step: what the client sends, and what it is answered, one pair a round trip.
        evaluation_rounds: the same of a batch of test samples.
        answers_early: the server's half answers its last message before it computes, so that the client goes on.
        phases: of a run whose epochs the server plans as it goes, the first one first (see next_phase).
        alone_in_epochs: the ends that train without the other in some epochs, "client" or "server".
        auxiliary: channels of the auxiliary network that the client has as its last part (see segments/auxiliary.py);
            None for none.
        warning: of an exchange that attacks the clients: what it does. It is told, and is for one machine.
    """

    name: ClassVar[str]
    channels: ClassVar[tuple[ChannelSpec, ...]]
    rounds: ClassVar[tuple[tuple[type[Part], type[Part]], ...]]
    evaluation_rounds: ClassVar[tuple[tuple[type[Part], type[Part]], ...]]
    answers_early: ClassVar[bool] = False
    phases: ClassVar[tuple[str, ...]] = ()
    alone_in_epochs: ClassVar[tuple[str, ...]] = ()
    auxiliary: int | None = None
    warning: ClassVar[str | None] = None

    @property
    def sends_targets(self) -> bool:
        """Whether a step has the targets in it."""
        return any(asked.has_targets() for asked, _ in self.rounds)

    def cuts(self, cfg: DictConfig) -> list[str]:
        """Where the network is cut, as `cut` names it; the client holds the first part, the server the next."""
        if not is_one(cfg.cut):
            raise UserError(
                f"cut={cfg.cut}: exchange={self.name} cuts the network once; give one path, such as cut=medium"
            )
        return [str(cfg.cut)]

    def check(self, cfg: DictConfig) -> None:
        """Raises UserError, naming the key, for what does not go with this exchange."""

    def plan(self, epoch: int, phase: str | None = None) -> Plan:
        """What an epoch does, from 1, in a phase of the run that `next_phase` has chosen."""
        return EVERY_BATCH

    def next_phase(self, phase: str | None, reference: float | None, loss: float) -> tuple[str | None, float | None]:
        """The phase of the next epoch and a reference, from those of this one and its mean loss."""
        return None, None

    def beside_server(
        self, part: nn.Module, sample: tuple[int, ...], shape: tuple[int, ...], seed: int
    ) -> nn.Module | None:
        """What the server has as its last part, beside those of the network.

        Args:
            part: the client's first.
            sample: shape of one, its input.
            shape: of one sample's map, its output.
            seed: of first weights.
        """
        return None

    def know_test(self, batches: Iterable[Tensor]) -> None:
        """What the server has of inputs of its own, with evaluate.on=server."""

    @abstractmethod
    def client(self, parts: Parts, channels: Passage, task: Task, inputs: Tensor, targets: Tensor) -> ClientHalf:
        """The client's half of a training step: leaves gradients in its parts' parameters.

        May return the Outcome of a loss of the client's own.
        """

    def alone(self, parts: Parts, channels: Passage, task: Task, inputs: Tensor, targets: Tensor) -> Outcome:
        """A batch of the client that is not sent: leaves gradients in its parts' parameters."""
        raise NotImplementedError

    @abstractmethod
    def server(self, parts: Parts, channels: Passage, task: Task) -> ServerHalf:
        """The server's half of a training step: adds to the gradients of its parts' parameters."""

    @abstractmethod
    def client_evaluation(
        self, parts: Parts, channels: Passage, task: Task, inputs: Tensor, targets: Tensor
    ) -> ClientHalf:
        """The client's half of a batch of test samples; may return Task.told_apart, for who has both halves."""

    @abstractmethod
    def server_evaluation(self, parts: Parts, channels: Passage, task: Task) -> ServerHalf:
        """The server's half of a batch of test samples."""


def is_one(cut: Any) -> bool:
    """Whether it names a single cut: a word, or the number of a block."""
    return isinstance(cut, str) or type(cut) is int


def exchange_from(cfg: DictConfig) -> Exchange:
    """The exchange that the config group `exchange` describes; labels_up in configurations that are older than it."""
    older = {"exchange": {"_target_": "splitlearn.exchange.labels_up.LabelsUp"}}
    return made_from(cfg if "exchange" in cfg else OmegaConf.create(older), "exchange")


def converse(client: ClientHalf, server: ServerHalf) -> Outcome:
    """Drives both halves of a batch in one process."""
    next(server)
    message = next(client)
    while True:
        answer = server.send(message)
        try:
            message = client.send(answer)
        except StopIteration as end:
            outcome = conclude(server)
            if isinstance(end.value, Tensor):
                outcome.told_apart = end.value
            return outcome


def conclude(half: ServerHalf) -> Outcome:
    """What a server's half returns, once its last answer was sent."""
    try:
        next(half)
    except StopIteration as end:
        return end.value
    raise RuntimeError("the server's half of the exchange waits for a message that the client's does not send")
