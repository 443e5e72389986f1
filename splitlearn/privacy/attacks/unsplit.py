"""UnSplit: inputs from smashed data alone, without data of the kind: what inputs, and what segment, would give them?

    inputs sought ─► segment sought ─► map ─┐
                                            ├─► squared difference, and the inputs' total variation: the loss
    what the server decoded ────────────────┘

The attacker knows the client segment's layers, not its weights, and looks for both in turn: some steps of the inputs,
some of the weights. With weights=known it looks for the inputs alone.

PSNR in dB and SSIM against the originals; the guess is the mean image of data of the same kind, which this attacker
has not even got. A first layer of other weights mixes, stretches and inverts colours as it likes, and batch norm takes
contrast out, all with the same map: the colours of what is found, and of the guess, are fitted to the originals, by one
affine map for all.

Source: Erdoğan, Küpçü and Çiçek 2022, "UnSplit: data-oblivious model inversion, model stealing, and label inference
attacks against split learning", arXiv:2108.09033; with known weights He, Zhang and Lee 2019, "Model inversion attacks
against collaborative inference", its white-box attack.
"""

from __future__ import annotations

import torch
from torch import Tensor

from splitlearn.errors import UserError
from splitlearn.privacy.attacks.attack import Attack, Found, Scene
from splitlearn.privacy.attacks.images import likeness, mean_image, pair
from splitlearn.seeds import start_from
from splitlearn.segments.mirror import draw_anew

WEIGHTS = ("unknown", "known")


class UnSplit(Attack):
    """
    Args:
        weights: "unknown" or "known".
        batches: of what was kept, so many are attacked, each on its own.
        rounds: of both searches in turn.
        input_steps, weight_steps: of each search, in a round.
        input_lr, weight_lr: of Adam (AMSGrad).
        smoothness: of the inputs: what their total variation, a mean over the pixels, counts beside the difference of
            the maps, a mean over their values relative to their mean square.
    """

    def __init__(
        self,
        weights: str = "unknown",
        batches: int = 1,
        rounds: int = 50,
        input_steps: int = 10,
        weight_steps: int = 10,
        input_lr: float = 0.2,
        weight_lr: float = 1e-3,
        smoothness: float = 0.1,
    ):
        self.check_weights(weights, WEIGHTS)
        self.weights, self.batches, self.rounds, self.smoothness = weights, batches, rounds, smoothness
        self.steps, self.lrs = (input_steps, weight_steps), (input_lr, weight_lr)

    def run(self, scene: Scene, seed: int) -> Found:
        if self.weights == "known":
            scene.require_weights(otherwise="unknown")
        if not (seen := scene.inputs())[0].is_floating_point():
            raise UserError("attack=unsplit is for images: texts cannot be found by small steps")
        start_from(seed)
        originals = torch.cat(seen[: self.batches])
        _, maps = scene.channel("smashed")
        found = torch.cat([self._search(scene, one, seen[0].shape[1:]) for one in maps[: self.batches]])
        found, guess = (recoloured(one, originals) for one in (found, mean_image(scene, originals)))
        figures, guess = (likeness(one, originals, scene) for one in (found, guess))
        return Found(figures, guess, pair(originals, found, scene))

    def _search(self, scene: Scene, smashed: Tensor, shape: torch.Size) -> Tensor:
        segment = scene.network.client
        if self.weights == "unknown":
            draw_anew(segment)
        segment.train()
        x = (0.01 * torch.randn(len(smashed), *shape)).requires_grad_()
        sought = [[x], [weight for weight in segment.parameters() if weight.requires_grad]]
        optimizers = [torch.optim.Adam(these, lr, amsgrad=True) for these, lr in zip(sought, self.lrs, strict=True)]
        turns = [0, 1] if self.weights == "unknown" else [0]
        scale = smashed.square().mean()
        for _ in range(self.rounds):
            for turn in turns:
                for _ in range(self.steps[turn]):
                    segment.zero_grad()
                    x.grad = None
                    loss = (segment[0](x).float() - smashed).square().mean() / scale
                    (loss + self.smoothness * roughness(x)).backward()
                    optimizers[turn].step()
        return x.detach()


def recoloured(x: Tensor, like: Tensor) -> Tensor:
    """(N, C, H, W) images, their colours by that affine map which brings them nearest to others."""
    colours, wanted = (images.movedim(1, -1).flatten(0, -2) for images in (x, like))
    colours = torch.cat([colours, torch.ones(len(colours), 1)], dim=1)
    fitted = colours @ torch.linalg.lstsq(colours, wanted, driver="gelsd").solution
    return fitted.view(*x.movedim(1, -1).shape).movedim(-1, 1)


def roughness(x: Tensor) -> Tensor:
    """Total variation of (N, C, H, W) images: the mean squared difference of neighbours."""
    return x.diff(dim=2).square().mean() + x.diff(dim=3).square().mean()
