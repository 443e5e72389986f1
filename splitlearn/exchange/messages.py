"""What the messages of a client and the server hold: nobody is trusted to send what was agreed.

Who sends which when is in docs/architecture.md; there are more of them in firstmaps.py and rounds.py.

On the wire are tuples of plain fields, so that unpickling names no classes. A client that has the token may still be
broken, or not be ours. So each end looks at each message before anything uses it: how many parts there are, of what
type, and each tensor's shape and dtype, as `Agreement` knows them from the network. It takes microseconds a step. What
a payload holds, says `Compressor.decode`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from splitlearn.exchange import latest
from splitlearn.exchange.agreement import MAX_SUM, Agreement, Unfit, require_sums
from splitlearn.exchange.message import Message
from splitlearn.exchange.parts import Part
from splitlearn.exchange.plain import is_plain

DIRECTIVES = (None, "save", "stop", "leave")
CLIENT_PHASES = {"client compute", "codec", "waiting", "network"}  # that a client measures
MAX_SECONDS = 1e12


@dataclass
class Hello(Message):
    kind = "hello"
    config: dict[str, Any]  # what all ranks must share
    about: dict[str, Any]  # what the network has to know of the data
    num_train: int
    num_test: int
    origin: dict[str, Any] | None  # the data set that they are of (see Origin)
    num_numbered: int = 0  # training samples that are told apart (see ClientData)

    def check(self, agreement: Agreement) -> None:
        if not isinstance(self.config, dict):
            raise Unfit("its configuration is no dict")
        if not (all(isinstance(key, str) for key in self.config) and is_plain(self.config)):
            raise Unfit("its configuration is not one of keys and plain values")
        agreement.check_about(self.about)
        for name, number in (
            ("num_train", self.num_train),
            ("num_test", self.num_test),
            ("num_numbered", self.num_numbered),
        ):
            if type(number) is not int or not 0 <= number <= 1 << 53:
                raise Unfit(f"{name} is not a number from 0 to {1 << 53}")
        agreement.check_origin(self.origin)


@dataclass
class Welcome(Message):
    kind = "welcome"
    about: dict[str, Any]
    num_steps: int  # of all clients, in an epoch
    epoch: int  # the current one, from 1
    step: int  # steps of it that are done
    batch: int  # this client's batches of it that are done
    state: dict[str, Any]  # to go on from: weights, with or without the optimizer's state
    phase: str | None  # see Exchange.next_phase
    unfitted: list  # cuts whose bottleneck is to get its start first (see firstmaps.py), by their numbers
    latest: dict[str, Any]  # what the server holds of its samples, by channel (see latest.py)

    def check(self, agreement: Agreement) -> None:
        agreement.check_about(self.about)
        agreement.check_phase(self.phase)
        if not isinstance(self.unfitted, list) or not all(type(cut) is int and 0 <= cut <= 1 for cut in self.unfitted):
            raise Unfit("its bottlenecks are not those of a first and a second cut")
        for name in ("num_steps", "epoch", "step", "batch"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 0:
                raise Unfit(f"{name} is no number from 0")
        if not isinstance(self.state, dict):
            raise Unfit("its state is no dict")  # what is in it, the network has to tell (see Agreement.whole)
        if not isinstance(self.latest, dict) or not self.latest.keys() <= agreement.channels.keys():
            raise Unfit("what it holds of samples is not of the run's channels")
        for flaw in filter(None, map(latest.flaw, self.latest.values())):
            raise Unfit(f"what it holds of samples does not fit: {flaw}")


@dataclass
class Step(Message):
    kind = "step"
    part: tuple | None  # the exchange's, of this round; None: the batch is not finite, and left out
    errors: dict[str, float]  # compression errors of what was sent, by channel
    wants_to_stop: bool

    def check(self, agreement: Agreement, part: type[Part]) -> None:
        if type(self.wants_to_stop) is not bool:
            raise Unfit("whether it wants to stop is no bool")
        if not isinstance(self.errors, dict) or not self.errors.keys() <= agreement.channels.keys():
            raise Unfit("its errors are not those of channels")
        if not all(isinstance(error, float) and 0 <= error <= MAX_SUM for error in self.errors.values()):
            raise Unfit("a compression error is no finite number from 0")
        if self.part is None and agreement.may_skip:
            return
        self.part = part.parse(self.part, agreement)


@dataclass
class StepReply(Message):
    kind = "answer to its step"
    part: tuple | None  # the exchange's, of this round; None: the batch is left out
    directive: str | None
    waiting_s: float  # that the request waited at the server
    computing_s: float  # that it took there
    rates: dict | None  # what the optimizer steps with now (see Rates.at); None: it does not

    def check(self, agreement: Agreement, part: type[Part]) -> None:
        _check_directive(self.directive)
        if not all(isinstance(value, float) for value in (self.waiting_s, self.computing_s)):
            raise Unfit("its times are no numbers of seconds")
        if self.rates is not None:
            agreement.check_rates(self.rates)
        if self.part is not None:
            self.part = part.parse(self.part, agreement)


@dataclass
class Evaluate(Message):
    kind = "evaluate"
    part: tuple

    def check(self, agreement: Agreement, part: type[Part]) -> None:
        self.part = part.parse(self.part, agreement)


@dataclass
class Gradients(Message):
    kind = "gradients"
    gradients: list | None  # None: its batch was left out, or it has no more

    def check(self, agreement: Agreement) -> None:
        if self.gradients is not None:
            agreement.check_gradients(self.gradients)


@dataclass
class GradientsReply(Message):
    kind = "mean of the gradients"
    mean: list | None
    directive: str | None
    rates: dict  # what the optimizer steps with

    def check(self, agreement: Agreement) -> None:
        Gradients(self.mean).check(agreement)
        _check_directive(self.directive)
        agreement.check_rates(self.rates)


@dataclass
class Weights(Message):
    kind = "weights"
    state: Any
    seconds: dict[str, float]  # where time went since the last one, by phase
    own: dict | None  # of the batches since then, samples and sums by a loss of the client's own, if it has one
    wants_to_stop: bool

    def check(self, agreement: Agreement, holds: str | None = None) -> None:
        """
        Args:
            holds: what the state has to be: the "segment", as far as it changes, the "trainable", or None for nothing;
                of "changes", decoding them tells (see changes.py).
        """
        if not isinstance(self.seconds, dict) or not self.seconds.keys() <= CLIENT_PHASES:
            raise Unfit(f"its times are not those of {', '.join(sorted(CLIENT_PHASES))}")
        if not all(type(value) in (int, float) and abs(value) < MAX_SECONDS for value in self.seconds.values()):
            raise Unfit("its times are no numbers of seconds")
        if self.own is not None:
            require_sums("its own sums", self.own, agreement.own_sums)
        if type(self.wants_to_stop) is not bool:
            raise Unfit("whether it wants to stop is no bool")
        if holds == "trainable":
            agreement.check_trainable(self.state)
        elif holds == "segment":
            agreement.check_segment(self.state, agreement.changing)
        elif holds != "changes" and self.state is not None:
            raise Unfit("it has weights that nobody asked for")


@dataclass
class WeightsReply(Message):
    kind = "weights"
    state: Any
    directive: str | None
    is_answer: bool  # else others are not as far, and this client's state is wanted meanwhile

    def check(self, agreement: Agreement) -> None:
        _check_directive(self.directive)
        if type(self.is_answer) is not bool:
            raise Unfit("whether it is the answer is no bool")


@dataclass
class State(Message):
    kind = "state"
    state: dict[str, Any]  # of segment and optimizer
    leaves: bool

    def check(self, agreement: Agreement) -> None:
        if type(self.leaves) is not bool:
            raise Unfit("whether it leaves is no bool")
        agreement.check_trainable(self.state)


@dataclass
class Failed(Message):
    kind = "failed"
    why: str

    def check(self, agreement: Agreement) -> None:
        if not isinstance(self.why, str):
            raise Unfit("the reason is no text")


@dataclass
class Goodbye(Message):
    kind = "goodbye"


@dataclass
class GoodbyeReply(Message):
    kind = "goodbye"
    result: float  # see Task.metrics

    def check(self, agreement: Agreement) -> None:
        if not isinstance(self.result, float) or math.isnan(self.result):
            raise Unfit("the run's result is no number")


def _check_directive(directive: Any) -> None:
    if directive not in DIRECTIVES:
        raise Unfit(f"it asks for {directive!r:.40}")
