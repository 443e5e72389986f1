"""What is measured of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """Something that is measured besides the loss, as a mean over the samples, or as a function of such a mean.

    Attributes:
        name: in files and in `Task.score`, such as "top1".
        title: for people, such as "accuracy".
        higher_is_better: which way is better.
        is_share: from 0 to 1, and shown as a percentage.
        of_mean: what is made of the mean over all samples, such as a perplexity of a loss.
    """

    name: str
    title: str
    higher_is_better: bool = True
    is_share: bool = True
    of_mean: Callable[[float], float] = float

    def form(self, value: float) -> str:
        """A value for people."""
        return f"{value:.2%}" if self.is_share else f"{value:.4f}"

    def is_better(self, one: float, other: float) -> bool:
        return one > other if self.higher_is_better else one < other
