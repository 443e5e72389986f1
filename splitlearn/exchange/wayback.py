"""What the sending end of a cut does to the gradient that comes back, and what it keeps of a tensor for that.

straight_through    the gradient as it is: as if compression were the identity, as in the papers
gated               only where the decoded value is not zero, so that what did not arrive is not trained either
gain                each component times E[c ĉ] / E[c²], the share of it that arrived: of a codec with a basis its
                    components, of any other the channels
auto                gain for a codec with a basis, straight_through for any other, and where only changes are sent
tangent             as auto, less what of it lies along the tensor's own vector at each place or token; all of it where
                    the gradient came uncompressed

Where only the change of a tensor is sent (see latest.py), these are about the tensor that the other end has then, and
gain is by channels: of what the change leaves out, that end holds something already.

Why tangent: what a normalisation follows does not change with its input's length, so that the gradient has next to
nothing along it; what a codec makes of the gradient has. A step by that lengthens the vectors, and nothing shortens
them again: in the residual stream of a pre-norm transformer they grow from step to step, and training stalls
(docs/language.md). To take it off costs no bytes: the sender knows what it sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from splitlearn.compressors import Compressor, Payload
from splitlearn.compressors.trace import Trace
from splitlearn.kernels.channels import by_channel, channel_axis, from_channels

BACKWARD = ("auto", "straight_through", "gated", "gain", "tangent")


def check_backward(backward: str) -> None:
    if backward not in BACKWARD:
        raise ValueError(f"backward={backward} is unknown: choose {', '.join(BACKWARD[:-1])} or {BACKWARD[-1]}")


def check_linked(uplink: Compressor, downlink: Compressor, keys: tuple[str, str]) -> None:
    """Raises ValueError where a gradient is to come back in a basis that there is not."""
    if downlink.is_linked and not uplink.has_basis:
        raise ValueError(
            f"{keys[1]}={downlink.name} sends the gradient in the basis of what was sent, and {keys[0]}={uplink.name}"
            f" has none: choose {keys[0]}=klt, or another {keys[1]}"
        )


@dataclass(frozen=True)
class WayBack:
    """
    Attributes:
        sender: the codec of what was sent, which may go by the gradient.
        trace: of it, with gains only where they are wanted.
        decoded: what arrived, where the gradient is gated by that.
        gains: (C,) float32 of the channels, where the codec left no trace and they are wanted.
        sent: what was sent, where what lies along it is to be taken off.
    """

    sender: Compressor
    trace: Trace | None = None
    decoded: Tensor | None = None
    gains: Tensor | None = None
    sent: Tensor | None = None

    def decode(self, codec: Compressor, payload: Payload, *context) -> Tensor:
        """The gradient that a payload holds, as it is to be applied. `context` as for Compressor.decode."""
        has_gains = self.trace is not None and self.trace.gains is not None
        follow = has_gains and (self.sender.learns or not codec.is_linked)  # linked has them at hand
        codec = codec.linked_to(replace(self.trace, gains=None) if follow else self.trace)
        gradient = codec.decode(payload, *context)
        with torch.autocast(gradient.device.type, enabled=False):
            return self._applied(gradient, follow, codec.is_exact)

    def _applied(self, gradient: Tensor, follow: bool, is_exact: bool) -> Tensor:
        if self.sender.learns:
            self.sender.learn(gradient)
        if follow:
            gradient = self.trace.gained(gradient)
        if self.gains is not None:
            rows = by_channel(gradient) * self.gains.to(gradient.device, gradient.dtype).unsqueeze(1)
            gradient = from_channels(rows, gradient.shape).contiguous()
        if self.sent is not None and not is_exact:
            gradient = tangent(gradient, self.sent)
        return gradient if self.decoded is None else torch.where(self.decoded != 0, gradient, 0)


def encode(codec: Compressor, x: Tensor, backward: str, wants_decoded: bool = False, held: Tensor | None = None):
    """The payload of a tensor, its way back, and what the other end has of it then, where that is wanted.

    Where that end holds something of it already, only the change is encoded, and what is wanted is the sum.
    """
    before = codec.state_dict()
    payload = codec.encode(x if held is None else (x - held).to(x.dtype))
    trace = codec.trace
    sent = x.detach() if backward == "tangent" else None
    if backward in ("auto", "tangent"):
        backward = "gain" if codec.has_basis and held is None else "straight_through"
    if trace is not None and (backward != "gain" or held is not None):
        trace = replace(trace, gains=None)  # those of a change say nothing of what arrived in all
    by_channel = backward == "gain" and (trace is None or held is not None)
    needs = wants_decoded or backward == "gated" or by_channel
    decoded = None
    if needs:
        with knowing(codec, before):
            decoded = codec.decode(payload, x.device)
        if held is not None:
            decoded = (held + decoded).to(x.dtype)
    gains = channel_gains(x, decoded) if by_channel else None
    return payload, WayBack(codec, trace, decoded if backward == "gated" else None, gains, sent), decoded


@contextmanager
def knowing(codec: Compressor, state: dict[str, Any]) -> Iterator[None]:
    """Within, a codec knows what it knew then, as the other end does until a payload arrives; afterwards, what now."""
    now = codec.state_dict()
    codec.load_state_dict(state)
    try:
        yield
    finally:
        codec.load_state_dict(now)


def channel_gains(x: Tensor, decoded: Tensor) -> Tensor:
    """(C,) float32: E[x x̂] / E[x²] of each channel, from 0 to 1; 0 for one of zeros."""
    scale = x.abs().amax().clamp_min(torch.finfo(x.dtype).tiny)
    rows, found = (by_channel(one.detach() / scale).float() for one in (x, decoded))
    return ((rows * found).sum(1) / rows.square().sum(1).clamp_min(1e-30)).clamp_(0, 1)


def tangent(gradient: Tensor, x: Tensor) -> Tensor:
    """A gradient, of the shape of `x`, less what lies along the vector of `x` over the channels at each place."""
    axis = channel_axis(x.shape) if x.dim() > 1 else 0
    scale = x.abs().amax(axis, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    along = F.normalize((x / scale).float(), dim=axis)
    wide = gradient.float()
    return (wide - along * (along * wide).sum(axis, keepdim=True)).to(gradient.dtype)
