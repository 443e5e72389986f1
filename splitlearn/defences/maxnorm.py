"""Max-norm: noise along each sample's gradient, so that its expected length is that of the batch's longest.

How long a gradient is tells its label, where classes are of different sizes. Of u_shaped it protects what goes up, with
channel=feature_gradient.

Source: Li et al. 2022, "Label leakage and protection in two-party split learning", arXiv:2102.08504, section 4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from splitlearn.defences.defence import Defence
from splitlearn.defences.draws import Draws


class MaxNorm(Defence):
    """
    Args:
        channel: whose tensors, such as "feature_gradient".
    """

    def __init__(self, channel: str = "feature_gradient"):
        self.channel = channel

    def protect(self, x: Tensor, draws: Draws) -> Tensor:
        norms = torch.linalg.vector_norm(x.flatten(1).float(), dim=1).clamp_min(1e-30)
        deviations = ((norms.max() / norms).square() - 1).clamp_min(0).sqrt()
        drawn = draws.normal([len(x)]).to(x.device)
        return x * (1 + deviations * drawn).to(x.dtype).view(-1, *[1] * (x.dim() - 1))
