"""What both ends have in common: the optimizer and its steps, state in and out, and a batch on trial."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from splitlearn.config import made_from, options_of
from splitlearn.errors import NonFiniteError, UserError


class Trainable:
    """A segment with its optimizer, as the config says, the same on either side.

    Attributes:
        share: how many steps' samples, by parts of one, the gradients that wait for `step` are of.
    """

    def __init__(self, segment: nn.Module, cfg: DictConfig):
        self.segment, self.clip_norm = segment, cfg.get("clip_norm")
        self.optimizer = made_from(cfg, "optimizer", segment.parameters())
        self.share = 0.0
        self._collected: list[Tensor | None] = []

    def collect(self, share: float) -> None:
        """Takes up the gradients of a batch, which has this share of the samples of a step; more batches may come."""
        parameters = list(self.segment.parameters())
        times(parameters, share)
        add(self._collected, parameters)
        self._collected = [parameter.grad for parameter in parameters]
        self.share += share

    def step(self, rates: dict[str, Any]) -> None:
        """A step with the mean of the gradients, and with these rates; none where every batch was left out."""
        if not self.share:
            return
        parameters = list(self.segment.parameters())
        for parameter, gradient in zip(parameters, self._collected, strict=False):  # a server's are where they belong
            parameter.grad = gradient
        for parameter in parameters if self.share != 1 else ():
            if parameter.grad is not None:
                parameter.grad.div_(self.share)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        for group in self.optimizer.param_groups:
            group.update(rates)
        self.optimizer.step()
        self.share, self._collected = 0.0, []

    def state(self) -> dict[str, Any]:
        """Weights and what the optimizer keeps for each parameter, to go on with elsewhere."""
        return {"segment": state_of(self.segment), "optimizer": copied(self.optimizer.state_dict()["state"])}

    def load(self, state: dict[str, Any]) -> None:
        """Takes over another client's state; the learning rate stays. Weights alone, as first given, are fine too."""
        self.segment.load_state_dict(state.get("segment", state))
        if "segment" in state:
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})


def try_out(cfg: DictConfig) -> None:
    """Steps the config's optimizer on parameters of its own, as in training.

    Raises:
        UserError: it does not work like this.
    """
    trainable = Trainable(nn.LayerNorm(2), cfg)  # which draws nothing at random
    try:
        trainable.segment(torch.eye(2)).sum().backward()
        trainable.collect(1.0)
        trainable.step({})
    except Exception as error:  # whatever those of others raise
        why = str(error).split("\n")[0]
        raise UserError(f"{options_of(cfg, 'optimizer')} does not work in {cfg.optimizer._target_}: {why}") from None


def state_of(segment: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, copied to the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in segment.state_dict().items()}


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

    def keep(self, share: float = 1.0) -> None:
        """
        Args:
            share: what the batch's gradients are multiplied by (see Trainable.share).

        Raises:
            NonFiniteError: a gradient is not finite, or a buffer is not any more.
        """
        if not are_finite(parameter.grad for parameter in self.parameters):
            raise NonFiniteError("NaN or Inf in a weight's gradient")
        if not are_finite(self.segment.buffers()) and are_finite(self.buffers):
            raise NonFiniteError("NaN or Inf in a buffer")
        times(self.parameters, share)
        add(self.gradients, self.parameters)


def times(parameters: list[nn.Parameter], factor: float) -> None:
    """Multiplies gradients."""
    for parameter in parameters if factor != 1 else ():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)


def add(gradients: list[Tensor | None], parameters: list[nn.Parameter]) -> None:
    """Adds gradients from before, if there are any, to the parameters', as backward does."""
    for before, parameter in zip(gradients, parameters, strict=bool(gradients)):
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
