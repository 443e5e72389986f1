"""Updates by loss: the clients train, and send, only in epochs in which the loss calls for it.

    loss has moved by the threshold     update    as labels_up
    it has not, for the first time      send      smashed data and labels go up, nothing comes down; the server holds
                                                  them, and trains on them
    and not yet                         hold      nothing crosses: the server trains on what it holds

The loss is the epoch's mean, and it has moved since the last epoch with updates. While the client segment is not
trained, it computes as in evaluation, so that what the server holds is what it would send again.

Source: Chen et al. 2021, "Communication and computation reduction for split learning using asynchronous training",
arXiv:2107.09786, its states A, B and C. There payloads have 8-bit floats; here the channels' codecs.
"""

from __future__ import annotations

from splitlearn.exchange.on_request import Asking, OnRequest
from splitlearn.exchange.plan import Plan
from splitlearn.exchange.send_once import check_alone

PLANS = {
    "update": Plan(),
    "send": Plan(is_trained=False, is_held=True),
    "hold": Plan(every=0, is_trained=False, replays=True),
}


class UpdateByLoss(OnRequest):
    """
    Args:
        threshold: by how much the loss has to move until the clients are updated again.
        hold_mb: how much the server may hold, in 10^6 bytes of payloads and targets.
    """

    name = "update_by_loss"
    alone_in_epochs = ("server",)
    phases = tuple(PLANS)

    def __init__(self, threshold: float = 0.1, hold_mb: float = 1000):
        self.threshold, self.hold_mb = threshold, hold_mb

    def check(self, cfg):
        check_alone(cfg, "exchange=update_by_loss")

    def plan(self, epoch, phase=None):
        return PLANS[phase or "update"]

    def next_phase(self, phase, reference, loss):
        has_moved = reference is None or abs(loss - reference) >= self.threshold
        reference = loss if phase == "update" else reference
        if has_moved:
            return "update", reference
        return "send" if phase == "update" else "hold", reference

    def client(self, parts, channels, task, inputs, targets):
        sent = channels["smashed"].send(parts[0](inputs), task.lengths(inputs))
        answer = yield Asking(sent.wire, task.pack(targets), channels.is_trained, sent.lengths)
        if answer.wire is not None:
            sent.backward(answer.wire)
