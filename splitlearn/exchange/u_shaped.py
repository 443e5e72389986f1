"""U-shaped split learning: the labels never leave the client, which holds the first and the last part of the network.

    client                                              server
    inputs ─► first part ─► smashed ════════ payload ═══►  decode ─► middle part
    targets ─► loss ◄─ last part ◄─ features ◄═ payload ══  encode ◄──────┘
               │ backward
               └─► feature gradient ════════ payload ═══►  decode ─► backward
    gradients ◄─ backward ◄═════ cut gradient ◄═ payload ══  encode ◄──────┘

Two round trips a step and four channels, each with a codec of its own. Loss and metrics are the client's, which tells
the server their values.

Source: Vepakomma et al. 2018, "Split learning for health", arXiv:1812.00564, configuration without label sharing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig
from torch import Tensor

from splitlearn.errors import NonFiniteError, UserError
from splitlearn.exchange.agreement import MAX_SUM
from splitlearn.exchange.channel import ChannelSpec, require_finite
from splitlearn.exchange.exchange import Exchange, Outcome, is_one
from splitlearn.exchange.parts import Lengths, Loss, Nothing, Part, Sums, TestSums, Wire
from splitlearn.tasks import Task


@dataclass
class Smashed(Part):
    wire: Wire
    lengths: Lengths = None


@dataclass
class Payload(Part):
    wire: Wire


@dataclass
class FeatureGradient(Part):
    wire: Wire
    loss: Loss
    sums: Sums


@dataclass
class Scores(Part):
    sums: TestSums


class UShaped(Exchange):
    name = "u_shaped"
    channels = (
        ChannelSpec("smashed", "up", "smashed data", "compressor", "uplink", back="gradient", has_lengths=True),
        ChannelSpec("features", "down", "features", "features", "features", cut=1, back="feature_gradient"),
        ChannelSpec("feature_gradient", "up", "feature gradient", "feature_gradient", "feature_gradient", cut=1),
        ChannelSpec("gradient", "down", "cut gradient", "downlink", "downlink", cut=0),
    )
    rounds = ((Smashed, Payload), (FeatureGradient, Payload))
    evaluation_rounds = ((Smashed, Payload), (Scores, Nothing))

    def cuts(self, cfg: DictConfig) -> list[str]:
        cuts = [cfg.cut, cfg.cut_back] if is_one(cfg.cut) or not cfg.cut else cfg.cut
        if not isinstance(cuts, Sequence) or len(cuts) != 2 or not all(map(is_one, cuts)):
            raise UserError(f"cut={cfg.cut}: give two cuts, cut=[<first>,<second>], or cut=<first> cut_back=<second>")
        return [*map(str, cuts)]

    def client(self, parts, channels, task, inputs, targets):
        smashed, lengths = parts[0](inputs), task.lengths(inputs)
        sent = channels["smashed"].send(smashed, lengths)
        answer = yield Smashed(sent.wire, sent.lengths)
        received = channels["features"].receive(answer.wire, task.num_samples(targets), lengths)
        outputs = parts[1](received.tensor, received.lengths)
        loss = require_finite(task.loss(outputs, targets))
        loss.backward()
        sums = _scored(task, outputs, targets, task.train_metrics)
        answer = yield FeatureGradient(received.gradient_wire, loss.item(), sums)
        sent.backward(answer.wire)

    def server(self, parts, channels, task):
        step = yield
        received = channels["smashed"].receive(step.wire, lengths=step.lengths)
        features = parts(received.tensor, received.lengths)
        sent = channels["features"].send(features, received.lengths)
        step = yield Payload(sent.wire)
        sent.backward(step.wire)
        yield Payload(received.gradient_wire)
        return Outcome(len(features), step.sums, step.loss)

    def client_evaluation(self, parts, channels, task, inputs, targets):
        lengths = task.lengths(inputs)
        sent = channels["smashed"].send(parts[0](inputs), lengths)
        answer = yield Smashed(sent.wire, sent.lengths)
        received = channels["features"].receive(answer.wire, task.num_samples(targets), lengths)
        outputs = parts[1](received.tensor, received.lengths)
        yield Scores(_scored(task, outputs, targets, task.evaluated))
        return task.told_apart(outputs, targets)  # which does not cross

    def server_evaluation(self, parts, channels, task):
        step = yield
        received = channels["smashed"].receive(step.wire, lengths=step.lengths)
        features = parts(received.tensor, received.lengths)
        step = yield Payload(channels["features"].send(features, received.lengths).wire)
        yield Nothing()
        return Outcome(len(features), step.sums)


def _scored(task: Task, outputs: Tensor, targets: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    """Task.score, of what has not diverged, so that the server takes it."""
    sums = task.score(outputs, targets, names)
    for name, value in sums.items():
        if not abs(value) <= MAX_SUM:  # which NaN is not
            raise NonFiniteError(f"its {name} is {value / task.num_samples(targets)}")
    return sums
