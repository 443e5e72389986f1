"""The messages that a bottleneck's start is made of, before the first step (see segments/bottleneck.py).

client                                  server
  │  Moments ─────────────────────────►    of the maps at the first cut: sums over each one's first batches
  │  ◄─────────────────────────── Fitted     the client's part of the pair, of all clients' moments
  │
  │  Maps ────────────────────────────►    where the second cut has a bottleneck: what crosses the first cut,
  │  ◄─────────────────────────── Fitted     from which the server has the maps at the second
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from splitlearn.exchange.agreement import Agreement, Unfit, is_like
from splitlearn.exchange.message import Message
from splitlearn.segments import bottleneck

MAX_COUNT = 1 << 53
LARGEST = 1e30  # so that their sums stay finite


@dataclass
class Moments(Message):
    kind = "moments"
    count: int  # of vectors; 0 where the client has no samples
    mean: Tensor
    triangle: Tensor  # of the covariance; see bottleneck.Moments.packed

    def check(self, agreement: Agreement, channels: int) -> None:
        """`channels` is how many the maps have."""
        if type(self.count) is not int or not 0 <= self.count <= MAX_COUNT:
            raise Unfit(f"count is not a number from 0 to {MAX_COUNT}")
        sizes = {"mean": channels, "triangle": channels * (channels + 1) // 2}
        for name, size in sizes.items():
            _check_floats(name, getattr(self, name), (size,))

    def unpacked(self) -> bottleneck.Moments:
        return bottleneck.Moments.unpack(self.count, self.mean, self.triangle)


@dataclass
class Maps(Message):
    kind = "first maps"
    maps: list  # (B, …) float32 of each batch

    def check(self, agreement: Agreement, shape: tuple[int, ...]) -> None:
        """`shape` is that of what a sample sends across the first cut."""
        if not isinstance(self.maps, list) or len(self.maps) > agreement.cfg.bottleneck_batches:
            raise Unfit(f"it has no list of up to {agreement.cfg.bottleneck_batches} batches")
        for one in self.maps:
            num_samples = len(one) if isinstance(one, Tensor) and one.dim() else 0
            if not 1 <= num_samples <= agreement.max_samples:
                raise Unfit(f"a batch is not of 1 to {agreement.max_samples} samples")
            _check_floats("a batch", one, (num_samples, *shape))


@dataclass
class Fitted(Message):
    kind = "start of the bottleneck"
    state: dict[str, Any]  # the client's weights of the pair, by their names; none where nobody has maps

    def check(self, agreement: Agreement) -> None:
        if not isinstance(self.state, dict) or not self.state.keys() <= agreement.segment.keys():
            raise Unfit("it holds other weights than the client segment's")
        agreement.check_segment(self.state, {name: agreement.segment[name] for name in self.state})


def _check_floats(name: str, value: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor) or not is_like(value, (torch.Size(shape), torch.float32)):
        raise Unfit(f"{name} is no float32 tensor of shape {shape}")
    if not (value.abs() <= LARGEST).all():  # which NaN is not
        raise Unfit(f"{name} holds NaN, Inf, or more than {LARGEST:g}")
