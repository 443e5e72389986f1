"""A client's way in: finding the server, and signing in at its front desk."""

from __future__ import annotations

import secrets
import socket
import time
from dataclasses import dataclass

from splitlearn.errors import PeerError
from splitlearn.transport.handshake import MALFORMED, Line, calls_key
from splitlearn.transport.token import TOKEN_VARIABLE, is_signed, sign


@dataclass
class Entry:
    """What a client was told, and the connection that says that it is alive."""

    address: str
    id: int
    key: bytes
    connection: socket.socket


class Unreachable(PeerError):
    """No server is there, or it went away meanwhile. A later one may let this client in."""


def enter(
    host: str,
    port: int,
    client: int,
    number: int,
    session: str,
    token: bytes,
    timeout_s: float,
    answer_s: float | None = None,
) -> Entry:
    """Signs in at the server's front desk, which may take `timeout_s` to be there, and then `answer_s` to let it in.

    Raises:
        Unreachable: no server came, or it went away.
        PeerError: it has another token, or does not let this client in.
    """
    connection = reach(host, port, timeout_s)
    refused = f"the server at {host}:{port} does not let client {client} in"
    mend = f"give all the same {TOKEN_VARIABLE} or rpc.token_file, and the same num_clients"
    try:
        line = Line(connection, answer_s)
        nonce = secrets.token_hex(16)
        line.send({"nonce": nonce, "client": client, "id": number, "session": session})
        answer = line.receive()
        if not is_signed(answer["proof"], token, "server", nonce):
            raise PeerError(f"{refused} (it has another token): {mend}")
        other = str(answer["nonce"])
        line.send({"proof": sign(token, "client", other, client, number, session)})
        told = line.receive()
        if "refused" in told:
            raise PeerError(f"{refused}: {told['refused']}")
        connection.settimeout(None)
        return Entry(str(told["address"]), int(told["id"]), calls_key(token, nonce, other, client), connection)
    except MALFORMED as error:
        connection.close()
        if isinstance(error, PeerError):
            raise
        raise Unreachable(f"{refused} ({error}): {mend}") from None


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
