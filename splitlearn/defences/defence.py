"""What a defence is.

    x ─► protect ─► … ─► codec ─► payload         of one channel, in training
    penalty(inputs, x) is added to the client's loss, if the tensor is the client's and is trained

Several act one after the other, as the configuration names them. They act on training batches alone: an evaluation asks
how good the network is. What each draws is its own, so that a run with none, or one that goes on, is the same; over
several machines the other end cannot guess it (see draws.py).
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from splitlearn.defences.draws import Draws


class Defence:
    """
    Attributes:
        channel: the name of the channel that it acts on.
        key: of its options in the configuration.
    """

    channel: str = "smashed"
    key: str = "defence"

    def protect(self, x: Tensor, draws: Draws) -> Tensor:
        """What is encoded instead of `x`, (B, …) with a sample in each row; differentiable."""
        return x

    def protect_ragged(self, x: Tensor, is_there: Tensor, draws: Draws) -> Tensor:
        """The same where samples differ in length: rows of (B, T, …) that are not there, (B, T) bool, are zeros.

        They do not cross, whatever becomes of them here.
        """
        return self.protect(x, draws)

    def penalty(self, inputs: Tensor, x: Tensor) -> Tensor | None:
        """0-d, to be added to the loss of who sends `x`; None for none."""
        return None

    def claims(self, num_epochs: int, most: int = 1) -> dict[str, float]:
        """What it proves of each sample's tensors, by name; nothing for most.

        A sample crosses in all of so many epochs at most as many times, and in each of them at most `most` times.
        """
        return {}

    def check(self, cfg: DictConfig) -> None:
        """Raises ValueError, with what is wrong, where it does not go with a run."""

    def check_segment(self, modules: Any, shape: tuple[int, ...], is_ragged: bool) -> None:
        """Raises ValueError where it does not go with a client segment of these named modules.

        Args:
            modules: pairs of path and module.
            shape: of a sample's map.
            is_ragged: samples differ in how many positions of the map they have, and the server is told how many.
        """
