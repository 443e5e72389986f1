"""One batch's way over the channels: both ends of the cut make a Passage for it.

It knows where in the run the batch is, which the random streams are named by, and keeps one `Transfer` for every
payload that was sent or received. `passage["smashed"].send(x)` gives what crosses, and `.backward(wire)` goes on with
the gradient that came back; `passage["smashed"].receive(wire)` gives what came, and its gradient's wire after a
backward pass. Both are the autograd Functions of layer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from splitlearn.compressors import Compressor, Payload
from splitlearn.compressors.trace import Trace
from splitlearn.errors import PayloadError, PeerError
from splitlearn.exchange import ragged
from splitlearn.exchange.channel import Channel, Transfer, relative_error, rms
from splitlearn.exchange.codecs import Codecs
from splitlearn.exchange.latest import Latest
from splitlearn.exchange.layer import Receive, Send
from splitlearn.exchange.wayback import WayBack, encode
from splitlearn.seeds import derive


class Passage:
    """One batch's way over the channels, at one end of the cut; `passage[name]` is its end of a channel.

    Args:
        codecs: of the client's channels.
        place: where in the run: what the random streams are named by, beside the channel.
        device: where tensors are wanted.
        peer: the other end, in words.
        max_samples: of a batch.
        measures_error: of what is sent from here.
        in_evaluation: uses the codecs of evaluation.
        is_trained: the client's part is, by this batch.
        stopwatch: measures the codecs' time, if one is given.
        samples: (B,) int64, which of the client's they are, at its end: of them the change may be sent (see latest.py).
    """

    def __init__(
        self,
        codecs: Codecs,
        place: Iterable[int],
        device: torch.device,
        peer: str,
        max_samples: int,
        measures_error: bool = False,
        in_evaluation: bool = False,
        is_trained: bool = True,
        stopwatch: Callable[[str], AbstractContextManager] | None = None,
        samples: Tensor | None = None,
    ):
        self.codecs, self.channels = codecs, codecs.channels
        self.place, self.device, self.peer = tuple(place), device, peer
        self.max_samples, self.measures_error, self.in_evaluation = max_samples, measures_error, in_evaluation
        self.is_trained, self.samples = is_trained, samples
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
        return self.codecs.of(channel, self.in_evaluation)

    def _latest(self, channel: Channel) -> Latest | None:
        """What the server holds of training samples, where the change is sent."""
        return None if self.in_evaluation else self.codecs.latest.get(channel.spec.name)

    def encode(
        self, channel: Channel, x: Tensor, of: Trace | None = None, lengths: Tensor | None = None
    ) -> tuple[Payload, WayBack]:
        """The payload of `x`, which may be the gradient of what left a trace, and the way back of its own gradient."""
        codec = self._codec(channel).linked_to(of)
        backward = channel.backward if channel.spec.back and not self.in_evaluation else "straight_through"
        latest = self._latest(channel)
        with self.timing("codec"):
            if not self.in_evaluation:
                codec.seed(derive(channel.seed, channel.spec.key, *self.place))
            base, is_change = latest.below(self.samples, x, lengths) if latest else (None, None)
            payload, way_back, decoded = encode(codec, x, backward, self.measures_error or bool(latest), base)
            if latest:
                payload = payload.joined(latest.section(self.samples, is_change))
                latest.keep(self.samples, decoded, lengths)
            error = relative_error(decoded, x) if self.measures_error else None
        self._book(channel, codec, payload, error, x, lengths)
        return payload, way_back

    def decode(
        self, channel: Channel, wire: Tensor, num_samples: int | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Trace | None]:
        """What `wire` holds, of so many samples, or of up to max_samples, and what its gradient goes by.

        Where there are lengths, of a ragged map, it is the rows of all samples.

        Raises:
            PeerError: it is no payload of what is expected.
        """
        codec = self._codec(channel)
        with self.timing("codec"), self._refusing():
            payload = Payload.parse(wire)
            if num_samples is None:
                num_samples = payload.shape[0] if payload.shape else 0
            if lengths is not None:
                num_samples = len(lengths)
            if not 1 <= num_samples <= self.max_samples:
                raise PayloadError(f"is of {num_samples} samples, where a batch has 1 to {self.max_samples}")
            num_rows = num_samples if lengths is None else int(lengths.sum())
            if latest := self._latest(channel):
                payload, *which = latest.parted(payload, num_samples)
            decoded = codec.decode(payload, self.device, channel.expected(payload, num_rows))
            if latest:
                decoded = latest.added(*which, decoded, lengths)
        self._book(channel, codec, payload, self.reported.get(channel.spec.name), decoded, lengths)
        return decoded, codec.trace

    def decode_gradient(self, channel: Channel, wire: Tensor, sent: Payload, way_back: WayBack) -> Tensor:
        """The gradient that `wire` holds of what was sent, as it is to be applied. Raises as `decode` does."""
        codec = self._codec(channel)
        with self.timing("codec"), self._refusing():
            payload = Payload.parse(wire)
            gradient = way_back.decode(codec, payload, self.device, (sent.shape, sent.dtype))
        self._book(channel, codec, payload, self.reported.get(channel.spec.name), gradient)
        return gradient

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except PayloadError as error:
            raise PeerError(f"{self.peer} sent a payload that {error}") from None

    def _book(
        self,
        channel: Channel,
        codec: Compressor,
        payload: Payload,
        error: float | None,
        x: Tensor,
        lengths: Tensor | None = None,
    ) -> None:
        value_bytes, (kept, of) = payload.dtype.itemsize, channel.kept
        of_lengths = ragged.DTYPE.itemsize * len(lengths) if lengths is not None and channel.spec.has_lengths else 0
        self.transfers.append(
            Transfer(
                channel.spec.name,
                payload.nbytes + of_lengths,
                payload.numel * value_bytes * of // kept,
                codec.formula_bits(payload.shape, 8 * value_bytes),
                error,
                codec.basis_nbytes(payload),
                None if error is None else rms(x),
            )
        )


class End:
    """A batch's end of a channel: sends or receives one tensor on it."""

    def __init__(self, passage: Passage, channel: Channel):
        self.passage, self.channel = passage, channel

    def send(self, x: Tensor, lengths: Tensor | None = None) -> Sent:
        """Encodes `x`, so that its gradient can come back on the channel's way back.

        `lengths` are (B,) int64, of samples that differ in length: of a ragged map only what they have is sent.
        """
        return Sent(self.passage, self.channel, x, lengths if self.channel.is_ragged else None)

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
        payload, _ = self._passage.encode(back, gradient, of=self._trace)
        self.gradient_wire = payload.tensor
