"""NoPeek: the distance correlation of inputs and smashed data is added to the client's loss, times a weight.

Source: Vepakomma et al. 2020, "NoPeek: information leakage reduction to share activations in distributed deep
learning", arXiv:2008.09161; the distance correlation is Székely, Rizzo and Bakirov's of 2007, of one batch.
"""

from __future__ import annotations

from torch import Tensor

from splitlearn.defences.defence import Defence


class NoPeek(Defence):
    """
    Args:
        weight: of the distance correlation, which is from 0 to 1.
    """

    def __init__(self, weight: float = 1.0):
        self.weight = weight

    def penalty(self, inputs: Tensor, x: Tensor) -> Tensor | None:
        return self.weight * distance_correlation(inputs, x) if len(x) > 1 else None

    def check(self, cfg):
        if "image_size" not in cfg.data:
            raise ValueError("it measures distances of inputs, which tokens do not have: it is for images")


def distance_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Of the samples of (B, …) and (B, …), 0-d float32 from 0 to 1; differentiable."""
    a, b = (_centred(one.flatten(1).float()) for one in (x, y))
    covariance, variances = (a * b).mean(), (a * a).mean() * (b * b).mean()
    return (covariance.clamp_min(0) / variances.clamp_min(1e-20).sqrt() + 1e-12).sqrt()


def _centred(x: Tensor) -> Tensor:
    """(B, B) distances between samples, less the means of rows and columns."""
    products = x @ x.T
    norms = products.diagonal()
    squared = (norms.unsqueeze(0) + norms.unsqueeze(1) - 2 * products).clamp_min(0)
    distances = (squared + 1e-12).sqrt()
    return distances - distances.mean(0, keepdim=True) - distances.mean(1, keepdim=True) + distances.mean()
