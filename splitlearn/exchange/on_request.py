"""Smashed data and labels go up; the cut gradient comes back where the client asks for it: a base of exchanges."""

from __future__ import annotations

from dataclasses import dataclass

from splitlearn.exchange.channel import learn_from, require_finite
from splitlearn.exchange.exchange import Outcome
from splitlearn.exchange.labels_up import LabelsUp
from splitlearn.exchange.parts import Flag, Lengths, Loss, MaybeWire, Part, Targets, Wire


@dataclass
class Asking(Part):
    wire: Wire
    targets: Targets
    wants_gradient: Flag
    lengths: Lengths = None


@dataclass
class Answer(Part):
    loss: Loss
    wire: MaybeWire


class OnRequest(LabelsUp):
    rounds = ((Asking, Answer),)

    def server(self, parts, channels, task):
        step = yield
        targets = task.unpack(step.targets, channels.device)
        received = channels["smashed"].receive(step.wire, task.num_samples(targets), step.lengths)
        outputs = parts(received.tensor if step.wants_gradient else received.tensor.detach(), received.lengths)
        loss = require_finite(task.loss(outputs, targets))
        learn_from(loss)
        yield Answer(loss.item(), received.gradient_wire if step.wants_gradient else None)
        return Outcome(task.num_samples(targets), task.score(outputs, targets, task.train_metrics), loss.item())
