"""Where clients that are started on their own find the server: a plain socket that tells them how to reach its RPC.

Both sides prove that they have the token without sending it: each signs what the other has just drawn. The connection
stays open as long as the client lives, so that the server sees at once when a client's process has ended.

    client: {"nonce": …, "client": 3, "id": 0 or that of before, "session": drawn once by each process for each run}
    server: {"nonce": …, "proof": sign("server", client's nonce)}
    client: {"proof": sign("client", server's nonce, client, id, session)}
    server: {"address": "uv://…", "id": …} or {"refused": why}

What was drawn gives both a key, which signs the client's calls as long as this connection lasts. So what somebody has
recorded of an earlier one is worth nothing. A process that comes back signs in under its session; that of another
process takes the client's place, if the old one is gone or `replaces` says so.
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
from dataclasses import dataclass

from splitlearn import guard
from splitlearn.errors import PeerError, UserError

LINE_NBYTES = 1024
HANDSHAKE_S = 10.0
MAX_STRANGERS = 64  # connections that have not proved anything yet
KEEPALIVES = 3  # without an answer
IDS = 1 << 15  # RPC's worker ids are 16-bit integers; 0 is the server


class FrontDesk:
    """The server's side, in threads of its own, listening on `host` alone.

    Args:
        host, port: where to listen.
        address: of the server's RPC.
        num_clients: clients 0 to num_clients-1 may come.
        token: see guard.py.
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
        self._strangers = threading.BoundedSemaphore(MAX_STRANGERS)
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
            return guard.refuse("connection", f"{peer} is one of more than {MAX_STRANGERS} that have not signed in")
        try:
            line = _Line(connection)
            visit = self._check(line)
            if why := self._admit(visit):
                line.send({"refused": why})
                raise ValueError(why)
        # RecursionError and OverflowError: JSON that is deeply nested, or has a huge number
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            return guard.refuse("connection", f"{peer} does not sign in ({error})")
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

    def _check(self, line: _Line) -> Visit:
        hello = line.receive()
        nonce = secrets.token_hex(16)
        line.send({"nonce": nonce, "proof": guard.sign(self.token, "server", str(hello["nonce"]))})
        client, wanted_id, session = int(hello["client"]), int(hello["id"]), str(hello["session"])
        proof = line.receive()["proof"]
        if not guard.is_signed(proof, self.token, "client", nonce, client, wanted_id, session):
            raise ValueError("wrong token")
        return Visit(client, wanted_id, session, _key(self.token, str(hello["nonce"]), nonce, client))

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


@dataclass
class Entry:
    """What a client was told, and the connection that says that it is alive."""

    address: str
    id: int
    key: bytes
    connection: socket.socket


class Unreachable(PeerError):
    """No server is there, or it went away meanwhile. A later one may let this client in."""


def enter(host: str, port: int, client: int, number: int, session: str, token: bytes, timeout_s: float) -> Entry:
    """Signs in at the server's front desk, which may take `timeout_s` to be there.

    Raises:
        Unreachable: no server came, or it went away.
        PeerError: it has another token, or does not let this client in.
    """
    connection = reach(host, port, timeout_s)
    refused = f"the server at {host}:{port} does not let client {client} in"
    mend = f"give all the same {guard.TOKEN_VARIABLE} or rpc.token_file, and the same num_clients"
    try:
        line = _Line(connection)
        nonce = secrets.token_hex(16)
        line.send({"nonce": nonce, "client": client, "id": number, "session": session})
        answer = line.receive()
        if not guard.is_signed(answer["proof"], token, "server", nonce):
            raise PeerError(f"{refused} (it has another token): {mend}")
        other = str(answer["nonce"])
        line.send({"proof": guard.sign(token, "client", other, client, number, session)})
        told = line.receive()
        if "refused" in told:
            raise PeerError(f"{refused}: {told['refused']}")
        connection.settimeout(None)
        return Entry(str(told["address"]), int(told["id"]), _key(token, nonce, other, client), connection)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        connection.close()
        if isinstance(error, PeerError):
            raise
        raise Unreachable(f"{refused} ({error}): {mend}") from None


def _key(token: bytes, clients_nonce: str, servers_nonce: str, client: int) -> bytes:
    return guard.sign(token, "calls", clients_nonce, servers_nonce, client).encode()


def reach(host: str, port: int, timeout_s: float) -> socket.socket:
    """A connection to host:port, which may take `timeout_s` to be there."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return socket.create_connection((host, port), timeout=max(0.1, timeout_s))
        except OSError as error:
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"no server at {host}:{port} within {timeout_s:g} s ({error.strerror or error}): start it, or set"
                    " rpc.host, rpc.port and rpc.connect_timeout_s"
                ) from None
            time.sleep(min(0.2, timeout_s))


class _Line:
    """A connection that signs in: messages of one line of JSON each, all of them within HANDSHAKE_S."""

    def __init__(self, connection: socket.socket):
        self._connection, self._deadline = connection, time.monotonic() + HANDSHAKE_S

    def send(self, message: dict) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict:
        line = b""
        while not line.endswith(b"\n"):
            self._connection.settimeout(max(0.001, self._deadline - time.monotonic()))
            part = self._connection.recv(LINE_NBYTES - len(line))
            if not part:
                raise ValueError("the connection ended" if len(line) < LINE_NBYTES else "too long a line")
            line += part
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("not a message")
        return message


def _keep_alive(connection: socket.socket, silence_s: float) -> None:
    """Asks a silent machine whether it is there, so that one that has vanished is not connected for hours."""
    every_s = max(1, min(int(silence_s / (1 + KEEPALIVES)), 1 << 14))  # the system takes no more than 1 << 15
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVES)
