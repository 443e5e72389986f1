"""The halves of a batch as they are driven: each is held to what its exchange says of itself.

An exchange of one's own that does something else is told of by name where it does it, and not by what comes of it at
the other end.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import is_dataclass
from typing import Any, NoReturn

from torch import Tensor

from splitlearn.config import path_of
from splitlearn.errors import UserError
from splitlearn.exchange.channel import ChannelSpec
from splitlearn.exchange.exchange import ClientHalf, Exchange, Outcome, ServerHalf
from splitlearn.exchange.parts import Part
from splitlearn.exchange.passage import Passage
from splitlearn.segments.parts import Parts
from splitlearn.tasks import Task

ENDED = object()


def client_half(
    exchange: Exchange, parts: Parts, channels: Passage, task: Task, inputs: Tensor, targets: Tensor
) -> ClientHalf:
    """The client's half of a batch, of a test batch if the passage is in evaluation.

    Raises, as it goes on:
        UserError: it yields other messages, or fewer, than the exchange's rounds.
    """
    begin = exchange.client_evaluation if channels.in_evaluation else exchange.client
    half = _Half(exchange, "client", begin(parts, channels, task, inputs, targets))
    try:
        answer = None
        for sent, _ in _rounds(exchange, channels):
            answer = yield half.after(answer, sent)
        if half.advance(answer) is not ENDED:
            half.refuse("yields more messages than its rounds have")
        return half.returned
    finally:
        half.close()


def server_half(exchange: Exchange, parts: Parts, channels: Passage, task: Task) -> ServerHalf:
    """The server's half of a batch, of a test batch if the passage is in evaluation.

    Raises, as it goes on:
        UserError: it yields other answers, or fewer, than the exchange's rounds, or returns no Outcome of the batch.
    """
    begin = exchange.server_evaluation if channels.in_evaluation else exchange.server
    half = _Half(exchange, "server", begin(parts, channels, task))
    try:
        half.after(None, type(None))
        message = yield
        for _, answered in _rounds(exchange, channels):
            message = yield half.after(message, answered)
        if half.advance(None) is not ENDED:
            half.refuse("yields more answers than its rounds have")
        return half.outcome(task.evaluated if channels.in_evaluation else task.train_metrics)
    finally:
        half.close()


def check_declarations(exchange: Exchange) -> None:
    """
    Raises:
        UserError: an exchange of one's own has no name, or channels and rounds that its halves cannot be held to.
    """
    name = path_of(type(exchange))
    if not isinstance(getattr(exchange, "name", None), str):
        raise UserError(f"exchange {name}: name must be a text, for people")
    if not _are(getattr(exchange, "channels", None), ChannelSpec):
        raise UserError(f"exchange {name}: channels must be a tuple of ChannelSpec, with one at least")
    for rounds in ("rounds", "evaluation_rounds"):
        pairs = getattr(exchange, rounds, None)
        if not _are(pairs, tuple) or not all(len(pair) == 2 for pair in pairs):
            raise UserError(f"exchange {name}: {rounds} must be a tuple of pairs, what is sent and what is answered")
        for part in (part for pair in pairs for part in pair):
            if not (isinstance(part, type) and issubclass(part, Part) and is_dataclass(part)):
                raise UserError(f"exchange {name}: {rounds} has {part!r}, which is no dataclass derived from Part")
            if unchecked := part.unchecked():
                raise UserError(
                    f"exchange {name}: what comes as {part.__name__}.{unchecked[0]} cannot be checked: annotate it with"
                    " a kind that splitlearn/exchange/parts.py has a check for"
                )


def _are(found: Any, kind: type) -> bool:
    return isinstance(found, tuple) and len(found) > 0 and all(isinstance(one, kind) for one in found)


def _rounds(exchange: Exchange, channels: Passage) -> tuple[tuple[type[Part], type[Part]], ...]:
    return exchange.evaluation_rounds if channels.in_evaluation else exchange.rounds


class _Half:
    """What an exchange has made of one half, `of` the client or the server."""

    def __init__(self, exchange: Exchange, of: str, half: Any):
        self.exchange, self.of, self.half, self.returned = type(exchange), of, half, None
        if not isinstance(half, Generator):
            self.refuse(f"is {_shown(half)}, and not a generator: it has to yield what it sends")

    def advance(self, came: Part | None) -> Any:
        """What it yields next, after what came, or ENDED; then it has `returned` something."""
        try:
            return self.half.send(came)
        except StopIteration as end:
            self.returned = end.value
            return ENDED

    def after(self, came: Part | None, expected: type[Part] | type[None]) -> Part | None:
        """The same, of this type."""
        found, wanted = self.advance(came), "nothing" if expected is type(None) else f"a {expected.__name__}"
        if found is ENDED:
            self.refuse(f"ends where it is to yield {wanted}")
        if not isinstance(found, expected):
            self.refuse(f"yields {_shown(found)} where it is to yield {wanted}")
        return found

    def outcome(self, names: tuple[str, ...]) -> Outcome:
        """What it returned, with the sums of these names."""
        if not isinstance(self.returned, Outcome):
            self.refuse(f"returns {_shown(self.returned)}, and not the Outcome of the batch")
        if missing := [name for name in names if name not in self.returned.sums]:
            self.refuse(f"returns an Outcome whose sums have no {', '.join(missing)}: task.score makes them")
        if self.returned.num_samples < 1:
            self.refuse(f"returns an Outcome of {self.returned.num_samples} samples: task.num_samples counts them")
        return self.returned

    def refuse(self, why: str) -> NoReturn:
        raise UserError(f"exchange {path_of(self.exchange)}: the {self.of}'s half {why} (see docs/extending.md)")

    def close(self) -> None:
        self.half.close()


def _shown(found: Any) -> str:
    return "None" if found is None else f"a {type(found).__name__}"
