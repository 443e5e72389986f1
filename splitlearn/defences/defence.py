"""What a defence is.

    x ─► protect ─► … ─► codec ─► payload         of one channel, in training
    penalty(inputs, x) is added to the client's loss, if the tensor is the client's and is trained

Several act one after the other, as the configuration names them. They act on training batches alone: an evaluation asks
how good the network is. Each draws from a stream of its own, so that a run with none, or one that goes on, is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor


class Defence:
    """
    Attributes:
        channel: the name of the channel that it acts on.
    """

    channel: str = "smashed"

    def protect(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What is encoded instead of `x`, (B, …) with a sample in each row; differentiable."""
        return x

    def penalty(self, inputs: Tensor, x: Tensor) -> Tensor | None:
        """0-d, to be added to the loss of who sends `x`; None for none."""
        return None

    def claims(self, num_epochs: int) -> dict[str, float]:
        """What it proves of each sample's tensors of so many epochs, by name; nothing for most."""
        return {}

    def check(self, cfg: DictConfig) -> None:
        """Raises ValueError, with what is wrong, where it does not go with a run."""

    def check_segment(self, modules: Any) -> None:
        """Raises ValueError where it does not go with a client segment of these named modules."""
