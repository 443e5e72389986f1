"""The mean of weights or gradients of several clients."""

from __future__ import annotations

from typing import Any

import torch


def average_states(states: list[Any], weights: list[float] | None = None) -> Any:
    """The weighted mean (equal weights if None) of lists or dicts of tensors; the first's where they are integers."""
    first = states[0]
    keys = list(first) if isinstance(first, dict) else range(len(first))
    weights = weights or [1.0] * len(states)
    mean = {}
    for key in keys:
        if first[key].is_floating_point():
            total = torch.zeros_like(first[key])
            for state, weight in zip(states, weights, strict=True):
                total += state[key] * weight
            mean[key] = total / sum(weights)
        else:
            mean[key] = first[key]
    return mean if isinstance(first, dict) else list(mean.values())
