"""The server's side of every call: requests that wait for the server's main thread, each answered once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from torch.futures import Future

from splitlearn.console import legible
from splitlearn.errors import PeerError
from splitlearn.transport.visits import RETURN_WITHIN_S

LOOK_EVERY_S = 1.0  # how often a wait for a client looks whether it is still there
MAX_NAMES = 4  # of clients in a sentence
REPLACED = "another process has joined as this client: give each its own client.index"


def names_of(clients: list[int]) -> str:
    """Clients in words, the first few by their numbers."""
    more = len(clients) - MAX_NAMES
    *others, last = [*map(str, clients[:MAX_NAMES]), *([f"{more} other{'s' * (more > 1)}"] if more > 0 else [])]
    return f"clients {', '.join(others)} and {last}" if others else f"client {last}"


class Request:
    """A client's call, waiting for its answer."""

    def __init__(self, client: int, number: int, kind: str, body: tuple):
        self.client, self.number, self.kind, self.body = client, number, kind, body
        self.future: Future = Future()
        self.arrived_at = time.perf_counter()
        self.is_taken = False
        self._lock = threading.Lock()  # threads of RPC's answer too

    def reply(self, value: Any = None) -> None:
        self._answer("done", value)

    def send_back(self) -> None:
        """Tells the client to join again, since the run has gone on without it."""
        self._answer("rejoin", None)

    def fail(self, why: str) -> bool:
        """Returns whether the client is told, which it is not where it was answered before."""
        return self._answer("failed", why)

    def _answer(self, status: str, value: Any) -> bool:
        with self._lock:
            if is_first := not self.future.done():
                self.future.set_result((status, value))
            return is_first


class Inbox:
    """At most one request a client, since a client waits for its answer.

    A client process has a session, and numbers its calls. A repeated number gets the first one's answer, from memory,
    so that a call that is sent again is never applied twice; the body counts that came last. A new session under the
    same client takes its place; the front desk sees to it that an old one does not come back.

    Args:
        num_clients: how many there can be.
        timeout_s: how long a request may take to come.
        is_open: the failure of one client is not the run's: it is a request like others.

    Attributes:
        is_alive: whether a client, that nothing was heard of, is still there; given by the transport.
        troubles: what kept a client from coming, in words, by client; likewise.
        where: the address that clients on other machines have to reach; likewise.
    """

    def __init__(self, num_clients: int, timeout_s: float, is_open: bool = False):
        self.num_clients, self.timeout_s, self.is_open = num_clients, timeout_s, is_open
        self.is_alive: Callable[[int], bool] = lambda client: True
        self.troubles: dict[int, str] = {}
        self.where: str | None = None
        self._latest: list[Request | None] = [None] * num_clients
        self._sessions: list[str | None] = [None] * num_clients
        self._failure: str | None = None
        self._closed = False  # by the server, because of the failure
        self.changed = threading.Condition()

    def deliver(self, client: int, session: str, number: int, kind: str, body: tuple) -> Future:
        """Called by RPC threads. The future's value is ("done", answer), ("failed", why) or ("rejoin", None)."""
        request, why = Request(client, number, kind, body), f"the client has sent its {kind} since"
        with self.changed:
            latest = self._latest[client]
            if session == self._sessions[client] and latest is not None and number <= latest.number:
                if number == latest.number:
                    latest.body = body
                    return latest.future
                request.fail("was answered before")  # a straying copy, that nobody waits for
                return request.future
            if session != self._sessions[client]:
                if kind not in ("hello", "failed"):
                    if self._sessions[client] is None:
                        request.send_back()  # this server was started anew
                    else:
                        request.fail(REPLACED)
                    return request.future
                self._sessions[client] = session
                why = REPLACED
            if latest is not None:
                latest.fail(why)  # or it would wait for ever; nothing where it is answered
            self._latest[client] = request
            if kind == "failed" and not self.is_open:
                says_why = isinstance(body, tuple) and body and isinstance(body[0], str)
                why = legible(body[0]) if says_why else "it does not say why"
                self._failure = self._failure or f"client {client} stopped: {why}"
            if self._closed:
                request.fail(self._failure)
            self.changed.notify_all()
            return request.future

    def meet(self, come_within_s: float, waiting: Callable[[list[int]], None] = lambda missing: None) -> list[Request]:
        """Waits for the hello of every client, so long after the last one that came.

        `waiting` is called about once a second with those that are missing.

        Raises:
            PeerError: a client failed, or did not come.
        """
        last_came_at, num_left = time.monotonic(), 2 * self.num_clients
        with self.changed:
            while missing := sorted(set(range(self.num_clients)) - self.new_requests().keys()):
                absent = [client for client in missing if not self.is_alive(client)]
                if len(missing) + len(absent) < num_left:  # many that start on one machine come one after the other
                    last_came_at, num_left = time.monotonic(), len(missing) + len(absent)
                waited_s = time.monotonic() - last_came_at
                if (absent and waited_s > come_within_s) or waited_s > self.timeout_s:
                    troubles = "; ".join(f"client {client} {self.troubles[client]}" for client in sorted(self.troubles))
                    raise PeerError(
                        f"{names_of(absent or missing)} did not come within {waited_s:.0f} s"
                        f"{f' ({troubles})' if troubles else ''}: start all of num_clients={self.num_clients} clients,"
                        f"{f' let them reach {self.where},' if self.where else ''} or raise rpc.connect_timeout_s"
                    )
                waiting(missing)
                self.changed.wait(LOOK_EVERY_S)
                if self._failure:
                    raise PeerError(self._failure)
        return [self.take(client, "hello") for client in range(self.num_clients)]

    def take(self, client: int, *kinds: str) -> Request:
        """Waits for the client's next request, which must be of one of these kinds.

        Raises:
            PeerError: a client failed, is gone, or sent nothing for `timeout_s`.
        """
        deadline, gone_at = time.monotonic() + self.timeout_s, None
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._failure or self._is_new(client), LOOK_EVERY_S)
                if self._failure:
                    raise PeerError(self._failure)
                if self._is_new(client):
                    request = self._latest[client]
                    if request.kind not in kinds:
                        raise PeerError(f"client {client} sent {request.kind} where {' or '.join(kinds)} was due")
                    request.is_taken = True
                    return request
            gone_at = None if self.is_alive(client) else gone_at or time.monotonic()
            if gone_at and time.monotonic() > gone_at + RETURN_WITHIN_S:
                raise PeerError(f"client {client} is gone: its process ended or its connection broke")
            if time.monotonic() > deadline:
                raise PeerError(
                    f"client {client} did not send its {' or '.join(kinds)} within {self.timeout_s:.0f} s"
                    " (rpc.timeout_s)"
                )

    def new_requests(self) -> dict[int, Request]:
        """What was not taken yet, by client."""
        with self.changed:
            return {client: self._latest[client] for client in range(self.num_clients) if self._is_new(client)}

    def fail(self, why: str) -> None:
        """Answers every waiting and coming request with why the run ends."""
        with self.changed:
            self._failure = self._failure or why
            self._closed = True
            for request in self._latest:
                if request is not None:
                    request.fail(self._failure)

    def _is_new(self, client: int) -> bool:
        request = self._latest[client]
        return request is not None and not request.is_taken
