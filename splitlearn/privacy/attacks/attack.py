"""What an attack is, what it is given, and what it finds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from splitlearn import saved
from splitlearn.config import compressor_from
from splitlearn.defences.draws import Draws
from splitlearn.errors import UserError
from splitlearn.exchange import ragged
from splitlearn.exchange.channels import channels_of
from splitlearn.exchange.exchange import exchange_from
from splitlearn.exchange.network import Network
from splitlearn.privacy.observing import known_segment, observed
from splitlearn.segments.parts import Parts
from splitlearn.tasks import Task, task_from


@dataclass
class Scene:
    """One epoch of a run, as its server has it.

    Attributes:
        cfg: of the run.
        task: of the run.
        network: its network, with the client segments' weights as the server knew them at the start of the epoch.
        epoch: which.
        seen: the batches that were kept of it, see observing.observed; their `inputs` are for the figures alone.
        auxiliary: batches of inputs and targets of the same kind, which no client trained on: the run's test data.
        knows_weights: the server knew the weights; else they are those of the end of the run, and only the sizes count.
    """

    cfg: DictConfig
    task: Task
    network: Network
    epoch: int
    seen: list[dict[str, Any]]
    auxiliary: list[tuple[Tensor, Tensor]]
    knows_weights: bool

    @classmethod
    def load(cls, folder: Path, epoch: int | None = None) -> Scene:
        """The last epoch that something is kept of, or another.

        Raises:
            UserError: nothing is kept of it, or there is no run.
        """
        run = saved.load(folder)
        found = observed(folder)
        epochs = sorted({one["epoch"] for one in found})
        if not epochs or epoch not in (None, *epochs):
            raise UserError(
                f"{folder} has nothing of what its server saw"
                + (f" in epoch {epoch}: there is {', '.join(map(str, epochs))}" if epochs else "")
                + " (observe.batches=20 keeps it)" * (not epochs)
            )
        epoch = epochs[-1] if epoch is None else epoch
        task, network = task_from(run.cfg), run.network()
        task.know(run.about)
        weights = known_segment(folder, epoch)
        if weights is not None:
            network.client.load_state_dict(weights)
        own = saved.test_data(task, run.cfg, run.about)
        batches = [task.to_device(batch, torch.device("cpu")) for data in own for batch in data.test]
        seen = [one for one in found if one["epoch"] == epoch]
        return cls(run.cfg, task, network, epoch, seen, batches, weights is not None)

    def require_weights(self, otherwise: str) -> None:
        """
        Raises:
            UserError: no weights are kept that all clients had at once; attack.weights=`otherwise` does without.
        """
        if not self.knows_weights:
            raise UserError(
                f"no weights are kept that all clients of this run had at once: use attack.weights={otherwise}"
            )

    def inputs(self) -> list[Tensor]:
        """Of the batches that were kept.

        Raises:
            UserError: they were not kept, or are neither images nor texts.
        """
        if not all("inputs" in one for one in self.seen):
            raise UserError("the inputs of what the server saw are not kept: run with observe.inputs=true")
        inputs = [one["inputs"] for one in self.seen]
        if inputs[0].is_floating_point() and inputs[0].dim() != 4:
            shape = "×".join(map(str, inputs[0].shape[1:]))
            raise UserError(f"this attack reads images or texts from what crossed, and inputs of {shape} are neither")
        return inputs

    def channel(self, *names: str) -> tuple[str, list[Tensor]]:
        """What crossed on the first of these channels that any batch has, float32 whatever precision it crossed in.

        It is of the batches of `crossed`.

        Raises:
            UserError: none has.
        """
        for name in names:
            if found := self.crossed(name):
                return name, [one["channels"][name].float() for one in found]
        exchange = exchange_from(self.cfg)
        has_none = not {*names} & {channel.name for channel in exchange.channels}
        why = "sends none" if has_none else f"sent none with the batches that are kept of epoch {self.epoch}"
        raise UserError(f"nothing crossed as {' or '.join(names)}: exchange={exchange.name} {why}")

    def crossed(self, name: str) -> list[dict[str, Any]]:
        """The batches of `seen` of which something crossed on a channel: of some exchanges, not of all."""
        return [one for one in self.seen if name in one["channels"]]

    @torch.no_grad()
    def smashed(self, inputs: list[Tensor], segment: Parts | None = None) -> list[Tensor]:
        """What the server would decode of inputs, through the client segment that it knows, or another, in training.

        Of texts that differ in length it is the rows of each batch (see ragged.py). The clients' defences act on it,
        with draws of the attacker's.
        """
        segment, codec = segment or self.network.client, compressor_from(self.cfg, "compressor")
        defences = channels_of(self.cfg, exchange_from(self.cfg))["smashed"].defences
        segment.train()
        found = []
        for place, x in enumerate(inputs):
            smashed, lengths = segment[0](x), self.task.lengths(x) if self.network.cuts[0].is_ragged else None
            for name, defence in defences.items():
                draws = Draws(str(torch.initial_seed()).encode(), smashed, name, place)
                smashed = ragged.protected(smashed, lengths, defence, draws)
            if lengths is not None:
                smashed = ragged.rows_of(smashed, lengths)
            found.append(codec.decode(codec.encode(smashed), smashed.device).float())
        return found


@dataclass
class Found:
    """
    Attributes:
        figures: what the attack came to, by name.
        guess: the same of a guess that sees nothing.
        pairs: (N, 3, H, W) originals and reconstructions, from 0 to 1, for people to look at.
        num_batches: that it looked at; None: all that are kept.
    """

    figures: dict[str, float]
    guess: dict[str, float]
    pairs: tuple[Tensor, Tensor] | None = field(default=None)
    num_batches: int | None = None


class Attack(ABC):
    """Base of the attacks. Its options are those of its __init__."""

    @staticmethod
    def check_weights(weights: str, choices: tuple[str, ...]) -> None:
        """Raises UserError where attack.weights is none of the choices."""
        if weights not in choices:
            raise UserError(f"attack.weights={weights} is unknown: choose one of {', '.join(choices)}")

    @abstractmethod
    def run(self, scene: Scene, seed: int) -> Found:
        """
        Args:
            scene: what the server has.
            seed: of all that the attack draws.

        Raises:
            UserError: it needs what the run does not have.
        """


def computing(precision: str) -> torch.autocast:
    """The context in which an attack's own networks compute: in bfloat16, where the run does."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def applied(model: nn.Module, x: Tensor, precision: str = "fp32") -> Tensor:
    """A model's outputs for (N, …) inputs, float32."""
    model.eval()
    with computing(precision):
        return torch.cat([model(part) for part in x.split(256)]).float()
