"""The autograd Functions of a cut: a tensor goes over it encoded, and its gradient comes back encoded.

    sender      x ─ Send ─► encode ─► payload ═══════► decode ─ Receive ─► decoded      receiver
    backward    ◄─ weigh ◄─ decode ◄─ payload ◄═══════ encode ◄─────────── gradient

`Send` and `Receive` never see each other. On two machines the payloads cross by whatever drives the exchange; `send`
and `receive` are for a loop of one's own, which carries them as it likes. In one process, `compress` joins them:
Receive's input is Send's output, and what one encoded the other decodes, so that a model trained with `compress` and
the same one trained over a network get the same numbers, bit for bit.

In the backward pass compression is the identity (straight-through): the gradient with respect to the decoded tensor is
applied to the original one. It may be weighed by what arrived; wayback.py says how.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from splitlearn.compressors import Compressor, Identity, MaskSparsifier, Payload
from splitlearn.exchange.wayback import check_backward, check_linked, encode, knowing

Expected = tuple[tuple[int, ...], torch.dtype] | None


class Sender(Protocol):
    """The sending end, for one tensor."""

    def encode(self, x: Tensor) -> None:
        """Sends `x`."""

    def decode_gradient(self) -> Tensor:
        """The gradient that came back, as it is to be applied, of the shape, dtype and device of `x`."""


class Receiver(Protocol):
    """The receiving end, for one tensor."""

    def decode(self) -> Tensor:
        """What was sent."""

    def encode_gradient(self, gradient: Tensor) -> None:
        """Sends the gradient of what was decoded back."""


class Send(torch.autograd.Function):
    """Encodes in its forward, decodes the gradient in its backward. Gives a 0-d tensor to start that from."""

    @staticmethod
    def forward(ctx, x: Tensor, sender: Sender) -> Tensor:
        ctx.sender = sender
        sender.encode(x)
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, _):
        return ctx.sender.decode_gradient(), None


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


class _BothEnds:
    """Both ends of a cut in one process: a Sender and a Receiver whose payloads change hands here."""

    def __init__(self, uplink: Compressor, downlink: Compressor, backward: str):
        self.uplink, self.downlink, self.backward = uplink, downlink, backward

    def encode(self, x: Tensor) -> None:
        _, self.way_back, self.decoded = encode(self.uplink, x, self.backward, wants_decoded=True)
        self.trace = self.uplink.trace

    def decode(self) -> Tensor:
        return self.decoded

    def encode_gradient(self, gradient: Tensor) -> None:
        self.before = self.downlink.state_dict()
        self.gradient: Payload = self.downlink.linked_to(self.trace).encode(gradient)
        self.device = gradient.device

    def decode_gradient(self) -> Tensor:
        with knowing(self.downlink, self.before):
            return self.way_back.decode(self.downlink, self.gradient, self.device)


class Sent:
    """A tensor that goes over the cut, and the Sender of it; see `send`.

    Attributes:
        wire: what crosses, a 1-D uint8 tensor on the CPU.
    """

    def __init__(self, x: Tensor, uplink: Compressor, downlink: Compressor, backward: str):
        self._uplink, self._downlink, self._backward, self._x = uplink, downlink, backward, x.detach()
        self._start = Send.apply(x, self)

    def encode(self, x: Tensor) -> None:
        payload, self._way_back, _ = encode(self._uplink, x, self._backward)
        self.wire = payload.tensor

    def backward(self, gradient_wire: Tensor) -> None:
        """Goes on with the backward pass from the gradient that came back.

        Raises:
            PayloadError: it is no payload of a gradient of what was sent.
        """
        self._gradient_wire = gradient_wire
        self._start.backward()

    def decode_gradient(self) -> Tensor:
        payload, x = Payload.parse(self._gradient_wire), self._x
        return self._way_back.decode(self._downlink, payload, x.device, (x.shape, x.dtype))


class Received:
    """A tensor that came over the cut, and the Receiver of it; see `receive`.

    Attributes:
        tensor: decoded; requires grad.
        gradient_wire: after a backward pass, what crosses back, a 1-D uint8 tensor on the CPU.
    """

    def __init__(
        self, wire: Tensor, uplink: Compressor, downlink: Compressor, device: torch.device | str, expected: Expected
    ):
        self._wire, self._uplink, self._downlink, self._device = wire, uplink, downlink, torch.device(device)
        self._expected = expected
        self.tensor: Tensor = Receive.apply(torch.zeros((), requires_grad=True), self)

    def decode(self) -> Tensor:
        decoded = self._uplink.decode(Payload.parse(self._wire), self._device, self._expected)
        self._trace = self._uplink.trace
        return decoded

    def encode_gradient(self, gradient: Tensor) -> None:
        self.gradient_wire = self._downlink.linked_to(self._trace).encode(gradient).tensor


def _way_back(uplink: Compressor, downlink: Compressor | None) -> Compressor:
    downlink = downlink or Identity()
    check_linked(uplink, downlink, ("uplink", "downlink"))
    return downlink


def send(x: Tensor, uplink: Compressor, downlink: Compressor | None = None, backward: str = "auto") -> Sent:
    """Encodes `x` for the other side of a cut: `.wire` crosses, and `.backward(wire)` goes on with what comes back.

    Args:
        x: floating point, any shape, that requires grad.
        uplink: compresses `x`.
        downlink: the other side's, which compresses the gradient; None is that of `receive`.
        backward: "straight_through", "gated", "gain", "tangent" or "auto" (see wayback.py).
    """
    check_backward(backward)
    return Sent(x, uplink, _way_back(uplink, downlink), backward)


def receive(
    wire: Tensor,
    uplink: Compressor,
    downlink: Compressor | None = None,
    device: torch.device | str = "cpu",
    expected: Expected = None,
) -> Received:
    """Decodes what `send` gave on the other side: `.tensor`, and after its backward pass `.gradient_wire` to send back.

    Args:
        wire: 1-D uint8, on the CPU.
        uplink: the other side's, which compressed it.
        downlink: compresses the gradient; None leaves it as it is.
        device: where the tensor is wanted.
        expected: the shape and dtype that the tensor has to have. Without it the sender chooses them, and a few
            kilobytes may decode to gigabytes: give it where the other side is not to be trusted.

    Raises:
        PayloadError: it is no payload of this compressor, or of another shape or dtype than is expected.
    """
    return Received(wire, uplink, _way_back(uplink, downlink), device, expected)


def compress(x: Tensor, uplink: Compressor, downlink: Compressor | None = None, backward: str = "auto") -> Tensor:
    """What the other side of a cut would get for `x`; its gradient comes back as through `downlink`.

    Args:
        x: floating point, any shape.
        uplink: compresses `x`.
        downlink: compresses the gradient; None leaves it as it is.
        backward: "straight_through", "gated", "gain", "tangent" or "auto" (see wayback.py).

    Returns:
        decode(encode(x)), of the shape, dtype and device of `x`.
    """
    check_backward(backward)
    ends = _BothEnds(uplink, _way_back(uplink, downlink), backward)
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
            only where the decoded value is not zero; see wayback.py for all.
        scope: one threshold over the "batch", or one a "sample", "channel" (dimension 1) or "row" (all but the last).

    Returns:
        The decoded map, of the shape, dtype and device of `x`.

    Raises:
        ValueError: an option is out of range.
        NonFiniteError: `x` holds NaN or Inf.

    Source: "Mask-Encoded Sparsification", ECAI 2024.
    """
    return compress(x, MaskSparsifier(ratio, bits, rounding, scope), backward=backward)
