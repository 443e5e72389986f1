"""A batch's ends of the channels: what is sent on one, and what is received, each an autograd Function of layer.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from splitlearn.errors import PeerError
from splitlearn.exchange import ragged
from splitlearn.exchange.channel import Channel
from splitlearn.exchange.layer import Receive, Send

if TYPE_CHECKING:
    from splitlearn.exchange.passage import Passage


class End:
    """A batch's end of a channel: sends or receives one tensor on it."""

    def __init__(self, passage: Passage, channel: Channel):
        self.passage, self.channel = passage, channel

    def send(self, x: Tensor, lengths: Tensor | None = None) -> Sent:
        """Encodes `x`, so that its gradient can come back on the channel's way back.

        `lengths` are (B,) int64, of samples that differ in length: of a ragged map only what they have is sent.
        """
        lengths = lengths if self.channel.is_ragged else None
        return Sent(self.passage, self.channel, self.passage.defended(self.channel, x, lengths), lengths)

    def keep(self, x: Tensor) -> None:
        """Does not send `x`: of defences, what they add to the loss is left of it (see Passage.defended)."""
        self.passage.defended(self.channel, x)

    def receive(self, wire: Tensor, num_samples: int | None = None, lengths: Tensor | None = None) -> Received:
        """Decodes what came, so that its gradient can be sent back.

        `lengths` are (B,), as they came or int64; of a map that is not ragged they do not matter.

        Raises:
            PeerError: it is no payload of so many samples, or of samples of these lengths.
        """
        lengths = lengths.to(self.passage.device).long() if lengths is not None and self.channel.is_ragged else None
        if lengths is not None and num_samples not in (None, len(lengths)):
            raise PeerError(f"{self.passage.peer} sent {len(lengths)} lengths of {num_samples} samples")
        return Received(self.passage, self.channel, wire, num_samples, lengths)


class Sent:
    """A tensor that went over the cut.

    Attributes:
        wire: what crosses, a 1-D uint8 tensor on the CPU.
        lengths: of a ragged map, what crosses beside it (see ragged.pack); else None.
    """

    def __init__(self, passage: Passage, channel: Channel, x: Tensor, lengths: Tensor | None):
        self._passage, self._channel, self._lengths = passage, channel, lengths
        self.lengths = None if lengths is None else ragged.pack(lengths)
        self._start = Send.apply(x if lengths is None else ragged.rows_of(x, lengths), self)

    def encode(self, x: Tensor) -> None:
        self._payload, self._way_back = self._passage.encode(self._channel, x, lengths=self._lengths)
        self.wire = self._payload.tensor

    def backward(self, gradient_wire: Tensor) -> None:
        """Goes on with the backward pass from the gradient that came back, if anything before the cut is trained."""
        self._gradient_wire = gradient_wire
        if self._channel.has_gradient:
            self._start.backward()

    def decode_gradient(self) -> Tensor:
        back = self._passage.channels[self._channel.spec.back]
        return self._passage.decode_gradient(back, self._gradient_wire, self._payload, self._way_back)


class Received:
    """A tensor that came over the cut.

    Attributes:
        tensor: decoded; requires grad, where the channel has a way back that is needed.
        lengths: (B,) int64 on the device, of a ragged map; else None.
        gradient_wire: after a backward pass, what crosses back, a 1-D uint8 tensor on the CPU; empty if nothing does.
    """

    def __init__(
        self, passage: Passage, channel: Channel, wire: Tensor, num_samples: int | None, lengths: Tensor | None
    ):
        self._passage, self._channel, self.lengths = passage, channel, lengths
        self._wire, self._num_samples = wire, num_samples
        self.gradient_wire = torch.empty(0, dtype=torch.uint8)
        received = Receive.apply(torch.zeros((), requires_grad=True), self)
        received = received if lengths is None else ragged.padded(received, lengths)
        self.tensor: Tensor = received if channel.has_gradient else received.detach()

    def decode(self) -> Tensor:
        decoded, self._trace = self._passage.decode(self._channel, self._wire, self._num_samples, self.lengths)
        return decoded

    def encode_gradient(self, gradient: Tensor) -> None:
        back = self._passage.channels[self._channel.spec.back]
        if back.defences and self.lengths is not None:  # which act on samples, not on rows
            gradient = self._passage.defended(back, ragged.padded(gradient, self.lengths), self.lengths)
            gradient = ragged.rows_of(gradient, self.lengths)
        else:
            gradient = self._passage.defended(back, gradient)
        payload, _ = self._passage.encode(back, gradient, of=self._trace)
        self.gradient_wire = payload.tensor
