"""Connections that have not proved anything yet: so many at most, and none for long."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from splitlearn.transport.relay import NUM_CONNECTIONS, end

MAX_STRANGERS = 64  # beside NUM_CONNECTIONS for each client


def most_strangers(num_clients: int) -> int:
    """That may be there at once, where so many clients may come."""
    return MAX_STRANGERS + NUM_CONNECTIONS * num_clients


class Strangers:
    """
    Args:
        most: that may be there at once. With one more the oldest has to go: who has the token or a certificate needs a
            moment alone, so that those who say nothing keep nobody out.
    """

    def __init__(self, most: int):
        self._most, self._lock = most, threading.Lock()
        self._here: dict[socket.socket, None] = {}  # the oldest first

    @contextmanager
    def one(self, connection: socket.socket) -> Iterator[None]:
        """Within this the connection is a stranger's."""
        with self._lock:
            while len(self._here) >= self._most:
                oldest = next(iter(self._here))
                del self._here[oldest]
                end(oldest)
            self._here[connection] = None
        try:
            yield
        finally:
            with self._lock:
                self._here.pop(connection, None)
