"""The forward of a part of a model that is cut by running it (see running.py): what is computed, and what is not."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from splitlearn.segments.recording import Blank, only_tensor
from splitlearn.segments.tracing import Refusal


class _Reached(BaseException):
    """The module at a part's end has returned; no `except Exception` of a model's is to catch it."""


@dataclass
class _Call:
    """One forward pass of a part: what it was given, and the shape of the model's input."""

    given: Tensor
    inputs: tuple[int, ...]
    draws: Tensor | None = None  # the generator's state before


_CALL: ContextVar[_Call] = ContextVar("call")


@dataclass
class Emptied:
    """The forward of a module before a part's start: it gives zeros, and the module at the start the smashed data."""

    blanks: Any
    is_start: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = _CALL.get()

        def filled(blank: Blank) -> Tensor:
            return call.given if self.is_start else blank.zeros(call.inputs, call.given.device)

        if self.is_start and call.draws is not None:
            _set_draws(call.given.device, call.draws)  # what was drawn for placeholders
        return pytree.tree_map_only(Blank, filled, self.blanks)


class Stop:
    """A hook of the module at a part's end."""

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        raise _Reached(only_tensor(output))


class Run:
    """The forward of a part: runs the model's own, from `start` (None: its input) to `end` (None: its output).

    Attributes:
        sizes: shapes of two inputs of the uncut model that it was recorded with.
        dtype: of the input.
        blanks: what each module gives, by its path.
        writes: whether the part changes what it is given.
        absent: modules and names of parameters that the part has not got; zeros without memory stand for them.
    """

    def __init__(self, part: nn.Module, blanks: dict[str, Any], sizes: tuple[tuple[int, ...], ...], dtype: torch.dtype):
        self.part, self.blanks, self.sizes, self.dtype = part, blanks, sizes, dtype
        self.model_forward = vars(part).pop("forward", None)  # an instance's own comes before its class's
        self.start: str | None = None
        self.end: str | None = None
        self.writes = False
        self.absent: list[tuple[nn.Module, str]] = []
        part.forward = self

    def __call__(self, x: Tensor) -> Tensor:
        inputs, placeholder = tuple(x.shape), x
        if self.start is not None:
            inputs = self.inputs_of(tuple(x.shape))
            placeholder = torch.zeros(inputs, dtype=self.dtype, device=x.device)
        for module, name in self.absent:
            if vars(module)[name].device != x.device:
                set_absent(module, name, vars(module)[name], x.device)
        draws = _draws(x.device) if self.start is not None and self.part.training else None
        token = _CALL.set(_Call(x.clone() if self.writes else x, inputs, draws))
        try:
            if self.model_forward is not None:
                output = self.model_forward(placeholder)
            else:
                output = type(self.part).forward(self.part, placeholder)
        except _Reached as reached:
            return reached.args[0]
        finally:
            _CALL.reset(token)
        if self.end is not None:
            raise RuntimeError(f"the model's forward ended before {self.end}")
        return output

    def map_shape(self, inputs: tuple[int, ...]) -> tuple[int, ...]:
        """Of the smashed data that the part begins with."""
        return only_tensor(self.blanks[self.start], Blank).shape(inputs)

    def inputs_of(self, given: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the model's input by that of the smashed data.

        Raises:
            Refusal: the map does not say how long the input was.
        """
        sizes = only_tensor(self.blanks[self.start], Blank).sizes
        found = list(self.sizes[0])
        for i, pair in enumerate(zip(*self.sizes, strict=True)):
            if pair[0] != pair[1]:
                if (1, (i,)) not in sizes:
                    raise Refusal("its map does not say how long the model's input was")
                found[i] = given[sizes.index((1, (i,)))]
        return tuple(found)


def run_of(model: nn.Module) -> Run | None:
    """What a part that was cut by running has as its forward; None of other modules."""
    forward = vars(model).get("forward")
    return forward if isinstance(forward, Run) else None


def set_absent(module: nn.Module, name: str, like: Tensor, device: torch.device) -> None:
    vars(module)[name] = torch.zeros((), dtype=like.dtype, device=device).expand(like.shape)


def _draws(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_draws(device: torch.device, state: Tensor) -> None:
    torch.cuda.set_rng_state(state, device) if device.type == "cuda" else torch.set_rng_state(state)
