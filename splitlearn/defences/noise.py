"""Noise: each sample's tensor gets Gaussian or Laplace noise; cut down to a norm before, for differential privacy.

With `clip` and `delta`, the run says which (ε, δ) that is: of one sample's tensor in one epoch, and of all epochs,
against any other sample in its place (local differential privacy, sensitivity 2·clip). What is made of the noisy tensor
later, by the codec or the server, changes nothing in that. Labels and weights, which cross too, are not covered.

The claim holds where a sample's tensor depends on that sample alone, and is refused with batch norm before the cut, and
with a bottleneck whose start is fitted to maps without noise.

Source: Dwork and Roth 2014, "The algorithmic foundations of differential privacy", theorems 3.6 and A.1; composition by
Rényi differential privacy, Mironov 2017, from the library dp-accounting.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from splitlearn.defences.defence import Defence

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
        if delta is not None and not 0 < delta < 1:
            raise ValueError(f"delta={delta} is out of range: choose above 0 and below 1, or null")
        if delta is not None and clip is None:
            raise ValueError("delta claims privacy of tensors that are cut down to a norm: set clip, such as 50")
        self.channel, self.kind, self.clip, self.scale, self.delta = channel, kind, clip, scale, delta

    def protect(self, x: Tensor, generator: torch.Generator) -> Tensor:
        rows, each = x.flatten(1).float(), (-1, *[1] * (x.dim() - 1))
        norms = torch.linalg.vector_norm(rows, 2 if self.clip is None else KINDS[self.kind], dim=1).view(each)
        if self.clip is None:
            factors, scale = 1.0, self.scale * norms / rows.shape[1] ** 0.5
        else:
            factors = (self.clip / norms.clamp_min(1e-30)).clamp(max=1.0).to(x.dtype)
            scale = self.clip * self.scale
        if self.kind == "gaussian":
            noise = torch.randn(x.shape, generator=generator)
        else:
            uniform = torch.rand(x.shape, generator=generator) - 0.5
            noise = -uniform.sign() * torch.log1p(-2 * uniform.abs().clamp(max=0.5 - 1e-7))
        return x * factors + (noise.to(x.device) * scale).to(x.dtype)

    def claims(self, num_epochs: int) -> dict[str, float]:
        if self.delta is None:
            return {}
        return {"epsilon": self._epsilon(num_epochs), "epsilon_per_epoch": self._epsilon(1), "delta": self.delta}

    def _epsilon(self, number: int) -> float:
        import dp_accounting
        from dp_accounting.rdp import RdpAccountant

        event = {"gaussian": dp_accounting.GaussianDpEvent, "laplace": dp_accounting.LaplaceDpEvent}[self.kind]
        accountant = RdpAccountant()
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

    def check_segment(self, modules):
        if self.delta is None or self.channel != "smashed":
            return
        for path, module in modules:
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise ValueError(
                    f"delta claims privacy of each sample, and {path} is a batch norm before the cut, by which each"
                    " sample's map depends on all: cut earlier, freeze it, or set delta=null for noise without a claim"
                )
