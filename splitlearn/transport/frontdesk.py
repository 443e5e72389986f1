"""Where clients that are started on their own find the server: a plain socket that tells them how to reach its RPC.

Both sides prove that they have the token (see handshake.py). The connection stays open as long as the client lives, so
that the server sees at once when a client's process has ended. A process that comes back signs in under its session;
that of another process takes the client's place, if the old one is gone or `replaces` says so.
"""

from __future__ import annotations

import secrets
import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from splitlearn.errors import UserError
from splitlearn.transport.guard import refuse
from splitlearn.transport.handshake import LINE_NBYTES, MALFORMED, Line, calls_key
from splitlearn.transport.token import is_signed, sign

MAX_STRANGERS = 64  # connections that have not proved anything yet, beside one for each client
KEEPALIVES = 3  # without an answer
IDS = 1 << 15  # RPC's worker ids are 16-bit integers; 0 is the server
BACKLOG = 1024  # connections that the system holds until they are accepted: all clients may come at once


class FrontDesk:
    """The server's side, in threads of its own, listening on `host` alone.

    Args:
        host, port: where to listen.
        address: of the server's RPC.
        num_clients: clients 0 to num_clients-1 may come.
        token: see token.py.
        on_change: called when a client's process has come or gone.
        replaces: whether a new process of a client takes the place of one that is connected.
        silence_s: after so long, a machine that answers nothing is gone.
    """

    def __init__(
        self,
        host: str,
        port: int,
        address: str,
        num_clients: int,
        token: bytes,
        on_change: Callable[[], None] = lambda: None,
        replaces: bool = False,
        silence_s: float = 600,
    ):
        self.address, self.num_clients, self.token, self.on_change = address, num_clients, token, on_change
        self.replaces, self.silence_s = replaces, silence_s
        self._lock = threading.Lock()
        self._ids: set[int] = set()
        self._next_id = 1
        self._present: Counter[int] = Counter()  # connections by client
        self._visits: dict[int, Visit] = {}  # the last one by client
        self._strangers = threading.BoundedSemaphore(MAX_STRANGERS + num_clients)
        try:
            self._server = _Listener((host, port), _Handler)
        except OSError as error:
            raise UserError(
                f"cannot listen on rpc.host={host} rpc.port={port} ({error.strerror}): choose an address of this"
                " machine and a free port"
            ) from None
        self._server.desk = self
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="front desk", daemon=True).start()

    def is_present(self, client: int) -> bool:
        """Whether a process of this client is connected."""
        return self._present[client] > 0

    def key_of(self, client: object, session: object) -> bytes | None:
        """What the calls of a client's session are signed with; None where it is not signed in."""
        with self._lock:
            visit = self._visits.get(client) if isinstance(client, int) else None
            return visit.key if visit and visit.is_connected and visit.session == session else None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, connection: socket.socket, peer: str) -> None:
        if not self._strangers.acquire(blocking=False):
            return refuse("connection", f"{peer} is one of too many that have not signed in")
        try:
            line = Line(connection)
            visit = self._check(line)
            if why := self._admit(visit):
                line.send({"refused": why})
                raise ValueError(why)
        except MALFORMED as error:
            return refuse("connection", f"{peer} does not sign in ({error})")
        finally:
            self._strangers.release()
        try:
            line.send({"address": self.address, "id": visit.id})
            connection.settimeout(None)
            _keep_alive(connection, self.silence_s)
            while connection.recv(LINE_NBYTES):
                pass  # until the client ends
        except OSError:
            pass
        with self._lock:
            visit.is_connected = False
            self._ids.discard(visit.id)
            self._present[visit.client] -= 1
        self.on_change()

    def _check(self, line: Line) -> Visit:
        hello = line.receive()
        nonce = secrets.token_hex(16)
        line.send({"nonce": nonce, "proof": sign(self.token, "server", str(hello["nonce"]))})
        client, wanted_id, session = int(hello["client"]), int(hello["id"]), str(hello["session"])
        proof = line.receive()["proof"]
        if not is_signed(proof, self.token, "client", nonce, client, wanted_id, session):
            raise ValueError("wrong token")
        return Visit(client, wanted_id, session, calls_key(self.token, str(hello["nonce"]), nonce, client))

    def _admit(self, visit: Visit) -> str | None:
        """Lets a client that has the token in; returns why not, if it is not."""
        client = visit.client
        if not 0 <= client < self.num_clients:
            return f"there is no client {client} of num_clients={self.num_clients}"
        with self._lock:
            last = self._visits.get(client)
            comes_back = last is not None and last.session == visit.session
            # A process that was replaced does not come back, or both would replace each other for ever.
            if last and last.is_connected and not comes_back and not (self.replaces and visit.id == 0):
                return f"another process is connected as client {client}: give each its own client.index"
            visit.id = self._give_id(visit.id)
            self._visits[client] = visit
            self._present[client] += 1
        return None

    def _give_id(self, wanted: int) -> int:
        """An id that no connected process has; that of before for one that comes back."""
        if not 0 < wanted < IDS or wanted in self._ids:
            while self._next_id in self._ids:
                self._next_id = self._next_id % (IDS - 1) + 1
            wanted = self._next_id
            self._next_id = self._next_id % (IDS - 1) + 1
        self._ids.add(wanted)
        return wanted


class _Listener(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    block_on_close = False
    request_queue_size = BACKLOG


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.server.desk._serve(self.request, "{}:{}".format(*self.client_address[:2]))


@dataclass
class Visit:
    """A client's connection to the desk, as the server knows it."""

    client: int
    id: int
    session: str
    key: bytes
    is_connected: bool = True


def _keep_alive(connection: socket.socket, silence_s: float) -> None:
    """Asks a silent machine whether it is there, so that one that has vanished is not connected for hours."""
    every_s = max(1, min(int(silence_s / (1 + KEEPALIVES)), 1 << 14))  # the system takes no more than 1 << 15
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVES)
