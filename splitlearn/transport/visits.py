"""Who is signed in at the front desk."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass

from splitlearn.transport.encrypted import Connection
from splitlearn.transport.relay import end

RETURN_WITHIN_S = 3.0  # a client whose connection broke signs in again meanwhile
IDS = 1 << 15  # RPC's worker ids are 16-bit integers; 0 is the server


@dataclass
class Visit:
    """A client's connection to the desk, as the server knows it.

    Attributes:
        key: signs its calls.
        peer: where it comes from.
        is_heard: calls of its have arrived.
        has_left: it said that it leaves.
        ended_at: of time.monotonic().
    """

    client: int
    id: int
    session: str
    key: bytes
    connection: Connection
    peer: str
    is_connected: bool = True
    is_heard: bool = False
    has_left: bool = False
    ended_at: float = 0.0


class Visits:
    """
    Args:
        num_clients: clients 0 to num_clients-1 may come.
        replaces: whether a new process of a client takes the place of one that is connected.
    """

    def __init__(self, num_clients: int, replaces: bool):
        self.num_clients, self.replaces = num_clients, replaces
        self._lock = threading.Lock()
        self._ids: Counter[int] = Counter()
        self._next_id = 1
        self._present: Counter[int] = Counter()  # connections by client
        self._last: dict[int, Visit] = {}  # by client

    def is_present(self, client: int) -> bool:
        """Whether a process of this client is connected."""
        return self._present[client] > 0

    def is_expected(self, client: int) -> bool:
        """Whether it is connected, or was until now and did not say that it leaves."""
        last = self._last.get(client)
        has_left = last is None or last.has_left or time.monotonic() > last.ended_at + RETURN_WITHIN_S
        return self.is_present(client) or not has_left

    def key_of(self, client: object, session: object) -> bytes | None:
        """What the calls of a client's session are signed with; None where it is not signed in."""
        with self._lock:
            last = self._last.get(client) if isinstance(client, int) else None
            return last.key if last and last.is_connected and last.session == session else None

    def here(self) -> list[Visit]:
        with self._lock:
            return [visit for visit in self._last.values() if visit.is_connected]

    def hears(self, client: int) -> None:
        """A client's calls arrive."""
        self._last[client].is_heard = True

    def admit(self, visit: Visit) -> str | None:
        """Lets a client that has the token in, in the place of its last connection; returns why not, if it is not."""
        client = visit.client
        if not 0 <= client < self.num_clients:
            return f"there is no client {client} of num_clients={self.num_clients}"
        with self._lock:
            last = self._last.get(client)
            comes_back = last is not None and last.session == visit.session
            # A process that was replaced does not come back, or both would replace each other for ever.
            if last and last.is_connected and not comes_back and not (self.replaces and visit.id == 0):
                return f"another process is connected as client {client}: give each its own client.index"
            if not (comes_back and visit.id == last.id):  # which keeps its id, while the old connection lasts too
                visit.id = self._give_id(visit.id)
            visit.is_heard = comes_back and last.is_heard
            self._ids[visit.id] += 1
            self._last[client] = visit
            self._present[client] += 1
        if last is not None:
            end(last.connection)  # or one client could hold any number
        return None

    def end(self, visit: Visit) -> bool:
        """A connection has ended; returns whether the client went before any call of its arrived."""
        with self._lock:
            visit.is_connected, visit.ended_at = False, time.monotonic()
            self._ids[visit.id] -= 1
            self._ids = +self._ids  # without those that nobody has
            self._present[visit.client] -= 1
            return not visit.is_heard and not self._present[visit.client]

    def _give_id(self, wanted: int) -> int:
        """An id that no connected process has; that of before for one that comes back."""
        if not 0 < wanted < IDS or self._ids[wanted]:
            while self._ids[self._next_id]:
                self._next_id = self._next_id % (IDS - 1) + 1
            wanted = self._next_id
            self._next_id = self._next_id % (IDS - 1) + 1
        return wanted
