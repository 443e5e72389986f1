"""AdamW that leaves norms and biases without weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

DECAY = ("matrices", "all")


class AdamW(torch.optim.AdamW):
    """torch's, with a group of parameters that decay and one of those that do not; a group may be missing.

    Source: Loshchilov and Hutter 2019, "Decoupled weight decay regularization", arXiv:1711.05101; without decay of
    what has one dimension as in GPT-2's and GPT-3's programs.

    Args:
        params: to train.
        decay: what weight_decay is for: "matrices", all that has two dimensions or more; or "all".
        options: torch's, such as lr, betas, weight_decay.

    Raises:
        ValueError: an option is not one of these.
    """

    def __init__(self, params: Iterable[nn.Parameter], decay: str = "matrices", **options: Any):
        if decay not in DECAY:
            raise ValueError(f"decay={decay} is unknown: choose one of {', '.join(DECAY)}")
        params = list(params)
        groups = [{"params": params}]
        if decay == "matrices":
            without = [parameter for parameter in params if parameter.dim() < 2]
            groups = [{"params": [parameter for parameter in params if parameter.dim() >= 2]}]
            groups.append({"params": without, "weight_decay": 0.0})
        super().__init__([group for group in groups if group["params"]], **options)
