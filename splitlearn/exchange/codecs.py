"""The codecs between one client and the server: what they know of each other's tensors goes with the client.

A codec that keeps state, such as a basis, has the sender's at one end and the receiver's at the other. The sender's
says all, so that both ends can go on from it: `state` is what this end's senders know, and `load` takes the senders' of
both ends. Where a client begins without a state, with the run's first weights or after others have trained, both ends
begin anew, and the next payload brings what the other end needs.

What the server holds of a client's samples (see latest.py) does not go by weights: it stays with the client. Both ends
have it, and the server's is what is kept for the run.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from splitlearn.compressors import Compressor, Identity
from splitlearn.exchange.agreement import Agreement
from splitlearn.exchange.channel import Channel
from splitlearn.exchange.latest import Entry, Latest

Mark = tuple[dict[str, dict[str, Any]], dict[str, dict[int, Entry]]]


class Codecs:
    """
    Args:
        channels: of the run, by name.
        way: that this end sends, "up" or "down".

    Attributes:
        channels: the same.
        latest: of the client's samples, by channel, where the change is sent.
    """

    def __init__(self, channels: dict[str, Channel], way: str):
        self.channels, self.way = channels, way
        self._own = {name: copy.deepcopy(one.codec) for name, one in channels.items() if one.codec.keeps_state}
        self.latest = {name: Latest(one.delta) for name, one in channels.items() if one.delta}
        self.start_evaluation()

    def of(self, channel: Channel, in_evaluation: bool) -> Compressor:
        """The codec of a channel, to train or to evaluate through."""
        if not in_evaluation:
            return self._own.get(channel.spec.name, channel.codec)
        if not channel.is_compressed_in_evaluation:
            return Identity()
        return self._in_evaluation.get(channel.spec.name) or channel.codec.for_evaluation()

    def start_evaluation(self) -> None:
        """Test batches follow: what is known of maps in training does not hold for theirs."""
        self._in_evaluation = {name: codec.for_evaluation() for name, codec in self._own.items()}

    def state(self) -> dict[str, dict[str, Any]]:
        """What this end's senders know, by channel; later steps do not change it."""
        return {
            name: codec.state_dict() for name, codec in self._own.items() if self._sends(name) and codec.state_dict()
        }

    def load(self, states: dict[str, dict[str, Any]]) -> None:
        """Goes on from what both ends' senders knew; those that are not in it begin anew."""
        for name, codec in self._own.items():
            codec.load_state_dict(states.get(name, {}))
        self.start_evaluation()

    def known(self) -> dict[str, dict[str, Any]]:
        """What this end's codecs know of both ways, by channel; later steps do not change it."""
        return {name: codec.state_dict() for name, codec in self._own.items()}

    def mark(self) -> Mark:
        """What this end's senders know, and what they have sent of samples; later steps do not change it."""
        return self.state(), {name: one.entries for name, one in self.latest.items() if self._sends(name)}

    def go_back(self, mark: Mark) -> None:
        """To what was marked before something that was not sent."""
        state, entries = mark
        for name, codec in self._own.items():
            if self._sends(name):
                codec.load_state_dict(state.get(name, {}))
        for name, of_samples in entries.items():
            self.latest[name].entries = of_samples

    def _sends(self, name: str) -> bool:
        return self.channels[name].spec.way == self.way

    # Samples

    def latest_state(self) -> dict[str, dict[str, Tensor]]:
        """What the server holds of the client's samples, by channel."""
        return {name: state for name, latest in self.latest.items() if (state := latest.state())}

    def begin(self, num_samples: int, states: dict[str, dict[str, Tensor]] | None) -> None:
        """The client has so many training samples; goes on from what the server holds of them, where it is told."""
        for name, latest in self.latest.items():
            latest.num_samples = num_samples
            if states is not None:
                latest.load(states.get(name, {}))


class OfClients(dict[int, Codecs]):
    """The server's end of all clients' codecs, by client.

    Attributes:
        frozen: of the clients' segments, which they do not hand in.
    """

    def __init__(self, channels: dict[str, Channel], num_clients: int):
        super().__init__({client: Codecs(channels, "down") for client in range(num_clients)})
        self.frozen: dict[str, Tensor] = {}

    def completed(self, client: int, state: dict[str, Any]) -> dict[str, Any]:
        """A state that a client handed in, with what is frozen, and what this end knows of it."""
        return {
            **state,
            "segment": self.frozen | state["segment"],
            "codecs": state.get("codecs", {}) | self[client].state(),
        }

    def keep_frozen(self, state: dict[str, Any], agreement: Agreement) -> None:
        """Remembers what of a state, or of weights alone, clients do not hand in."""
        segment = state.get("segment", state)
        self.frozen = {name: value for name, value in segment.items() if name not in agreement.changing}

    def load(self, client: int, state: dict[str, Any]) -> None:
        """A client goes on from a state, which may be weights alone."""
        self[client].load(state.get("codecs", {}))

    def welcome(self, client: int, state: dict[str, Any], num_samples: int) -> dict[str, Any]:
        """A client that has so many training samples comes; returns what it is told that is held of them."""
        self.load(client, state)
        self[client].begin(num_samples, None)
        return self[client].latest_state()

    @property
    def latest_nbytes(self) -> int:
        """Memory that it takes what is held of all clients' samples."""
        return sum(latest.nbytes for codecs in self.values() for latest in codecs.latest.values())

    def latest_states(self) -> dict[int, dict[str, dict[str, Tensor]]]:
        """The same for a checkpoint, by client."""
        return {client: state for client, codecs in self.items() if (state := codecs.latest_state())}

    def load_latest(self, states: dict[int, dict[str, dict[str, Tensor]]]) -> None:
        for client, state in states.items():
            self[client].begin(0, state)  # which says when it comes how many there are
