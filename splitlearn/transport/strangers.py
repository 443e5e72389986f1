"""Connections at the front desk: so many at most of each sort, and those of strangers not for long."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from splitlearn.transport.encrypted import Connection
from splitlearn.transport.relay import NUM_CONNECTIONS, end

MAX_STRANGERS = 64  # beside NUM_CONNECTIONS for each client


def most_strangers(num_clients: int) -> int:
    """That may be there at once, where so many clients may come."""
    return MAX_STRANGERS + NUM_CONNECTIONS * num_clients


class AtMost:
    """
    Args:
        most: connections that may be there at once. With one more, one has to go: the oldest of whoever has most. So
            strangers who say nothing keep nobody out, who needs a moment alone, unless they come from many addresses.
    """

    def __init__(self, most: int):
        self._most, self._lock = most, threading.Lock()
        self._here: dict[Connection, Hashable] = {}  # whose they are; the oldest first

    @contextmanager
    def one(self, connection: Connection, whose: Hashable = None) -> Iterator[None]:
        """Within this the connection counts."""
        with self._lock:
            while len(self._here) >= self._most:
                ((whose_most, _),) = Counter(self._here.values()).most_common(1)
                oldest = next(one for one, its in self._here.items() if its == whose_most)
                del self._here[oldest]
                end(oldest)
            self._here[connection] = whose
        try:
            yield
        finally:
            with self._lock:
                self._here.pop(connection, None)
