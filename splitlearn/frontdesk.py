"""Where clients that are started on their own find the server: a plain socket that tells them how to reach its RPC.

Both sides prove that they have the token without sending it: each signs what the other has just drawn. The connection
stays open as long as the client lives, so that the server sees at once when a client's process has ended.

    client: {"nonce": …, "client": 3, "id": 0 or that of before}
    server: {"nonce": …, "proof": sign("server", client's nonce)}
    client: {"proof": sign("client", server's nonce, client, id)}
    server: {"address": "uv://…", "id": …}
"""

from __future__ import annotations

import json
import secrets
import socket
import socketserver
import threading
import time
from collections import Counter
from dataclasses import dataclass

from splitlearn import guard
from splitlearn.errors import PeerError, UserError

LINE_NBYTES = 1024
HANDSHAKE_S = 10.0
MAX_STRANGERS = 64  # connections that have not proved anything yet
IDS = 1 << 15  # RPC's worker ids are 16-bit integers; 0 is the server


class FrontDesk:
    """The server's side, in threads of its own, listening on `host` alone.

    Args:
        host, port: where to listen.
        address: of the server's RPC.
        num_clients: clients 0 to num_clients-1 may come.
        token: see guard.py.
        on_change: called when a client's process has come or gone.
    """

    def __init__(self, host: str, port: int, address: str, num_clients: int, token: bytes, on_change=lambda: None):
        self.address, self.num_clients, self.token, self.on_change = address, num_clients, token, on_change
        self._lock = threading.Lock()
        self._ids: set[int] = set()
        self._next_id = 1
        self._present: Counter[int] = Counter()  # connections by client
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

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, connection: socket.socket, peer: str) -> None:
        if not self._strangers.acquire(blocking=False):
            return guard.refuse("connection", f"{peer} is one of more than {MAX_STRANGERS} that have not signed in")
        try:
            connection.settimeout(HANDSHAKE_S)
            client, wanted_id = self._check(connection, peer)
        except (OSError, ValueError, KeyError, TypeError) as error:
            return guard.refuse("connection", f"{peer} does not sign in ({error})")
        finally:
            self._strangers.release()
        with self._lock:
            number = self._give_id(wanted_id)
            self._present[client] += 1
        try:
            _send(connection, {"address": self.address, "id": number})
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            while connection.recv(LINE_NBYTES):
                pass  # until the client ends
        except OSError:
            pass
        with self._lock:
            self._ids.discard(number)
            self._present[client] -= 1
        self.on_change()

    def _check(self, connection: socket.socket, peer: str) -> tuple[int, int]:
        hello = _receive(connection)
        nonce = secrets.token_hex(16)
        _send(connection, {"nonce": nonce, "proof": guard.sign(self.token, "server", str(hello["nonce"]))})
        client, wanted_id = int(hello["client"]), int(hello["id"])
        if not guard.is_signed(_receive(connection)["proof"], self.token, "client", nonce, client, wanted_id):
            raise ValueError("wrong token")
        if not 0 <= client < self.num_clients:
            raise ValueError(f"client {client} of num_clients={self.num_clients}")
        return client, wanted_id

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
class Entry:
    """What a client was told, and the connection that says that it is alive."""

    address: str
    id: int
    connection: socket.socket


def enter(host: str, port: int, client: int, number: int, token: bytes, timeout_s: float) -> Entry:
    """Signs in at the server's front desk, which may take `timeout_s` to be there.

    Raises:
        PeerError: no server came, or it has another token.
    """
    connection = reach(host, port, timeout_s)
    connection.settimeout(HANDSHAKE_S)
    try:
        nonce = secrets.token_hex(16)
        _send(connection, {"nonce": nonce, "client": client, "id": number})
        answer = _receive(connection)
        if not guard.is_signed(answer["proof"], token, "server", nonce):
            raise ValueError("it has another token")
        _send(connection, {"proof": guard.sign(token, "client", str(answer["nonce"]), client, number)})
        told = _receive(connection)
        connection.settimeout(None)
        return Entry(told["address"], told["id"], connection)
    except (OSError, ValueError, KeyError, TypeError) as error:
        connection.close()
        raise PeerError(
            f"the server at {host}:{port} does not let client {client} in ({error}): give all the same"
            f" {guard.TOKEN_VARIABLE} or rpc.token_file, and the same num_clients"
        ) from None


def reach(host: str, port: int, timeout_s: float) -> socket.socket:
    """A connection to host:port, which may take `timeout_s` to be there."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return socket.create_connection((host, port), timeout=max(0.1, timeout_s))
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerError(
                    f"no server at {host}:{port} within {timeout_s:g} s ({error.strerror or error}): start it, or set"
                    " rpc.host, rpc.port and rpc.connect_timeout_s"
                ) from None
            time.sleep(min(0.2, timeout_s))


def _send(connection: socket.socket, message: dict) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket) -> dict:
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(LINE_NBYTES - len(line))
        if not part:
            raise ValueError("the connection ended" if len(line) < LINE_NBYTES else "too long a line")
        line += part
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("not a message")
    return message
