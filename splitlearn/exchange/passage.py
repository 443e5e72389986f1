"""One batch's way over the channels: both ends of the cut make a Passage for it.

It knows where in the run the batch is, which the random streams are named by, and keeps one `Transfer` for every
payload that was sent or received. `passage["smashed"].send(x)` gives what crosses, and `.backward(wire)` goes on with
the gradient that came back; `passage["smashed"].receive(wire)` gives what came, and its gradient's wire after a
backward pass (see ends.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from splitlearn.compressors import Compressor, Payload
from splitlearn.compressors.trace import Trace
from splitlearn.defences.checking import check_penalty
from splitlearn.defences.draws import Draws
from splitlearn.errors import PayloadError, PeerError, UserError
from splitlearn.exchange import ragged
from splitlearn.exchange.agreement import MAX_SUM
from splitlearn.exchange.channel import Channel, Transfer, relative_error, rms
from splitlearn.exchange.codecs import Codecs
from splitlearn.exchange.ends import End
from splitlearn.exchange.latest import Latest
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
        observes: keeps the tensors that cross, by channel, in `seen`.
        inputs: that the client's first tensor was computed from, for defences that go by them.
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
        observes: bool = False,
        inputs: Tensor | None = None,
        stopwatch: Callable[[str], AbstractContextManager] | None = None,
        samples: Tensor | None = None,
    ):
        self.codecs, self.channels = codecs, codecs.channels
        self.place, self.device, self.peer = tuple(place), device, peer
        self.max_samples, self.measures_error, self.in_evaluation = max_samples, measures_error, in_evaluation
        self.is_trained, self.samples, self.observes, self.inputs = is_trained, samples, observes, inputs
        self.seen: dict[str, Tensor] = {}
        self.timing = stopwatch or (lambda phase: nullcontext())
        self.transfers: list[Transfer] = []
        self.reported: dict[str, float] = {}  # errors that the other end has measured

    def __getitem__(self, name: str) -> End:
        if name not in self.channels:
            raise UserError(f"the exchange uses a channel {name}, and has {', '.join(self.channels)} alone")
        return End(self, self.channels[name])

    def take_errors(self) -> dict[str, float]:
        """Errors of what was sent since the last call, by channel."""
        errors = {one.channel: min(one.error, MAX_SUM) for one in self.transfers if one.error is not None}
        self.transfers.clear()
        return errors

    def forget_sent(self, since: int) -> None:
        """What was encoded after so many payloads is not sent; what came stays."""
        came = [one for one in self.transfers[since:] if self.channels[one.channel].spec.way != self.codecs.way]
        self.transfers[since:] = came

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
        self._see(channel, x)
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
            decoded = codec.decode(payload, self.device, channel.expected(num_rows))
            if latest:
                decoded = latest.added(*which, decoded, lengths)
        self._book(channel, codec, payload, self.reported.get(channel.spec.name), decoded, lengths)
        self._see(channel, decoded)
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

    def defended(self, channel: Channel, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What is encoded instead of `x`, in training, after the backward pass of what defences add to the loss.

        `lengths` are those of a ragged map's samples.
        """
        for name, defence in channel.defences.items() if not self.in_evaluation else ():
            if self.inputs is not None and x.requires_grad and self.is_trained:
                penalty = check_penalty(defence, defence.penalty(self.inputs, x))
                if penalty is not None:
                    penalty.backward(retain_graph=True)
            draws = Draws(channel.secret, x, name, channel.spec.key, *self.place)
            x = ragged.protected(x, lengths, defence, draws)
        return x

    def _see(self, channel: Channel, x: Tensor) -> None:
        if self.observes:
            self.seen[channel.spec.name] = x.detach().cpu().clone()

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
