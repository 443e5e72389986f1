"""Backward passes in float16: gradients are brought into its range by a power of two, which is each batch's own.

    gradient, float32 ─► × 2ᵏ ─► a part's backward pass, float16 ─► × 2⁻ᵏ ─► of its input and weights, float32

k brings the largest value of the gradient that comes in to 2⁻⁴, the middle of float16's range: 2²⁰ are left below it,
until values become zeros, and above it, until they overflow. So there is no loss scale to find by overflows whose
steps are lost, as torch.amp.GradScaler's is: nothing to keep alike at both ends, or in a checkpoint, and nothing that
crosses the cut is scaled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MIDDLE = -4  # between float16's smallest value, 2⁻²⁴, and its largest, 2¹⁶


class Scale:
    """Of one forward and backward pass of a part; k is known when the backward pass begins."""

    def __init__(self) -> None:
        self.exponent: Tensor | None = None

    def begin(self, x: Tensor) -> Tensor:
        """The part's input, or a weight: its gradient is brought back."""
        return _Begin.apply(x, self) if x.requires_grad else x

    def end(self, x: Tensor) -> Tensor:
        """The part's output, float32: its gradient is brought into the range."""
        return _End.apply(x, self)


class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Scale) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.ldexp(gradient, -ctx.scale.exponent), None


class _End(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Scale) -> Tensor:
        ctx.scale, ctx.dtype = scale, x.dtype
        return x.float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        largest = gradient.detach().abs().amax()
        exponent = MIDDLE - torch.frexp(largest).exponent
        ctx.scale.exponent = torch.where(largest.isfinite(), exponent, 0)
        return torch.ldexp(gradient, ctx.scale.exponent).to(ctx.dtype), None
