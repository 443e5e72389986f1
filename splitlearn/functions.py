"""The autograd Functions: compression as a layer of one process, and the cut that a network is split at.

Both compress alike, so that a model trained with `compress` in one process and the same model trained over the
network through `Cut` get the same numbers, bit for bit. In the backward pass compression is the identity
(straight-through): the gradient with respect to the decoded map is applied to the original one. With `gated` it
passes only where the decoded value is not zero, so that what did not reach the server is not trained either.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from splitlearn.compressors import Compressor, Identity, MaskSparsifier


class _Compress(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, uplink: Compressor, downlink: Compressor, backward: str) -> Tensor:
        decoded = uplink.decode(uplink.encode(x), x.device)
        ctx.downlink, ctx.gated = downlink, backward == "gated"
        ctx.save_for_backward(decoded if ctx.gated else None)
        return decoded

    @staticmethod
    def backward(ctx, gradient: Tensor):
        gradient = ctx.downlink.decode(ctx.downlink.encode(gradient), gradient.device)
        return gate(gradient, *ctx.saved_tensors), None, None, None


def gate(gradient: Tensor, decoded: Tensor | None) -> Tensor:
    """The gradient where `decoded` is not zero; all of it where there is nothing to gate by."""
    return gradient if decoded is None else torch.where(decoded != 0, gradient, 0)


def check_backward(backward: str) -> None:
    if backward not in ("straight_through", "gated"):
        raise ValueError(f"backward={backward} is unknown: choose straight_through or gated")


def compress(
    x: Tensor, uplink: Compressor, downlink: Compressor | None = None, backward: str = "straight_through"
) -> Tensor:
    """What the other side of a cut would get for `x`; its gradient comes back as through `downlink`.

    Args:
        x: floating point, any shape.
        uplink: compresses `x`.
        downlink: compresses the gradient; None leaves it as it is.
        backward: "straight_through" or "gated" (see the module's docstring).

    Returns:
        decode(encode(x)), of the shape, dtype and device of `x`.
    """
    check_backward(backward)
    return _Compress.apply(x, uplink, downlink or Identity(), backward)


def mask_sparsify(
    x: Tensor,
    ratio: float = 0.99,
    bits: int = 2,
    rounding: str = "nearest",
    backward: str = "straight_through",
    scope: str = "batch",
) -> Tensor:
    """Mask-encoded sparsification of `x` as a layer for any model: what a server would decode, with a gradient.

    Args:
        x: floating point, any shape.
        ratio: share of the values that is encoded in the mask alone, 0 ≤ ratio < 1.
        bits: width of a mask code, 1 to 8.
        rounding: "nearest" or "floor".
        backward: "straight_through" applies the gradient of the decoded map to `x`, as in the paper; "gated" does so
            only where the decoded value is not zero.
        scope: one threshold over the "batch", or one a "sample".

    Returns:
        The decoded map, of the shape, dtype and device of `x`.

    Raises:
        ValueError: an option is out of range.
        NonFiniteError: `x` holds NaN or Inf.

    Source: "Mask-Encoded Sparsification", ECAI 2024.
    """
    return compress(x, MaskSparsifier(ratio, bits, rounding, scope), backward=backward)


class Link(Protocol):
    """The client's end of a cut."""

    def forward(self, smashed: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Sends smashed data and labels; returns the loss (0-d) and what to gate the gradient by, if anything."""

    def backward(self) -> Tensor:
        """The cut gradient of the last forward, decoded, of the smashed data's shape and dtype."""


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, smashed: Tensor, labels: Tensor, link: Link) -> Tensor:
        loss, decoded = link.forward(smashed, labels)
        ctx.link = link
        ctx.save_for_backward(decoded)
        return loss

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gate(ctx.link.backward() * gradient, *ctx.saved_tensors), None, None


def cut(smashed: Tensor, labels: Tensor, link: Link) -> Tensor:
    """The rest of the network, on the server: the loss for this batch, with the cut gradient in its backward pass.

    Args:
        smashed: activations at the cut layer, (B, …), floating point.
        labels: (B,) int64.
        link: carries both to the server and the gradient back.

    Returns:
        The mean loss over the batch, 0-d float32.
    """
    return _Cut.apply(smashed, labels, link)
