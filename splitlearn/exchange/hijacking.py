"""Feature-space hijacking: a server that answers with gradients which train the clients to give their inputs away.

    client                                              server
    inputs ─► client segment ─► smashed ══ payload ════►  decode ──────────────► critic ─► "looks like the encoder's?"
                                 targets ══════════════►    │   its own images ─► encoder ─► critic          │
              gradients ◄─ backward ◄═ cut gradient ══◄ encode ◄──────────────── backward ◄──────────────────┘

The server holds images of the same kind, the test data of evaluate.on=server. It trains an encoder, of the client
segment's layers, with a decoder back to images, and a critic that tells the encoder's maps from the clients'. What
comes down is the gradient that makes the clients' maps look like the encoder's, not that of the task's loss: soon the
decoder reads them too. The client's half is that of labels_up: nothing that crosses tells a client. Beside it the
server trains its own segment on the maps that it gets, and answers with the task's loss.

An attack, for research on data of one's own: refused where the ranks are on several machines, and told loudly.

Source: Pasquini, Ateniese and Bernaschi 2021, "Unleashing the tiger: inference attacks on split learning",
arXiv:2012.02670; the critic is that of Gulrajani et al. 2017, "Improved training of Wasserstein GANs".
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from splitlearn.config import check_goes_with
from splitlearn.exchange.channel import learn_from, require_finite
from splitlearn.exchange.exchange import Outcome
from splitlearn.exchange.labels_up import Gradient, LabelsUp
from splitlearn.seeds import generator
from splitlearn.segments.mirror import Mirror, steepness


class Hijacking(LabelsUp):
    """
    Args:
        width: channels of the server's decoder and critic.
        penalty: what the critic's loss counts the squared deviation of its slope from 1 with.
    """

    name = "hijacking"
    warning = "exchange=hijacking attacks the clients: the server trains their segments to give their inputs away"

    def __init__(self, width: int = 32, penalty: float = 10.0):
        self.width, self.penalty = width, penalty
        self.images: Tensor | None = None

    def check(self, cfg):
        check_goes_with(cfg, "exchange=hijacking", {"evaluate.on": ("server",)}, ", as the server needs images")

    def beside_server(self, part, sample, shape, seed):
        return Mirror(part, sample, shape, self.width, seed)

    def know_test(self, batches: Iterable[Tensor]) -> None:
        self.images = torch.cat(list(batches))

    def server(self, parts, channels, task):
        step = yield
        targets = task.unpack(step.targets, channels.device)
        num_samples, mirror = task.num_samples(targets), parts.parts[1]
        received = channels["smashed"].receive(step.wire, num_samples)
        smashed = received.tensor.detach().float().requires_grad_()
        (steering,) = torch.autograd.grad(-mirror["critic"](smashed).mean(), smashed)
        if received.tensor.requires_grad:
            received.tensor.backward(steering.to(received.tensor.dtype))
        outputs = parts[0](received.tensor.detach())
        loss = require_finite(task.loss(outputs, targets))
        learn_from(loss)
        self._learn(mirror, smashed.detach(), channels)
        yield Gradient(loss.item(), received.gradient_wire)
        return Outcome(num_samples, task.score(outputs, targets, task.train_metrics), loss.item())

    def _learn(self, mirror: Mirror, smashed: Tensor, channels) -> None:
        """Adds the gradients of the encoder, the decoder and the critic."""
        draws = generator(channels["smashed"].channel.seed, "hijacking", *channels.place)
        own = self.images[torch.randint(len(self.images), (len(smashed),), generator=draws)].to(channels.device)
        encoded = mirror["encoder"](own)
        (mirror["decoder"](encoded) - own).square().mean().backward()
        critic, encoded = mirror["critic"], encoded.detach()
        share = torch.rand(len(own), *[1] * (smashed.dim() - 1), generator=draws).to(channels.device)
        between = share * encoded + (1 - share) * smashed
        loss = critic(smashed).mean() - critic(encoded).mean()
        (loss + self.penalty * (steepness(critic, between) - 1).square().mean()).backward()
