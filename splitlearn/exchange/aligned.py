"""Aligned local loss: the auxiliary network learns to give the gradient that the server would send.

    client                                              server
    inputs ─► client segment ─► smashed ══ payload ════►  decode ─► server segment ─► loss
                  ▲                │      targets ═════►                                │
                  ├── backward ◄─ auxiliary network ─► local loss                       │
                  │                ▲ is aligned with                                    │
                  └── backward ◄═ cut gradient ◄══ every align_every-th batch ◄═ backward

Of the batches that are sent, the first of an epoch and every align_every-th after it get the cut gradient, which trains
the client segment then. There the auxiliary network's loss is L + weight · ‖∂L/∂smashed − g‖² / ‖g‖², with the local
loss L and the cut gradient g as it was decoded; elsewhere it is L, and ∂L/∂smashed trains the client segment.
It is L as well where g is next to nothing, which has no direction.

Source: Nair et al. 2025, "FSL-SAGE: accelerating federated split learning via smashed activation gradient estimation",
arXiv:2505.23182. There the server aligns the auxiliary networks, on maps that it has kept, and sends these down; they
do not learn by the local loss. Here the client does, by the gradient that comes through the downlink's codec.
"""

from __future__ import annotations

import torch

from splitlearn.exchange.channel import require_finite
from splitlearn.exchange.labels_up import LabelsUp
from splitlearn.exchange.local_loss import LocalLoss, local_loss
from splitlearn.exchange.on_request import Asking, OnRequest

NOTHING = 1e-12  # of the estimate's ‖·‖², below which the cut gradient's is no measure


class Aligned(OnRequest, LocalLoss):
    """
    Args:
        align_every: which of the batches that are sent get the cut gradient: every n-th of an epoch.
        weight: of the alignment in the auxiliary network's loss.
        send_every: which batches of a client are sent: every n-th of an epoch, from the first.
        auxiliary: channels between the two layers of the auxiliary network.
    """

    name = "aligned"
    channels = LabelsUp.channels
    answers_early = False

    def __init__(self, align_every: int = 10, weight: float = 1.0, send_every: int = 1, auxiliary: int = 64):
        super().__init__(send_every, auxiliary)
        self.align_every, self.weight = align_every, weight

    def client(self, parts, channels, task, inputs, targets):
        smashed, lengths = parts[0](inputs), task.lengths(inputs)
        own, gradients = smashed.detach().requires_grad_(), []
        *_, batch = channels.place
        is_aligned = self.plan(0).num_sent(batch - 1) % self.align_every == 0
        loss, outcome = local_loss(parts, task, own, targets, lengths, twice=is_aligned)
        sent = channels["smashed"].send(smashed, lengths)
        answer = yield Asking(sent.wire, task.pack(targets), is_aligned, sent.lengths)
        if answer.wire is not None and smashed.requires_grad:
            smashed.register_hook(gradients.append)
            sent.backward(answer.wire)
        for gradient in gradients:
            (estimate,) = torch.autograd.grad(loss, own, create_graph=True)
            squares = gradient.square().sum()
            if squares > NOTHING * estimate.detach().square().sum():
                loss = require_finite(loss + self.weight * (estimate - gradient).square().sum() / squares)
        loss.backward()
        if not gradients and smashed.requires_grad:
            smashed.backward(own.grad)
        return outcome
