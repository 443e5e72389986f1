"""What the messages of an exchange are made of: a Part is a dataclass whose fields say what they hold.

A new exchange declares one class for each message of its conversation. The annotation of a field is its check.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, NewType, get_type_hints

import torch
from torch import Tensor

from splitlearn.exchange import ragged
from splitlearn.exchange.agreement import Agreement, Unfit, is_wire, require_sums

MAX_LOSS = torch.finfo(torch.float32).max  # means and sums of which are finite as Python's floats

Wire = NewType("Wire", Tensor)  # a payload: 1-D uint8, on the CPU
MaybeWire = NewType("MaybeWire", Tensor)  # the same; or None, where nothing was asked for
Flag = NewType("Flag", bool)
Targets = NewType("Targets", Tensor)  # as Task.pack gives them
Lengths = NewType("Lengths", Tensor)  # of samples that differ in it, as ragged.pack gives them; else None
Loss = NewType("Loss", float)  # finite
Sums = NewType("Sums", dict)  # over a batch's samples, of Task.train_metrics
TestSums = NewType("TestSums", dict)  # over test samples, of Task.evaluated


@dataclass
class Part:
    """Base of an exchange's messages; the fields cross as a tuple, without lengths where there are none."""

    def body(self) -> tuple:
        hints = _hints(type(self))
        pairs = ((hint, getattr(self, name)) for name, hint in hints.items())
        return tuple(value for hint, value in pairs if hint is not Lengths or value is not None)

    @classmethod
    def unchecked(cls) -> list[str]:
        """Its fields whose annotation is none that what comes is checked by."""
        return [name for name, hint in _hints(cls).items() if hint not in _CHECKS]

    @classmethod
    def has_targets(cls) -> bool:
        return Targets in _hints(cls).values()

    def targets_bytes(self) -> int:
        """Bytes of targets in it."""
        return self._bytes_of(Targets)

    def payload_bytes(self) -> int:
        """Bytes of payloads in it, with the lengths of their samples."""
        return self._bytes_of(Wire, MaybeWire, Lengths)

    def _bytes_of(self, *kinds: Any) -> int:
        values = (getattr(self, name) for name, hint in _hints(type(self)).items() if hint in kinds)
        return sum(value.nbytes for value in values if value is not None)

    @classmethod
    def parse(cls, body: Any, agreement: Agreement) -> Part:
        """
        Raises:
            Unfit: it does not hold what the fields' annotations say.
        """
        hints = {name: hint for name, hint in _hints(cls).items() if hint is not Lengths or agreement.has_lengths}
        if not isinstance(body, tuple) or len(body) != len(hints):
            raise Unfit(f"it does not have {len(hints)} parts of {cls.__name__}")
        for value, (name, hint) in zip(body, hints.items(), strict=True):
            _CHECKS[hint](name, value, agreement)
        return cls(**dict(zip(hints, body, strict=True)))


@dataclass
class Nothing(Part):
    """An answer that says no more than that the message has come."""


@cache
def _hints(cls: type[Part]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _wire(name: str, value: Any, agreement: Agreement) -> None:
    if not is_wire(value):
        raise Unfit("the payload is no 1-D uint8 tensor on the CPU")


def _maybe_wire(name: str, value: Any, agreement: Agreement) -> None:
    if value is not None:
        _wire(name, value, agreement)


def _flag(name: str, value: Any, agreement: Agreement) -> None:
    if type(value) is not bool:
        raise Unfit(f"{name} is no bool")


def _targets(name: str, value: Any, agreement: Agreement) -> None:
    try:
        agreement.task.check_targets(value, agreement.about, agreement.max_samples)
    except ValueError as error:
        raise Unfit(str(error)) from None


def _lengths(name: str, value: Any, agreement: Agreement) -> None:
    try:
        ragged.check(value, agreement.max_samples, agreement.task.longest(agreement.cfg))
    except ValueError as error:
        raise Unfit(str(error)) from None


def _loss(name: str, value: Any, agreement: Agreement) -> None:
    if not isinstance(value, float) or not abs(value) <= MAX_LOSS:  # which NaN is not
        raise Unfit(f"{name} is no finite number")


def _sums(name: str, value: Any, agreement: Agreement) -> None:
    require_sums(name, value, agreement.task.train_metrics)


def _test_sums(name: str, value: Any, agreement: Agreement) -> None:
    require_sums(name, value, agreement.task.evaluated)


_CHECKS: dict[Any, Callable[[str, Any, Agreement], None]] = {
    Wire: _wire,
    MaybeWire: _maybe_wire,
    Flag: _flag,
    Targets: _targets,
    Lengths: _lengths,
    Loss: _loss,
    Sums: _sums,
    TestSums: _test_sums,
}
