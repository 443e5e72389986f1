"""Split learning as in the MS paper (Eq. 1): smashed data and labels go up, the cut gradient comes back.

    client                                              server
    inputs ─► client segment ─► smashed ══ payload ════►  decode ─► server segment ─► loss
                                 targets ══════════════►                               │
              gradients ◄─ backward ◄═ cut gradient ══◄  encode ◄──── backward ◄───────┘

One round trip a step. In the server's half the smashed data are decoded by the Receive Function and the gradient is
encoded in its backward; in the client's half Send encodes in the forward, and decodes and gates in the backward.
"""

from __future__ import annotations

from dataclasses import dataclass

from splitlearn.exchange.channel import ChannelSpec, require_finite
from splitlearn.exchange.exchange import Exchange, Outcome
from splitlearn.exchange.parts import Lengths, Loss, Nothing, Part, Targets, Wire


@dataclass
class Smashed(Part):
    wire: Wire
    targets: Targets
    lengths: Lengths = None


@dataclass
class Gradient(Part):
    loss: Loss
    wire: Wire


class LabelsUp(Exchange):
    name = "labels_up"
    channels = (
        ChannelSpec("smashed", "up", "smashed data", "compressor", "uplink", back="gradient", has_lengths=True),
        ChannelSpec("gradient", "down", "cut gradient", "downlink", "downlink"),
    )
    rounds = ((Smashed, Gradient),)
    evaluation_rounds = ((Smashed, Nothing),)

    def client(self, parts, channels, task, inputs, targets):
        smashed = parts[0](inputs)
        sent = channels["smashed"].send(smashed, task.lengths(inputs))
        answer = yield Smashed(sent.wire, task.pack(targets), sent.lengths)
        sent.backward(answer.wire)

    def server(self, parts, channels, task):
        step = yield
        targets = task.unpack(step.targets, channels.device)
        received = channels["smashed"].receive(step.wire, task.num_samples(targets), step.lengths)
        outputs = parts(received.tensor, received.lengths)
        loss = require_finite(task.loss(outputs, targets))
        loss.backward()
        yield Gradient(loss.item(), received.gradient_wire)
        return Outcome(task.num_samples(targets), task.score(outputs, targets, task.train_metrics), loss.item())

    def client_evaluation(self, parts, channels, task, inputs, targets):
        sent = channels["smashed"].send(parts[0](inputs), task.lengths(inputs))
        yield Smashed(sent.wire, task.pack(targets), sent.lengths)

    def server_evaluation(self, parts, channels, task):
        step = yield
        targets = task.unpack(step.targets, channels.device)
        received = channels["smashed"].receive(step.wire, task.num_samples(targets), step.lengths)
        outputs = parts[0](received.tensor, received.lengths)
        yield Nothing()
        sums = task.score(outputs, targets, task.evaluated)
        return Outcome(task.num_samples(targets), sums, told_apart=task.told_apart(outputs, targets))
