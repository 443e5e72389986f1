"""Send once: the client segment is trained first, by its local loss; then each sample's map goes up a single time.

    epochs 1 … local_epochs          clients     inputs ─► client segment ─► auxiliary network ─► local loss
                                                 the mean of the clients' weights after each epoch
    the next epoch                   client      inputs ─► client segment, which is not trained any more ─► smashed ══►
                                     server      ══► decode, and hold ─► server segment ─► loss ─► backward
    the others                       server      what it holds ─► server segment ─► loss ─► backward

Smashed data and labels go up once, and nothing comes down. What the server holds are the payloads as they came. The
client segment computes them as in evaluation. Learning rates go over the local epochs, and over all others anew.

With resend_every=n, the maps go up again in every n-th epoch after that, in other batches and with another
augmentation, and the server forgets those that it has held.

Source: Zhang et al. 2025, "Ampere: communication-efficient and high-accuracy split federated learning",
arXiv:2507.07130. There the server's batches are drawn from all maps anew; here they stay as they came.
"""

from __future__ import annotations

import torch

from splitlearn.config import check_goes_with
from splitlearn.errors import UserError
from splitlearn.exchange.labels_up import Smashed
from splitlearn.exchange.local_loss import LocalLoss
from splitlearn.exchange.plan import Plan


class SendOnce(LocalLoss):
    """
    Args:
        local_epochs: in which the clients train alone.
        auxiliary: channels between the two layers of the auxiliary network.
        resend_every: epochs of the server after which all maps go up anew; None: never.
        hold_mb: how much the server may hold, in 10^6 bytes of payloads and targets.
    """

    name = "send_once"
    alone_in_epochs = ("client", "server")

    def __init__(
        self, local_epochs: int = 10, auxiliary: int = 64, resend_every: int | None = None, hold_mb: float = 1000
    ):
        super().__init__(auxiliary=auxiliary)
        self.local_epochs, self.resend_every, self.hold_mb = local_epochs, resend_every, hold_mb

    def check(self, cfg):
        if cfg.epochs <= self.local_epochs:
            raise UserError(
                f"exchange.local_epochs={self.local_epochs} leaves none of epochs={cfg.epochs} for the server: set"
                " epochs to the sum of both"
            )
        check_alone(cfg, "exchange=send_once")

    def plan(self, epoch, phase=None):
        if epoch <= self.local_epochs:
            return Plan(every=0, part=(1, self.local_epochs))
        first = self.local_epochs + 1
        sends = (epoch - first) % self.resend_every == 0 if self.resend_every else epoch == first
        return Plan(int(sends), is_trained=False, is_held=sends, replays=not sends, part=(first, None))

    @torch.no_grad()
    def client(self, parts, channels, task, inputs, targets):
        sent = channels["smashed"].send(parts[0](inputs), task.lengths(inputs))
        yield Smashed(sent.wire, task.pack(targets), sent.lengths)


def check_alone(cfg, exchange: str) -> None:
    """
    Raises:
        UserError: a key does not go with epochs in which clients, or the server, train without the other end.
    """
    fits = {
        "topology.name": ("parallel", None),
        "topology.average": ("epoch", "never"),
        "accumulate": (1,),
        "pipeline_depth": (1,),
        "membership.sample": (None,),
    }
    check_goes_with(cfg, exchange, fits)
    why = ", as the server would hold that many of each client's samples and train on these alone"
    check_goes_with(cfg, exchange, {"samples_per_epoch": (None,)}, why)
