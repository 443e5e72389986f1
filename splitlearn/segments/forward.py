"""The forward of a part of a model that is cut by running it (see running.py): what is computed, and what is not."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from splitlearn.seeds import one_at_a_time
from splitlearn.segments.recording import Blank, only_tensor
from splitlearn.segments.tracing import Refusal

ENDED = -1  # in inputs of tokens, (B, T), at positions that a sample has not got
LONGEST = (1 << 16) - 1  # positions that a sample may have: lengths cross in 16 bits


def lengths_of(inputs: Tensor) -> Tensor:
    """(B,) int64: how many positions each sample of (B, T) tokens has."""
    return (inputs != ENDED).sum(1)


def valid(lengths: Tensor, longest: int) -> Tensor:
    """(B, longest) bool: which positions samples of these lengths, (B,), have."""
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)


def call(part: nn.Module, x: Tensor, lengths: Tensor | None, weights: dict[str, Tensor] | None = None) -> Any:
    """What a part gives for `x`, with other weights where some are given.

    One that was cut by running it, or says that it takes them, is told the lengths of the samples.
    """
    is_told = run_of(part) is not None or getattr(part, "takes_lengths", False)
    given = (x, lengths) if lengths is not None and is_told else (x,)
    return part(*given) if weights is None else functional_call(part, weights, given)


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

    def __call__(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        inputs, placeholder = tuple(x.shape), x
        if self.start is not None:
            inputs = self.inputs_of(tuple(x.shape))
            placeholder = torch.zeros(inputs, dtype=self.dtype, device=x.device)
            if lengths is not None:
                placeholder[~valid(lengths, inputs[1])] = ENDED
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

    @property
    def is_ragged(self) -> bool:
        """Whether the smashed data have a row for each position of the model's input, (B, T).

        Raises:
            Refusal: they have something else for each.
        """
        sizes = only_tensor(self.blanks[self.start], Blank).sizes
        of_positions = {i: size for i, size in enumerate(sizes) if 1 in size[1]}
        if of_positions and of_positions != {1: (1, (1,))}:
            raise Refusal("the module's output has more than a row for each position of the input")
        return bool(of_positions)

    def inputs_of(self, given: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the model's input by that of the smashed data.

        Where these do not say how long it was, as after a mean over positions, any length will do: `split` tries it.
        """
        sizes = only_tensor(self.blanks[self.start], Blank).sizes
        found = list(self.sizes[0])
        for i, pair in enumerate(zip(*self.sizes, strict=True)):
            if pair[0] != pair[1] and (1, (i,)) in sizes:
                found[i] = given[sizes.index((1, (i,)))]
        return tuple(found)


def run_of(model: nn.Module) -> Run | None:
    """What a part that was cut by running has as its forward; None of other modules."""
    forward = vars(model).get("forward")
    return forward if isinstance(forward, Run) else None


def set_absent(module: nn.Module, name: str, like: Tensor, device: torch.device) -> None:
    vars(module)[name] = torch.zeros((), dtype=like.dtype, device=device).expand(like.shape)


def _draws(device: torch.device) -> Tensor:
    with one_at_a_time:
        return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_draws(device: torch.device, state: Tensor) -> None:
    with one_at_a_time:
        torch.cuda.set_rng_state(state, device) if device.type == "cuda" else torch.set_rng_state(state)
