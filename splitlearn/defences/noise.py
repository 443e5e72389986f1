"""Noise: each sample's tensor gets Gaussian or Laplace noise; cut down to a norm before, for differential privacy.

With `clip` and `delta`, the run says which (ε, δ) that is: of one sample's tensor in one epoch, and of all epochs,
against any other sample in its place (local differential privacy, sensitivity 2·clip). What is made of the noisy tensor
later, by the codec or the server, changes nothing in that. Labels and weights, which cross too, are not covered, and
neither is what the rounding of floating-point noise can tell (Mironov 2012).

The claim holds where a sample's tensor depends on that sample alone. It is refused of other channels than the smashed
data, with batch norm before the cut, where samples differ in length, which the server is told, and with a bottleneck
whose start is fitted to maps without noise.

Source: Dwork and Roth 2014, "The algorithmic foundations of differential privacy", theorems 3.6 and A.1; composition by
Rényi differential privacy, Mironov 2017, from the library dp-accounting.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from splitlearn.defences.defence import Defence
from splitlearn.defences.draws import Draws

KINDS = {"gaussian": 2, "laplace": 1}  # and the norm that is cut down


class Noise(Defence):
    """
    Args:
        channel: whose tensors.
        kind: "gaussian", or "laplace".
        clip: what the ℓ2 norm of a sample's tensor is cut down to, for Laplace noise the ℓ1 norm; None: it stays.
        scale: of the noise, its standard deviation or the scale of Laplace's distribution: as a multiple of clip, or
            without one of the root mean square of the sample's own tensor, so that it means the same at every cut.
        delta: of the claim; None for noise without one.
    """

    def __init__(
        self,
        channel: str = "smashed",
        kind: str = "gaussian",
        clip: float | None = None,
        scale: float = 1.0,
        delta: float | None = None,
    ):
        if kind not in KINDS:
            raise ValueError(f"kind={kind} is unknown: choose one of {', '.join(KINDS)}")
        if delta is not None and not _is_between(delta, 0, 1):
            raise ValueError(f"delta={delta} is out of range: choose above 0 and below 1, or null")
        if delta is not None and clip is None:
            raise ValueError("delta claims privacy of tensors that are cut down to a norm: set clip, such as 50")
        if delta is not None and channel != "smashed":
            raise ValueError(
                f"delta claims privacy of smashed data, and a tensor of channel={channel} depends on other samples too:"
                " use channel=smashed, or delta=null for noise without a claim"
            )
        if clip is not None and not _is_between(clip, 0, math.inf):
            raise ValueError(f"clip={clip} is out of range: choose a number above 0, or null")
        if not 0 <= scale < math.inf or (delta is not None and scale == 0):
            raise ValueError(f"scale={scale} is out of range: choose a number above 0")
        self.channel, self.kind, self.clip, self.scale, self.delta = channel, kind, clip, scale, delta

    def protect(self, x: Tensor, draws: Draws) -> Tensor:
        return self._noisy(x, x.shape[1:].numel(), draws)

    def protect_ragged(self, x: Tensor, is_there: Tensor, draws: Draws) -> Tensor:
        num_values = is_there.sum(1).view(-1, *[1] * (x.dim() - 1)) * x.shape[2:].numel()
        return self._noisy(x, num_values, draws)

    def _noisy(self, x: Tensor, num_values: int | Tensor, draws: Draws) -> Tensor:
        """With noise by the norms of samples that have so many values each; the others are zeros."""
        values, rows = x.float(), x.flatten(1).float()
        norms = torch.linalg.vector_norm(rows, 2 if self.clip is None else KINDS[self.kind], dim=1)
        norms = norms.view(-1, *[1] * (x.dim() - 1))
        if self.clip is None:
            factors, scale = 1.0, self.scale * norms / num_values**0.5
        else:
            factors, scale = (self.clip / norms.clamp_min(1e-30)).clamp(max=1.0), self.clip * self.scale
        noise = {"gaussian": draws.normal, "laplace": draws.laplace}[self.kind](x.shape)
        # Rounded to the dtype of x at the end alone: before the noise, that could make a norm larger than clip.
        return (values * factors + noise.to(x.device) * scale).to(x.dtype)

    def claims(self, num_epochs: int, most: int = 1) -> dict[str, float]:
        if self.delta is None:
            return {}
        return {"epsilon": self._epsilon(num_epochs), "epsilon_per_epoch": self._epsilon(most), "delta": self.delta}

    def _epsilon(self, number: int) -> float:
        import dp_accounting
        from dp_accounting.rdp import RdpAccountant

        event = {"gaussian": dp_accounting.GaussianDpEvent, "laplace": dp_accounting.LaplaceDpEvent}[self.kind]
        accountant = RdpAccountant()
        if number:
            accountant.compose(event(self.scale / 2), number)  # 2·clip apart, at most
        return float(accountant.get_epsilon(self.delta))

    def check(self, cfg):
        if self.delta is None:
            return
        try:
            self._epsilon(1)
        except ModuleNotFoundError:
            raise ValueError("delta needs dp-accounting: pip install -e '.[privacy]', or set it null") from None
        if cfg.bottleneck is not None and cfg.bottleneck_init == "pca":
            raise ValueError(
                "delta claims privacy that bottleneck_init=pca breaks, since its first maps cross without noise: use"
                " bottleneck_init=orthogonal, or delta=null"
            )

    def check_segment(self, modules, shape, is_ragged):
        if self.delta is None:
            return
        if is_ragged:
            raise ValueError(
                "delta claims privacy of samples that look alike, and here the server is told how long each is: set"
                " delta=null for noise without a claim"
            )
        for path, module in modules:
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            if is_norm and (module.training or module.running_mean is None):  # not where it is frozen
                raise ValueError(
                    f"delta claims privacy of each sample, and {path} is a batch norm before the cut, by which each"
                    " sample's map depends on all: cut earlier, freeze it, or set delta=null for noise without a claim"
                )


def _is_between(value: object, low: float, high: float) -> bool:
    """Whether it is a number between these, neither included; kinds.py passes whatever is null by default."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low < value < high
