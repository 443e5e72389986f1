"""Where clients find the server: one port, where they sign in, and which carries their RPC.

Both sides prove that they have the token (see handshake.py). The connection stays open as long as the client lives, so
that the server sees at once when a client's process has ended. A process that comes back signs in under its session;
that of another process takes the client's place, if the old one is gone or `replaces` says so. What a client that is
signed in sends to RPC comes over further connections, which are carried to the agent (see relay.py).
"""

from __future__ import annotations

import json
import secrets
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from splitlearn.errors import UserError
from splitlearn.transport.guard import refuse
from splitlearn.transport.handshake import LINE_NBYTES, MALFORMED, Line, calls_key
from splitlearn.transport.place import shown
from splitlearn.transport.relay import keep_alive, relay
from splitlearn.transport.token import is_signed, sign

MAX_STRANGERS = 64  # connections that have not proved anything yet, beside one for each client
RETURN_WITHIN_S = 3.0  # a client whose connection broke signs in again meanwhile
MAX_WHY = 400  # characters of why the server ends
IDS = 1 << 15  # RPC's worker ids are 16-bit integers; 0 is the server
BACKLOG = 1024  # connections that the system holds until they are accepted: all clients may come at once


class FrontDesk:
    """The server's side, in threads of its own, listening on `host` alone.

    Args:
        host, port: where to listen.
        address: of the server's RPC, host:port.
        num_clients: clients 0 to num_clients-1 may come.
        token: see token.py.
        on_change: called when a client's process has come or gone.
        replaces: whether a new process of a client takes the place of one that is connected.
        silence_s: after so long, a machine that answers nothing is gone.
        tell: shows the user a line.

    Attributes:
        troubles: what kept a client from coming, in words, by client.
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
        tell: Callable[[str], None] = lambda text: None,
    ):
        self.address, self.num_clients, self.token, self.on_change = address, num_clients, token, on_change
        self.replaces, self.silence_s, self.tell = replaces, silence_s, tell
        self.troubles: dict[int, str] = {}
        self._lock = threading.Lock()
        self._ids: Counter[int] = Counter()
        self._next_id = 1
        self._present: Counter[int] = Counter()  # connections by client
        self._visits: dict[int, Visit] = {}  # the last one by client
        self._strangers = threading.BoundedSemaphore(MAX_STRANGERS + num_clients)
        try:
            self._server = _Listener(host, port)
        except (OSError, UnicodeError) as error:
            raise UserError(
                f"cannot listen on rpc.host={host} rpc.port={port} ({getattr(error, 'strerror', error)}): choose an"
                " address of this machine and a free port, another than a server has that runs already"
            ) from None
        self._server.desk = self
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="front desk", daemon=True).start()

    def is_present(self, client: int) -> bool:
        """Whether a process of this client is connected."""
        return self._present[client] > 0

    def is_expected(self, client: int) -> bool:
        """Whether it is connected, or was until now and did not say that it leaves."""
        visit = self._visits.get(client)
        has_left = visit is None or visit.has_left or time.monotonic() > visit.ended_at + RETURN_WITHIN_S
        return self.is_present(client) or not has_left

    def key_of(self, client: object, session: object) -> bytes | None:
        """What the calls of a client's session are signed with; None where it is not signed in."""
        with self._lock:
            visit = self._visits.get(client) if isinstance(client, int) else None
            return visit.key if visit and visit.is_connected and visit.session == session else None

    def hears(self, client: int) -> None:
        """A client's calls arrive."""
        with self._lock:
            self._visits[client].is_heard = True
            self.troubles.pop(client, None)

    def close(self, why: str | None = None) -> None:
        """Lets nobody in any more, and tells those who are why the server has ended, if it says so."""
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            here = [visit for visit in self._visits.values() if visit.is_connected and why is not None]
        for visit in here:
            with suppress(OSError):
                visit.connection.sendall(json.dumps({"ended": why[:MAX_WHY]}).encode() + b"\n")

    def _serve(self, connection: socket.socket, peer: str) -> None:
        if not self._strangers.acquire(blocking=False):
            return refuse("connection", f"{peer} is one of too many that have not signed in")
        visit = None
        try:
            line = Line(connection)
            hello = line.receive()
            if "rpc" in hello:
                self._check_rpc(line, hello)
            else:
                visit = self._check(line, hello, connection, peer)
                if why := self._admit(visit):
                    line.send({"refused": why})
                    raise ValueError(why)
        except MALFORMED as error:
            return refuse("connection", f"{peer} does not sign in ({error})")
        finally:
            self._strangers.release()
        if visit is not None:
            return self._stay(visit, line)
        with suppress(OSError):
            keep_alive(connection, self.silence_s)
            host, port = self.address.rsplit(":", 1)
            agent = socket.create_connection((host, int(port)))
            line.send({"open": True})
            relay(connection, agent)

    def _stay(self, visit: Visit, line: Line) -> None:
        """Until the client ends."""
        connection = visit.connection
        with suppress(OSError):
            line.send({"address": self.address, "id": visit.id})
            connection.settimeout(None)
            keep_alive(connection, self.silence_s)
            while connection.recv(LINE_NBYTES):
                visit.has_left = True
        with self._lock:
            visit.is_connected, visit.ended_at = False, time.monotonic()
            self._ids[visit.id] -= 1
            self._ids = +self._ids  # without those that nobody has
            self._present[visit.client] -= 1
            if is_lost := not visit.is_heard and not self._present[visit.client]:
                self.troubles[visit.client] = f"signed in from {visit.peer}, but none of its calls arrived"
        if is_lost:
            self.tell(f"client {visit.client} {self.troubles[visit.client]}, and left")
        self.on_change()

    def _check_rpc(self, line: Line, hello: dict) -> None:
        key, nonce = self.key_of(hello["client"], hello["rpc"]), secrets.token_hex(16)
        line.send({"nonce": nonce})
        proof = line.receive()["proof"]
        if not (key and is_signed(proof, key, "rpc", nonce)):
            line.send({"refused": "this client is not signed in"})
            raise ValueError("RPC of a client that is not signed in")

    def _check(self, line: Line, hello: dict, connection: socket.socket, peer: str) -> Visit:
        nonce = secrets.token_hex(16)
        line.send({"nonce": nonce, "proof": sign(self.token, "server", str(hello["nonce"]))})
        client, wanted_id, session = int(hello["client"]), int(hello["id"]), str(hello["session"])
        try:
            proof = line.receive()["proof"]
        except ValueError as error:
            raise ValueError(f"{error} when it saw this server's proof: it has another token, or was stopped") from None
        if not is_signed(proof, self.token, "client", nonce, client, wanted_id, session):
            raise ValueError("wrong token")
        key = calls_key(self.token, str(hello["nonce"]), nonce, client)
        return Visit(client, wanted_id, session, key, connection, peer)

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
            if not (comes_back and visit.id == last.id):
                visit.id = self._give_id(visit.id)
            visit.is_heard = comes_back and last.is_heard
            self._ids[visit.id] += 1
            self._visits[client] = visit
            self._present[client] += 1
        if visit.is_heard:
            self.tell(f"client {client} connects anew from {visit.peer}: its connection broke")
        return None

    def _give_id(self, wanted: int) -> int:
        """An id that no connected process has; that of before for one that comes back."""
        if not 0 < wanted < IDS or self._ids[wanted]:
            while self._ids[self._next_id]:
                self._next_id = self._next_id % (IDS - 1) + 1
            wanted = self._next_id
            self._next_id = self._next_id % (IDS - 1) + 1
        return wanted


class _Listener(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    block_on_close = False
    request_queue_size = BACKLOG

    def __init__(self, host: str, port: int):
        self.address_family, *_, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        super().__init__(address, _Handler)


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.server.desk._serve(self.request, shown(*self.client_address[:2]))


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
    connection: socket.socket
    peer: str
    is_connected: bool = True
    is_heard: bool = False
    has_left: bool = False
    ended_at: float = 0.0
