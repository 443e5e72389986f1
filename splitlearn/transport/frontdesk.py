"""Where clients find the server: one port, where they sign in, and which carries their RPC.

Both sides prove that they have the token (see handshake.py), over a connection that is encrypted, if it is to be (see
tls.py). The connection stays open as long as the client lives, so
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
from collections.abc import Callable
from contextlib import suppress

from splitlearn.errors import UserError
from splitlearn.transport.agent import is_listening
from splitlearn.transport.encrypted import Connection
from splitlearn.transport.guard import refuse
from splitlearn.transport.handshake import HANDSHAKE_S, LINE_NBYTES, MALFORMED, Line, calls_key
from splitlearn.transport.place import rank_name, shown
from splitlearn.transport.relay import NUM_CONNECTIONS, keep_alive, relay_to_agent
from splitlearn.transport.strangers import AtMost, most_strangers
from splitlearn.transport.tls import BEGINS, Tls, in_words
from splitlearn.transport.token import is_signed, sign
from splitlearn.transport.visits import Visit, Visits

BACKLOG = 1024  # connections that the system holds until they are accepted: all clients may come at once
# Of RPC, that are carried for a client: those that it needs, and as many of before, which may not have ended yet.
MAX_RELAYS = 2 * (NUM_CONNECTIONS - 1)
MAX_WHY_NBYTES = 4096  # of why the server ends


class FrontDesk:
    """The server's side, in threads of its own, listening on `host` alone.

    Args:
        host, port: where to listen.
        address: gives that of the server's RPC, host:port, which a client is then sent to.
        num_clients: clients 0 to num_clients-1 may come.
        token: see token.py.
        on_change: called when a client's process has come or gone.
        replaces: whether a new process of a client takes the place of one that is connected.
        silence_s: after so long, a machine that answers nothing is gone.
        tell: shows the user a line.
        tls: encrypts all connections; None where they are not to be.

    Attributes:
        visits: who is signed in.
        troubles: what kept a client from coming, in words, by client.
    """

    def __init__(
        self,
        host: str,
        port: int,
        address: Callable[[], str],
        num_clients: int,
        token: bytes,
        on_change: Callable[[], None] = lambda: None,
        replaces: bool = False,
        silence_s: float = 600,
        tell: Callable[[str], None] = lambda text: None,
        tls: Tls | None = None,
    ):
        self.address, self.token, self.on_change = address, token, on_change
        self.silence_s, self.tell, self.tls = silence_s, tell, tls
        self.visits, self.troubles = Visits(num_clients, replaces), {}
        self._strangers = AtMost(most_strangers(num_clients))
        self._relays = [AtMost(MAX_RELAYS) for _ in range(num_clients)]
        try:
            self._server = _Listener(host, port)
        except (OSError, UnicodeError) as error:
            raise UserError(
                f"cannot listen on rpc.host={host} rpc.port={port} ({getattr(error, 'strerror', error)}): choose an"
                " address of this machine, and a port that no other program or server has"
            ) from None
        self._server.desk = self
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="front desk", daemon=True).start()

    def hears(self, client: int) -> None:
        """A client's calls arrive."""
        self.visits.hears(client)
        self.troubles.pop(client, None)

    def close(self, why: str | None = None) -> None:
        """Lets nobody in any more, and tells those who are why the server has ended, if it says so."""
        self._server.shutdown()
        self._server.server_close()
        if why is None:
            return
        why = why.encode(errors="replace")[:MAX_WHY_NBYTES].decode(errors="ignore")  # without half a character
        last_line = json.dumps({"ended": why}, ensure_ascii=False).encode() + b"\n"
        for visit in self.visits.here():
            with suppress(OSError):
                visit.connection.sendall(last_line)

    def _serve(self, raw: socket.socket, host: str, port: int) -> None:
        visit, peer = None, shown(host, port)
        try:
            with self._strangers.one(raw, host):
                deadline = time.monotonic() + HANDSHAKE_S  # for all of it, not each part
                connection = self._opened(raw, deadline)
                line = Line(connection, deadline - time.monotonic())
                hello = line.receive()
                if "rpc" in hello:
                    self._check_rpc(line, hello, connection)
                else:
                    visit = self._check(line, hello, connection, peer)
                    if why := self.visits.admit(visit):
                        line.send({"refused": why})
                        raise ValueError(why)
        except MALFORMED as error:
            return refuse("connection", f"{peer} does not sign in ({in_words(error)})")
        if visit is not None:
            return self._stay(visit, line)
        with suppress(OSError, ValueError), self._relays[hello["client"]].one(connection):
            keep_alive(connection, self.silence_s)
            line.send({"open": True})
            relay_to_agent(connection, self.address(), is_listening)
            return
        connection.close()

    def _opened(self, connection: socket.socket, deadline: float) -> Connection:
        """The connection as it is used, and over which the other side may then say who it is."""
        connection.settimeout(deadline - time.monotonic())
        begins = connection.recv(len(BEGINS), socket.MSG_PEEK)
        if not begins:
            raise ConnectionResetError("it says nothing")
        if self.tls and begins == BEGINS:
            return self.tls.wrap(connection, deadline - time.monotonic())
        if self.tls is None and begins != BEGINS:
            return connection
        line = Line(connection, deadline - time.monotonic())
        # Who is told why: one that signs in, or who speaks TLS, which no stranger does to find out what is here.
        if connection.recv(LINE_NBYTES) if self.tls is None else "session" in line.receive():
            line.send({"refused": f"tls.enabled={str(bool(self.tls)).lower()} on the server: set it alike"})
        raise ValueError("it does not speak TLS" if self.tls else "it speaks TLS, and this server does not")

    def _stay(self, visit: Visit, line: Line) -> None:
        """Until the client ends."""
        client, connection = visit.client, visit.connection
        try:
            if visit.is_heard:
                self._tell(f"client {client} connects anew from {visit.peer}: its connection broke")
            with suppress(OSError):
                line.send({"address": self.address(), "id": visit.id})
                connection.settimeout(None)
                keep_alive(connection, self.silence_s)
                while connection.recv(LINE_NBYTES):
                    visit.has_left = True
        finally:
            if self.visits.end(visit):
                self.troubles[client] = f"signed in from {visit.peer}, but none of its calls arrived"
                self._tell(f"client {client} {self.troubles[client]}, and left")
            self.on_change()

    def _tell(self, text: str) -> None:
        with suppress(OSError):  # a console that cannot be written to keeps nobody out
            self.tell(text)

    def _check_rpc(self, line: Line, hello: dict, connection: Connection) -> None:
        self._check_certificate(line, hello["client"], connection)
        key, nonce = self.visits.key_of(hello["client"], hello["rpc"]), secrets.token_hex(16)
        line.send({"nonce": nonce})
        proof = line.receive()["proof"]
        if not (key and is_signed(proof, key, "rpc", nonce)):
            line.send({"refused": "this client is not signed in"})
            raise ValueError("RPC of a client that is not signed in")

    def _check_certificate(self, line: Line, client: int, connection: Connection) -> None:
        if self.tls and self.tls.names_clients and (name := rank_name(1 + client)) not in connection.names:
            why = f"its certificate is for {' and '.join(connection.names) or 'nobody'}, not for {name}"
            line.send({"refused": f"{why}: give client.index or tls.cert of the same client"})
            raise ValueError(why)

    def _check(self, line: Line, hello: dict, connection: Connection, peer: str) -> Visit:
        self._check_certificate(line, hello["client"], connection)
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
        self.server.desk._serve(self.request, *self.client_address[:2])
