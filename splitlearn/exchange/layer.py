"""The autograd Functions of a cut: a tensor goes over it encoded, and its gradient comes back encoded.

    sender      x ─ Send ─► encode ─► payload ═══════► decode ─ Receive ─► decoded      receiver
    backward    ◄── gate ◄─ decode ◄─ payload ◄═══════ encode ◄─────────── gradient

`Send` and `Receive` never see each other. On two machines the payloads cross by whatever drives the exchange. In one
process, `compress` joins them: Receive's input is Send's output, and what one encoded the other decodes, so that a
model trained with `compress` and the same one trained over a network get the same numbers, bit for bit.

In the backward pass compression is the identity (straight-through): the gradient with respect to the decoded tensor is
applied to the original one. With `gated` it passes only where the decoded value is not zero, so that what did not
arrive is not trained either.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from splitlearn.compressors import Compressor, Identity, MaskSparsifier, Payload

BACKWARD = ("straight_through", "gated")


class Sender(Protocol):
    """The sending end, for one tensor."""

    def encode(self, x: Tensor) -> Tensor | None:
        """Sends `x`; gives what its gradient is gated by, if it is."""

    def decode_gradient(self) -> Tensor:
        """The gradient that came back, of the shape, dtype and device of `x`."""


class Receiver(Protocol):
    """The receiving end, for one tensor."""

    def decode(self) -> Tensor:
        """What was sent."""

    def encode_gradient(self, gradient: Tensor) -> None:
        """Sends the gradient of what was decoded back."""


class Send(torch.autograd.Function):
    """Encodes in its forward, decodes and gates the gradient in its backward. Gives a 0-d tensor to start that from."""

    @staticmethod
    def forward(ctx, x: Tensor, sender: Sender) -> Tensor:
        ctx.sender = sender
        ctx.save_for_backward(sender.encode(x))
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, _):
        return gate(ctx.sender.decode_gradient(), *ctx.saved_tensors), None


class Receive(torch.autograd.Function):
    """Decodes in its forward, encodes the gradient in its backward. Its input is any tensor that requires grad."""

    @staticmethod
    def forward(ctx, start: Tensor, receiver: Receiver) -> Tensor:
        ctx.receiver, ctx.start = receiver, start.detach()
        return receiver.decode()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        ctx.receiver.encode_gradient(gradient)
        return torch.zeros_like(ctx.start), None


def gate(gradient: Tensor, decoded: Tensor | None) -> Tensor:
    """The gradient where `decoded` is not zero; all of it where there is nothing to gate by."""
    return gradient if decoded is None else torch.where(decoded != 0, gradient, 0)


def check_backward(backward: str) -> None:
    if backward not in BACKWARD:
        raise ValueError(f"backward={backward} is unknown: choose {' or '.join(BACKWARD)}")


class _BothEnds:
    """Both ends of a cut in one process: a Sender and a Receiver whose payloads change hands here."""

    def __init__(self, uplink: Compressor, downlink: Compressor, gated: bool):
        self.uplink, self.downlink, self.gated = uplink, downlink, gated

    def encode(self, x: Tensor) -> Tensor | None:
        self.decoded = self.uplink.decode(self.uplink.encode(x), x.device)
        return self.decoded if self.gated else None

    def decode(self) -> Tensor:
        return self.decoded

    def encode_gradient(self, gradient: Tensor) -> None:
        self.gradient: Payload = self.downlink.encode(gradient)
        self.device = gradient.device

    def decode_gradient(self) -> Tensor:
        return self.downlink.decode(self.gradient, self.device)


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
    ends = _BothEnds(uplink, downlink or Identity(), backward == "gated")
    return Receive.apply(Send.apply(x, ends), ends)


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
