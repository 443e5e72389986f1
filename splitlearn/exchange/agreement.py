"""What the ranks of a run have agreed on, as far as it can be seen in a message: tensors' names, shapes and dtypes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from splitlearn.batches import largest_batch
from splitlearn.compressors.checking import is_as_sent
from splitlearn.config import made_from
from splitlearn.console import legible
from splitlearn.errors import PeerError
from splitlearn.exchange.plain import are_kept
from splitlearn.rates import SCHEDULED
from splitlearn.segments.parts import Parts
from splitlearn.segments.trainable import trained
from splitlearn.tasks import Task
from splitlearn.tasks.origin import Origin

MAX_SUM = 1e30  # so that a run's totals stay finite


class Unfit(Exception):
    """What is wrong with a message."""


@contextmanager
def as_sent(sender: str, kind: str) -> Iterator[None]:
    """
    Args:
        sender: of what is looked at within, in words.
        kind: of message that it is.

    Raises:
        PeerError: it is not what was agreed; says what is wrong.
    """
    try:
        yield
    except Unfit as unfit:
        raise PeerError(f"{sender} sent a malformed {kind}: {legible(str(unfit))}") from None


class Agreement:
    """Checks what arrives against the run's configuration and, once they are known, the segments.

    Args:
        cfg: of the run.
        task: what is learned.
        channels: of the exchange, by name.
        phases: of the exchange.
    """

    def __init__(self, cfg: DictConfig, task: Task, channels: dict[str, Any], phases: tuple[str, ...] = ()):
        self.cfg, self.task, self.channels, self.phases = cfg, task, channels, phases
        self.max_samples = largest_batch(cfg.batch_size, cfg.last_batch)
        self.may_skip = cfg.nonfinite == "skip"
        self.about: dict[str, Any] | None = None

    @property
    def has_lengths(self) -> bool:
        """Whether lengths of samples cross beside maps."""
        return any(channel.is_ragged and channel.spec.has_lengths for channel in self.channels.values())

    @property
    def own_sums(self) -> tuple[str, ...]:
        """What a client adds up over its batches by a loss of its own."""
        return "samples", "loss", *self.task.train_metrics

    def know(self, client_segment: Parts, about: dict[str, Any]) -> None:
        """The network is built."""
        self.about = about
        self.task.know(about)
        self.segment = {name: like(tensor) for name, tensor in client_segment.state_dict().items()}
        frozen, names = client_segment.frozen_state(), client_segment.trained_names()
        self.changing = {name: shape for name, shape in self.segment.items() if name not in frozen}
        self.parameters = [name for name in self.changing if name in names]
        self.gradients = [like(parameter) for parameter in trained(client_segment)]
        self.optimizer = optimizer_state(client_segment, self.cfg)

    def changing_of(self, state: dict[str, Any]) -> dict[str, Any]:
        """What is sent of a state, or of weights alone, to who has what is frozen."""
        if "segment" in state:
            return {**state, "segment": self.changing_of(state["segment"])}
        return {name: value for name, value in state.items() if name in self.changing}

    def check_about(self, about: Any) -> None:
        try:
            self.task.check_about(about)
        except ValueError as error:
            raise Unfit(str(error)) from None

    def check_rates(self, rates: Any) -> None:
        if not isinstance(rates, dict) or not {"lr"} <= rates.keys() <= set(SCHEDULED):
            raise Unfit(f"its rates are not those of {', '.join(SCHEDULED)}")
        for name, value in rates.items():
            numbers = value if name == "betas" and isinstance(value, (list, tuple)) else [value]
            if not all(type(one) in (int, float) and 0 <= one < math.inf for one in numbers):  # which NaN is not
                raise Unfit(f"{name} is no finite number from 0")

    def check_phase(self, phase: Any) -> None:
        if phase is not None and phase not in self.phases:
            raise Unfit("its phase is none of the exchange")

    def check_origin(self, origin: Any) -> None:
        try:
            if origin is not None:
                Origin.parse(origin)
        except ValueError as error:
            raise Unfit(str(error)) from None

    def check_gradients(self, gradients: Any) -> None:
        if not isinstance(gradients, list) or len(gradients) != len(self.gradients):
            raise Unfit(f"it has no list of {len(self.gradients)} gradients")
        if not all(map(is_like, gradients, self.gradients)):
            raise Unfit("its gradients do not have the shapes and dtypes of the client segment's parameters")

    def check_segment(self, state: Any, of: dict[str, Any]) -> None:
        """`of` are the tensors that there have to be."""
        if not isinstance(state, dict) or state.keys() != of.keys():
            raise Unfit("its weights do not have the names of the client segment's")
        for name, expected in of.items():
            if not is_like(state[name], expected):
                raise Unfit(f"{name} is no {expected[1]} tensor of shape {tuple(expected[0])}")

    def check_codecs(self, states: Any) -> None:
        """What codecs know of what was sent."""
        if not isinstance(states, dict) or not states.keys() <= self.channels.keys():
            raise Unfit("what its codecs know is not of the run's channels")
        for name, state in states.items():
            channel = self.channels[name]
            if flaw := channel.codec.flaw_of(state, (1, *channel.shape)):
                raise Unfit(f"what its codec of {channel.spec.title} knows does not fit: {flaw}")

    def check_trainable(self, state: Any) -> None:
        """What a client hands in: what changes of its segment, and what it keeps to go on with (see _check_kept)."""
        both = {"segment", "optimizer"}
        if not isinstance(state, dict) or not both <= state.keys() <= {*both, "codecs", "own", "left_out", "kept"}:
            raise Unfit("it does not hold a segment and an optimizer's state")
        self.check_segment(state["segment"], self.changing)
        self._check_kept(state)

    def whole(self, state: Any, frozen: dict[str, Tensor]) -> dict[str, Any]:
        """What a client goes on from, weights alone or with what some client kept, with what is frozen and not sent."""
        weights = state.get("segment", state) if isinstance(state, dict) else None
        if not isinstance(weights, dict):
            raise Unfit("it has no weights")
        sent = {name: value for name, value in self.segment.items() if name in weights or name not in frozen}
        self.check_segment(weights, sent)
        if weights is state:
            return frozen | weights
        self._check_kept(state)
        if state.get("average") is not None:
            self.check_segment(state["average"], self.changing)
        return {**state, "segment": frozen | weights}

    def _check_kept(self, state: dict[str, Any]) -> None:
        """What optimizer and topology keep, codecs know, a loss of its own came to, and changes have left out."""
        self.check_codecs(state.get("codecs", {}))
        if "own" in state:
            require_sums("its own sums", state["own"], ("client", *self.own_sums))
        if "left_out" in state:
            num_values = sum(self.changing[name][0].numel() for name in self.parameters)
            if not is_like(state["left_out"], (torch.Size([num_values]), torch.float32)):
                raise Unfit("what its changes have left out is not of the client segment's weights")
        if not are_kept(state.get("kept", {})):
            raise Unfit("what its topology keeps is no plain values and tensors")
        kept = state.get("optimizer")
        if not isinstance(kept, dict) or not kept.keys() <= self.optimizer.keys():  # fewer: without gradients yet
            raise Unfit("its optimizer's state is not one of the client segment's parameters")
        for index, values in kept.items():
            expected = self.optimizer[index]
            if not isinstance(values, dict) or values.keys() != expected.keys():
                raise Unfit(f"its optimizer does not keep {', '.join(expected)} for parameter {index}")
            if not all(is_like(values[name], expected[name]) for name in expected):
                raise Unfit(f"what its optimizer keeps for parameter {index} has other shapes or dtypes")


def require_sums(name: str, value: Any, names: tuple[str, ...]) -> None:
    """
    Raises:
        Unfit: they are not finite numbers of these names.
    """
    if not isinstance(value, dict) or value.keys() != set(names):
        raise Unfit(f"{name} are not those of {', '.join(sorted(names))}")
    if not all(type(one) in (int, float) and abs(one) <= MAX_SUM for one in value.values()):  # which NaN is not
        raise Unfit(f"{name} are no finite numbers")


def like(value: Any) -> Any:
    """What `is_like` compares with: a tensor's shape and dtype, or another value's type."""
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)


def is_like(value: Any, expected: Any) -> bool:
    """Whether it is a plain tensor on the CPU of this shape and dtype, or a value of this type."""
    if not isinstance(value, Tensor):
        return type(value) is expected
    return is_as_sent(value) and (value.shape, value.dtype) == expected


def is_wire(value: Any) -> bool:
    """Whether it can be a payload: a plain 1-D uint8 tensor on the CPU."""
    return isinstance(value, Tensor) and is_like(value, (torch.Size([value.numel()]), torch.uint8))


def optimizer_state(segment: nn.Module, cfg: DictConfig) -> dict[int, dict[str, Any]]:
    """What the optimizer keeps of each parameter (see `like`), found by a step of its own on as many zeros."""
    parameters = [nn.Parameter(torch.zeros_like(parameter)) for parameter in segment.parameters()]
    for parameter, kept in zip(parameters, segment.parameters(), strict=True):
        if kept.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer = made_from(cfg, "optimizer", parameters)
    optimizer.step()
    state = optimizer.state_dict()["state"]
    return {index: {name: like(value) for name, value in kept.items()} for index, kept in state.items()}
