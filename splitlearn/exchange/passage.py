"""One batch's way over the channels: both ends of the cut make a Passage for it.

It knows where in the run the batch is, which the random streams are named by, and keeps one `Transfer` for every
payload that was sent or received. `passage["smashed"].send(x)` gives what crosses, and `.backward(wire)` goes on with
the gradient that came back; `passage["smashed"].receive(wire)` gives what came, and its gradient's wire after a
backward pass. Both are the autograd Functions of layer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from splitlearn.compressors import Compressor, Payload
from splitlearn.errors import PayloadError, PeerError
from splitlearn.exchange.channel import Channel, Transfer, relative_error
from splitlearn.exchange.layer import Receive, Send
from splitlearn.seeds import derive


class Passage:
    """One batch's way over the channels, at one end of the cut; `passage[name]` is its end of a channel.

    Args:
        channels: of the run, by name.
        place: where in the run: what the random streams are named by, beside the channel.
        device: where tensors are wanted.
        peer: the other end, in words.
        max_samples: of a batch.
        measures_error: of what is sent from here.
        in_evaluation: uses the codecs of evaluation.
        stopwatch: measures the codecs' time, if one is given.
    """

    def __init__(
        self,
        channels: dict[str, Channel],
        place: Iterable[int],
        device: torch.device,
        peer: str,
        max_samples: int,
        measures_error: bool = False,
        in_evaluation: bool = False,
        stopwatch: Callable[[str], AbstractContextManager] | None = None,
    ):
        self.channels, self.place, self.device, self.peer = channels, tuple(place), device, peer
        self.max_samples, self.measures_error, self.in_evaluation = max_samples, measures_error, in_evaluation
        self.timing = stopwatch or (lambda phase: nullcontext())
        self.transfers: list[Transfer] = []
        self.reported: dict[str, float] = {}  # errors that the other end has measured

    def __getitem__(self, name: str) -> End:
        return End(self, self.channels[name])

    def take_errors(self) -> dict[str, float]:
        """Errors of what was sent since the last call, by channel."""
        errors = {one.channel: one.error for one in self.transfers if one.error is not None}
        self.transfers.clear()
        return errors

    def _codec(self, channel: Channel) -> Compressor:
        return channel.evaluation_codec if self.in_evaluation else channel.codec

    def encode(self, channel: Channel, x: Tensor) -> tuple[Payload, Tensor | None]:
        """The payload of `x`, and what the other end decodes, where its gradient is gated by that."""
        codec, is_gated = self._codec(channel), channel.gated and not self.in_evaluation
        with self.timing("codec"):
            if not self.in_evaluation:
                codec.seed(derive(channel.seed, channel.spec.key, *self.place))
            payload = codec.encode(x)
            decoded = codec.decode(payload, x.device) if is_gated or self.measures_error else None
            error = relative_error(decoded, x) if self.measures_error else None
        self._book(channel, payload, error)
        return payload, decoded if is_gated else None

    def decode(self, channel: Channel, wire: Tensor, like: Payload | None = None, num_samples: int | None = None):
        """What `wire` holds: of the shape and dtype of `like`, or of so many samples, or of up to max_samples.

        Raises:
            PeerError: it is no payload of what is expected.
        """
        with self.timing("codec"):
            try:
                payload = Payload.parse(wire)
                if like is not None:
                    expected = like.shape, like.dtype
                else:
                    if num_samples is None:
                        num_samples = payload.shape[0] if payload.shape else 0
                    if not 1 <= num_samples <= self.max_samples:
                        raise PayloadError(f"is of {num_samples} samples, where a batch has 1 to {self.max_samples}")
                    expected = channel.expected(payload, num_samples)
                decoded = self._codec(channel).decode(payload, self.device, expected)
            except PayloadError as error:
                raise PeerError(f"{self.peer} sent a payload that {error}") from None
        self._book(channel, payload, self.reported.get(channel.spec.name))
        return decoded

    def _book(self, channel: Channel, payload: Payload, error: float | None) -> None:
        value_bytes, (kept, of) = payload.dtype.itemsize, channel.kept
        self.transfers.append(
            Transfer(
                channel.spec.name,
                payload.nbytes,
                payload.numel * value_bytes * of // kept,
                self._codec(channel).formula_bits(payload.shape, 8 * value_bytes),
                error,
            )
        )


class End:
    """A batch's end of a channel: sends or receives one tensor on it."""

    def __init__(self, passage: Passage, channel: Channel):
        self.passage, self.channel = passage, channel

    def send(self, x: Tensor) -> Sent:
        """Encodes `x`, so that its gradient can come back on the channel's way back."""
        return Sent(self.passage, self.channel, x)

    def receive(self, wire: Tensor, num_samples: int | None = None) -> Received:
        """Decodes what came, so that its gradient can be sent back."""
        return Received(self.passage, self.channel, wire, num_samples)


class Sent:
    """A tensor that went over the cut.

    Attributes:
        wire: what crosses, a 1-D uint8 tensor on the CPU.
    """

    def __init__(self, passage: Passage, channel: Channel, x: Tensor):
        self._passage, self._channel = passage, channel
        self._start = Send.apply(x, self)

    def encode(self, x: Tensor) -> Tensor | None:
        self._payload, decoded = self._passage.encode(self._channel, x)
        self.wire = self._payload.tensor
        return decoded

    def backward(self, gradient_wire: Tensor) -> None:
        """Goes on with the backward pass from the gradient that came back, if anything before the cut is trained."""
        self._gradient_wire = gradient_wire
        if self._channel.has_gradient:
            self._start.backward()

    def decode_gradient(self) -> Tensor:
        back = self._passage.channels[self._channel.spec.back]
        return self._passage.decode(back, self._gradient_wire, like=self._payload)


class Received:
    """A tensor that came over the cut.

    Attributes:
        tensor: decoded; requires grad, where the channel has a way back that is needed.
        gradient_wire: after a backward pass, what crosses back, a 1-D uint8 tensor on the CPU; empty if nothing does.
    """

    def __init__(self, passage: Passage, channel: Channel, wire: Tensor, num_samples: int | None):
        self._passage, self._channel = passage, channel
        self._wire, self._num_samples = wire, num_samples
        self.gradient_wire = torch.empty(0, dtype=torch.uint8)
        received = Receive.apply(torch.zeros((), requires_grad=True), self)
        self.tensor: Tensor = received if channel.has_gradient else received.detach()

    def decode(self) -> Tensor:
        return self._passage.decode(self._channel, self._wire, num_samples=self._num_samples)

    def encode_gradient(self, gradient: Tensor) -> None:
        back = self._passage.channels[self._channel.spec.back]
        payload, _ = self._passage.encode(back, gradient)
        self.gradient_wire = payload.tensor
