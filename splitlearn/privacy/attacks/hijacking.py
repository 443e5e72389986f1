"""What the server of a run with exchange=hijacking reads: its decoder, as it was at the end, on the maps that it got.

PSNR in dB and SSIM against the originals; the guess is the mean image of the server's own.
"""

from __future__ import annotations

import torch

from splitlearn.errors import UserError
from splitlearn.exchange.exchange import exchange_from
from splitlearn.privacy.attacks.attack import Attack, Found, Scene, applied
from splitlearn.privacy.attacks.images import likeness, mean_image, pair


class Hijacked(Attack):
    def run(self, scene: Scene, seed: int) -> Found:
        if exchange_from(scene.cfg).name != "hijacking":
            raise UserError("attack=hijacking reads a run with exchange=hijacking; this one's server trained the task")
        _, seen = scene.channel("smashed")
        originals = torch.cat(scene.inputs())
        found = applied(scene.network.server.parts[1]["decoder"], torch.cat(seen))
        figures, guess = (likeness(one, originals, scene) for one in (found, mean_image(scene, originals)))
        return Found(figures, guess, pair(originals, found, scene))
