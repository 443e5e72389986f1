"""What the roster asks of the server whose it is."""

from __future__ import annotations

from typing import Any, Protocol

from splitlearn.exchange.codecs import OfClients
from splitlearn.exchange.messages import Welcome
from splitlearn.exchange.rounds import RoundReply


class Host(Protocol):
    """Whose roster it is."""

    codecs: OfClients

    def build(self, about: dict[str, Any]) -> None:
        """Builds the network for the data of the first client.

        Raises:
            PeerError: it cannot be built for these, but maybe for another's.
            UserError: for nobody's.
        """

    def check_batches(self, client: int, num_train: int) -> None:
        """
        Raises:
            PeerError: the network cannot train on the batches that so many samples give.
            UserError: on those that anyone's give.
        """

    def welcome(self, client: int) -> Welcome:
        """What a client that joins goes on from."""

    def part(self, client: int, part: str) -> RoundReply:
        """What a client does next, and begins it with."""
