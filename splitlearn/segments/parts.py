"""The parts of a network that one end of the cut holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from splitlearn.segments.forward import call
from splitlearn.segments.recording import parameters_of
from splitlearn.segments.scaling import Scale

MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}  # what automatic mixed precision computes in


class Parts(nn.Module):
    """Parts of one network, in the order of computation: `parts[0](x)`; where there is one, `parts(x)` too.

    Parameters and buffers have the names that they have in the uncut network. One that is tied, and so has several,
    is in a state once, by the first.

    Args:
        parts: of the network.
        precision: "fp32", or "bf16" or "fp16" for automatic mixed precision (for fp16 see scaling.py).
        cut_precision: "fp32" gives each part's output in 32 bits, as fp16 always does; None as `precision` says.
        num_crossing: how many of them, the first ones, have an output that crosses a cut.
    """

    def __init__(
        self,
        parts: list[nn.Module],
        precision: str = "fp32",
        cut_precision: str | None = None,
        num_crossing: int = 0,
    ):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.precision, self.cut_precision = precision, "fp32" if precision == "fp16" else cut_precision
        self.crossing = parts[:num_crossing]
        self.frozen: tuple[str, ...] = ()

    def freeze(self, paths: Iterable[str]) -> None:
        """Modules at these paths ("" is all) stay as in evaluation; their parameters, and those named, do not train."""
        self.frozen = tuple(paths)
        for name, parameter in self._named_parameters():
            if self.is_frozen(name):
                parameter.requires_grad_(False)
        self.train(self.training)

    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [pair for part in self.parts for pair in part.named_parameters()]

    def is_frozen(self, name: str) -> bool:
        return any(path in ("", name) or name.startswith(f"{path}.") for path in self.frozen)

    def frozen_state(self) -> dict[str, Tensor]:
        """Parameters and buffers that do not change, be it that the network itself says so."""
        fixed = {name for name, parameter in self._named_parameters() if not parameter.requires_grad}
        return {name: value for name, value in self.state_dict().items() if name in fixed or self.is_frozen(name)}

    def trained_names(self) -> set[str]:
        """Of the parameters that train; buffers change too, and are none."""
        return {name for name, parameter in self._named_parameters() if parameter.requires_grad}

    def train(self, mode: bool = True) -> Parts:
        super().train(mode)
        for part in self.parts:
            for name, module in part.named_modules():
                if self.is_frozen(name):
                    module.eval()
        return self

    def __getitem__(self, index: int) -> Callable[..., Tensor]:
        return partial(self.run, self.parts[index])

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        (part,) = self.parts
        return self.run(part, x, lengths)

    def run(
        self,
        part: nn.Module,
        x: Tensor,
        lengths: Tensor | None = None,
        weights: dict[str, Tensor] | None = None,
        twice: bool = False,
    ) -> Tensor:
        """A part's output, in the precision that is to cross the cut.

        Args:
            part: one of these.
            x: (B, …), its input.
            lengths: (B,) of samples that differ in length; None: all are of one shape.
            weights: to compute it with instead of its own, by name.
            twice: its gradient is to be differentiated again, which is in fp32 instead of fp16: a scale is for once.
        """
        precision = "fp32" if twice and self.precision == "fp16" else self.precision
        scale = Scale() if precision == "fp16" and torch.is_grad_enabled() else None
        if scale:
            weights = dict(part.named_parameters()) | (weights or {})
            weights = {name: scale.begin(weight) for name, weight in weights.items()}
            x = scale.begin(x)
        with torch.autocast(x.device.type, MIXED.get(precision), enabled=precision in MIXED):
            output = call(part, x, lengths, weights)
        if scale:
            output = scale.end(output)
        if self.cut_precision == "fp32":
            return output.float()
        # Autocast leaves some in 32 bits, such as the sum of a transformer's blocks.
        is_narrow = self.precision == "bf16" and part in self.crossing and output.is_floating_point()
        return output.to(MIXED["bf16"]) if is_narrow else output

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        tied = self._tied()
        states = {name: value for part in self.parts for name, value in part.state_dict().items()}
        return {name: value for name, value in states.items() if name not in tied}

    def _tied(self) -> dict[str, str]:
        """Names of parameters that have been named before, with their first ones."""
        first: dict[int, str] = {}
        named = [pair for part in self.parts for pair in parameters_of(part).items()]
        return {name: known for name, one in named if (known := first.setdefault(id(one), name)) != name}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """
        Raises:
            RuntimeError: names or shapes differ.
        """
        tied = {name: state[first] for name, first in self._tied().items() if first in state}
        known = [part.state_dict().keys() for part in self.parts]
        for part, names in zip(self.parts, known, strict=True):
            part.load_state_dict({name: value for name, value in (state | tied).items() if name in names})
        if unknown := state.keys() - set().union(*known):
            raise RuntimeError(f"unexpected keys: {', '.join(sorted(unknown))}")


class Older:
    """Parts with copies of the weights that they have now, whose gradients are their own; used as Parts are.

    Attributes:
        weights: the copies, in the order of the parts' parameters.
    """

    def __init__(self, parts: Parts):
        self.parts = parts
        self.weights = [weight.detach().clone().requires_grad_(weight.requires_grad) for weight in parts.parameters()]

    def __getitem__(self, index: int) -> Callable[..., Tensor]:
        older = {id(now): before for now, before in zip(self.parts.parameters(), self.weights, strict=True)}
        part = self.parts.parts[index]
        weights = {name: older[id(parameter)] for name, parameter in part.named_parameters()}
        return partial(self.parts.run, part, weights=weights)

    def __call__(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self[0](x, lengths)

    def hand_gradients_on(self) -> None:
        """To the parts' parameters."""
        for weight, older in zip(self.parts.parameters(), self.weights, strict=True):
            weight.grad = older.grad


def untie(model: nn.Module, client: Parts, server: Parts) -> list[tuple[str, str, int]]:
    """Gives the server a copy of its own of each parameter that the client has too, in the uncut network as well.

    Returns the server's name of each, the client's, and its bytes.
    """
    of_client = {id(one): name for part in client.parts for name, one in parameters_of(part).items()}
    copies: dict[int, nn.Parameter] = {}
    found = []
    for part in server.parts:
        for name, one in parameters_of(part).items():
            if id(one) not in of_client:
                continue
            if id(one) not in copies:
                copies[id(one)] = nn.Parameter(one.detach().clone(), requires_grad=one.requires_grad)
                found.append((name, of_client[id(one)], one.nbytes))
            path, _, leaf = name.rpartition(".")
            for module in (model, part):
                module.get_submodule(path)._parameters[leaf] = copies[id(one)]
    return found
