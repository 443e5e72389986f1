"""Dropping: of each sample's smashed data some channels, or patches, are zeros, drawn anew for each sample and step.

What is left is scaled up, as by dropout. Source: Romanini et al. 2021, "PyVertical", arXiv:2104.00489, and Samragh et
al. 2021, "Unsupervised information obfuscation for split inference", arXiv:2104.11413, drop features; here at random.
"""

from __future__ import annotations

from torch import Tensor

from splitlearn.defences.defence import Defence
from splitlearn.defences.draws import Draws
from splitlearn.kernels.channels import channel_axis

WHAT = ("channels", "patches")


class Drop(Defence):
    """
    Args:
        what: "channels", or "patches": places of (C, H, W) maps, and positions of (T, C) ones.
        share: of them that is dropped, 0 ≤ share < 1.
    """

    def __init__(self, what: str = "channels", share: float = 0.2):
        if what not in WHAT:
            raise ValueError(f"what={what} is unknown: choose one of {', '.join(WHAT)}")
        if not 0 <= share < 1:
            raise ValueError(f"share={share} is out of range: choose at least 0 and below 1")
        self.what, self.share = what, share

    def protect(self, x: Tensor, draws: Draws) -> Tensor:
        axis = channel_axis(x.shape)
        shape = [size if (i == axis) == (self.what == "channels") else 1 for i, size in enumerate(x.shape)]
        shape[0] = len(x)
        kept = (draws.uniform(shape) >= self.share).to(x.device, x.dtype)
        return x * kept / (1 - self.share)

    def check_segment(self, modules, shape, is_ragged):
        if self.what == "patches" and len(shape) == 1:
            raise ValueError("the map at this cut has channels and no places: use what=channels")
