"""Local loss: an auxiliary network trains the client segment on the client; smashed data go up, nothing comes down.

    client                                              server
    inputs ─► client segment ─► smashed ══ payload ════►  decode ─► server segment ─► loss
                  ▲                │      targets ═════►                  ◄─ backward ─┘
                  └── backward ◄─ auxiliary network ─► local loss

With send_every=h, a client sends its first batch of an epoch and every h-th after it, and trains on the others alone.
The auxiliary network is averaged, and its bytes are counted, with the client segment.

Source: decoupled greedy learning, Belilovsky et al. 2020, arXiv:1901.08164; in split federated learning Han et al.
2021, "Accelerating federated learning with split learning on locally generated losses"; send_every is the h of CSE-FSL,
Mu and Shen 2023, arXiv:2304.02777. There the auxiliary network is one layer, or a small CNN; here two layers.
"""

from __future__ import annotations

from torch import Tensor

from splitlearn.config import check_goes_with
from splitlearn.exchange.channel import ChannelSpec, learn_from, require_finite
from splitlearn.exchange.exchange import Outcome
from splitlearn.exchange.labels_up import LabelsUp, Smashed
from splitlearn.exchange.parts import Nothing
from splitlearn.exchange.plan import Plan
from splitlearn.segments.parts import Parts
from splitlearn.tasks import Task


class LocalLoss(LabelsUp):
    """
    Args:
        send_every: which batches of a client are sent: every n-th of an epoch, from the first.
        auxiliary: channels between the two layers of the auxiliary network.
    """

    name = "local_loss"
    channels = (ChannelSpec("smashed", "up", "smashed data", "compressor", "uplink", has_lengths=True),)
    rounds = ((Smashed, Nothing),)
    answers_early = True

    def __init__(self, send_every: int = 1, auxiliary: int = 64):
        self.auxiliary, self._plan = auxiliary, Plan(send_every)

    def check(self, cfg):
        if self._plan.every > 1:
            fits = {"topology.average": ("epoch", "never", None), "accumulate": (1,), "pipeline_depth": (1,)}
            reasons = ", which needs every batch to be sent", ", or exchange.send_every=1"
            check_goes_with(cfg, f"exchange.send_every={self._plan.every}", fits, *reasons)

    def plan(self, epoch, phase=None):
        return self._plan

    def client(self, parts, channels, task, inputs, targets):
        smashed, lengths = parts[0](inputs), task.lengths(inputs)
        loss, outcome = local_loss(parts, task, smashed, targets, lengths)
        sent = channels["smashed"].send(smashed, lengths)
        yield Smashed(sent.wire, task.pack(targets), sent.lengths)
        learn_from(loss)
        return outcome

    def alone(self, parts, channels, task, inputs, targets):
        smashed = parts[0](inputs)
        loss, outcome = local_loss(parts, task, smashed, targets, task.lengths(inputs))
        channels["smashed"].keep(smashed)
        learn_from(loss)
        return outcome

    def server(self, parts, channels, task):
        step = yield
        targets = task.unpack(step.targets, channels.device)
        received = channels["smashed"].receive(step.wire, task.num_samples(targets), step.lengths)
        yield Nothing()
        outputs = parts(received.tensor, received.lengths)
        loss = require_finite(task.loss(outputs, targets))
        learn_from(loss)
        return Outcome(task.num_samples(targets), task.score(outputs, targets, task.train_metrics), loss.item())


def local_loss(
    parts: Parts, task: Task, smashed: Tensor, targets: Tensor, lengths: Tensor | None, twice: bool = False
) -> tuple[Tensor, Outcome]:
    """The loss behind the auxiliary network, which is the client's last part, and what it came to.

    With `twice`, its gradient can be differentiated again (see Parts.run).

    Raises:
        NonFiniteError: it is not finite.
    """
    outputs = parts[1](smashed, lengths, twice=twice)
    loss = require_finite(task.loss(outputs, targets))
    return loss, Outcome(task.num_samples(targets), task.score(outputs, targets, task.train_metrics), loss.item())
