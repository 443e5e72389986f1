"""What both ends have in common: optimizer and schedule, state in and out, and a batch on trial."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from splitlearn.errors import NonFiniteError


class Trainable:
    """A segment with its optimizer and learning-rate schedule, both as the config says, the same on either side."""

    def __init__(self, segment: nn.Module, cfg: DictConfig):
        self.segment = segment
        self.optimizer = instantiate(cfg.optimizer, segment.parameters(), _convert_="all")
        self.schedule = instantiate(cfg.schedule, self.optimizer, _convert_="all")

    @property
    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def state(self) -> dict[str, Any]:
        """Weights and what the optimizer keeps for each parameter, to go on with elsewhere."""
        return {"segment": state_of(self.segment), "optimizer": copied(self.optimizer.state_dict()["state"])}

    def load(self, state: dict[str, Any]) -> None:
        """Takes over another client's state; the learning rate stays. Weights alone, as first given, are fine too."""
        if "segment" not in state:
            return load_state(self.segment, state)
        load_state(self.segment, state["segment"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})

    def skip_epochs(self, number: int) -> None:
        """Brings the learning rate to where it is after `number` epochs."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimizer took no step
            for _ in range(number):
                self.schedule.step()


def state_of(segment: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, copied to the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in segment.state_dict().items()}


def load_state(segment: nn.Module, state: dict[str, Tensor]) -> None:
    segment.load_state_dict(state)


def buffers_of(segment: nn.Module) -> list[Tensor]:
    """Copies of the buffers, such as batch norm's statistics, which a forward pass changes."""
    return [buffer.clone() for buffer in segment.buffers()]


def load_buffers(segment: nn.Module, values: list[Tensor]) -> None:
    for buffer, value in zip(segment.buffers(), values, strict=True):
        buffer.copy_(value)


class Trial:
    """A segment's gradients and buffers before a batch that may turn out not to be finite, to undo it or to keep it.

    The batch's own gradients are apart from those of the batches before until `keep` adds them, as backward would.
    """

    def __init__(self, segment: nn.Module):
        self.segment, self.parameters = segment, list(segment.parameters())
        self.buffers, self.gradients = buffers_of(segment), [parameter.grad for parameter in self.parameters]
        segment.zero_grad()

    def undo(self) -> None:
        load_buffers(self.segment, self.buffers)
        for parameter, before in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = before

    def keep(self) -> None:
        """
        Raises:
            NonFiniteError: a gradient is not finite, or a buffer is not any more.
        """
        if not are_finite(parameter.grad for parameter in self.parameters):
            raise NonFiniteError("NaN or Inf in a weight's gradient")
        if not are_finite(self.segment.buffers()) and are_finite(self.buffers):
            raise NonFiniteError("NaN or Inf in a buffer")
        for parameter, before in zip(self.parameters, self.gradients, strict=True):
            if before is not None:
                parameter.grad = before if parameter.grad is None else before.add_(parameter.grad)


def are_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether there is no NaN or Inf in any tensor; None and integers are fine."""
    floats = [tensor for tensor in tensors if tensor is not None and tensor.is_floating_point() and tensor.numel()]
    return bool(nn.utils.get_total_norm(floats, math.inf).isfinite())


def trained(segment: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [parameter for parameter in segment.parameters() if parameter.requires_grad]


def gradients_of(segment: nn.Module) -> list[Tensor]:
    """The gradient of each parameter that is not frozen, on the CPU; zeros where it has none."""
    return [
        (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).detach().cpu()
        for parameter in trained(segment)
    ]


def copied(tree: Any) -> Any:
    """A nested structure with copies of its tensors on the CPU."""
    return torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().cpu().clone(), tree)


def nbytes_of(tree: Any) -> int:
    """Bytes of all tensors in a nested structure."""
    return sum(leaf.nbytes for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor))
