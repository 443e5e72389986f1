"""A client's way in: finding the server, and signing in at its front desk."""

from __future__ import annotations

import secrets
import socket
import ssl
import time
from dataclasses import dataclass

from splitlearn.console import legible
from splitlearn.errors import PeerError
from splitlearn.transport.encrypted import Connection
from splitlearn.transport.handshake import HANDSHAKE_S, MALFORMED, Line, Strange, calls_key
from splitlearn.transport.place import shown
from splitlearn.transport.tls import DESK, RPC, Tls, in_words
from splitlearn.transport.token import TOKEN_VARIABLE, is_signed, sign

ATTEMPT_S = 2.0, 5.0  # of a connection to one address, since a name may have several and only one that answers


@dataclass
class Entry:
    """What a client was told, and the connection that says that it is alive."""

    address: str
    id: int
    key: bytes
    connection: Connection


class Unreachable(PeerError):
    """No server is there, or it went away meanwhile. A later one may let this client in."""


class NoServer(Unreachable):
    """Something is there that is no server of ours."""


@dataclass
class Way:
    """To the server's one port.

    Attributes:
        host, port: of it.
        tls: what is opened over it is encrypted; None where it is not.
    """

    host: str
    port: int
    tls: Tls | None = None

    def __str__(self) -> str:
        return shown(self.host, self.port)

    def open(self, timeout_s: float, within_s: float = HANDSHAKE_S, purpose: str = DESK) -> Connection:
        """A connection to the server, which may take `timeout_s` to be there, and `within_s` to show who it is.

        Raises:
            Unreachable: no server came, or it went away.
            PeerError: the server is not to be trusted, or what is there does not speak TLS.
        """
        connection = reach(self.host, self.port, timeout_s)
        if self.tls is None:
            return connection
        try:
            return self.tls.wrap(connection, within_s, purpose)
        except OSError as error:
            connection.close()
            if isinstance(error, ssl.SSLCertVerificationError):
                raise PeerError(
                    f"the server at {self} cannot be trusted ({in_words(error)}): {self.tls.remedy(error)}"
                ) from None
            if isinstance(error, ssl.SSLError) and "ALERT" not in (error.reason or ""):
                raise NoServer(
                    f"what answers at {self} does not speak TLS ({in_words(error)}): set tls.enabled alike on server"
                    " and clients, and rpc.host and rpc.port to the server's"
                ) from None
            raise Unreachable(f"{self} ends the TLS handshake ({in_words(error)})") from None


def enter(
    way: Way, client: int, number: int, session: str, token: bytes, timeout_s: float, within_s: float = HANDSHAKE_S
) -> Entry:
    """Signs in at the server's front desk, which may take `timeout_s` to be there, and `within_s` to let it in.

    Raises:
        Unreachable: no server came, or it went away.
        PeerError: it has another token, or does not let this client in.
    """
    refused = f"the server at {way} does not let client {client} in"
    connection = way.open(timeout_s, within_s)
    try:
        line = Line(connection, within_s)
        nonce = secrets.token_hex(16)
        line.send({"nonce": nonce, "client": client, "id": number, "session": session})
        answer = line.receive()
        if "refused" in answer:
            raise PeerError(f"{refused}: {legible(str(answer['refused']))}")
        if not is_signed(answer["proof"], token, "server", nonce):
            raise PeerError(f"{refused} (it has another token): give all the same {TOKEN_VARIABLE} or rpc.token_file")
        other = str(answer["nonce"])
        line.send({"proof": sign(token, "client", other, client, number, session)})
        told = line.receive()
        if "refused" in told:
            raise PeerError(f"{refused}: {legible(str(told['refused']))}")
        connection.settimeout(None)
        return Entry(str(told["address"]), int(told["id"]), calls_key(token, nonce, other, client), connection)
    except MALFORMED as error:
        connection.close()
        if isinstance(error, PeerError):
            raise
        if isinstance(error, ssl.SSLError):  # with TLS 1.3, the first that one hears of being refused
            raise PeerError(f"{refused} ({in_words(error)}): {way.tls.remedy(error)}") from None
        if isinstance(error, TimeoutError):
            raise Unreachable(
                f"{way} takes the connection of client {client} and says nothing: the server is stopped, or another"
                " program has that port (rpc.host, rpc.port)"
            ) from None
        if isinstance(error, Strange | KeyError | TypeError):
            raise NoServer(
                f"what answers at {way} is no server of splitlearn ({error}): set rpc.host and rpc.port to the server's"
            ) from None
        raise Unreachable(
            f"{way} ends the connection of client {client} ({error}): start the server, or set rpc.host and rpc.port"
        ) from None


def open_rpc(way: Way, client: int, session: str, key: bytes, within_s: float) -> Connection:
    """A connection to the server's RPC agent, through the front desk's port.

    Raises:
        PeerError: it is not let through.
    """
    connection = way.open(min(ATTEMPT_S[1], within_s), within_s, RPC)
    try:
        line = Line(connection, within_s)
        line.send({"rpc": session, "client": client})
        told = line.receive()
        if "refused" not in told:
            line.send({"proof": sign(key, "rpc", str(told["nonce"]))})
            told = line.receive()
        if told.get("open") is not True:
            raise PeerError(f"refused: {legible(str(told['refused']))}")
        connection.settimeout(None)
        return connection
    except MALFORMED as error:
        connection.close()
        if isinstance(error, PeerError):
            raise
        raise Unreachable(str(error)) from None


def reach(host: str, port: int, timeout_s: float) -> socket.socket:
    """A connection to host:port, which may take `timeout_s` to be there."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            remaining_s = deadline - time.monotonic()
            return socket.create_connection((host, port), timeout=min(max(ATTEMPT_S[0], remaining_s), ATTEMPT_S[1]))
        except (OSError, UnicodeError) as error:
            if isinstance(error, UnicodeError) or (
                isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN
            ):
                raise PeerError(
                    f"rpc.host={host} is not known ({getattr(error, 'strerror', error)}): give the server's name or"
                    " address, with torchrun as its --master-addr"
                ) from None
            if time.monotonic() > deadline:
                why = "no answer: a firewall may drop it" if isinstance(error, TimeoutError) else error.strerror
                raise Unreachable(
                    f"no server at {shown(host, port)} ({why or error}): start it, unless its run is over, or set"
                    " rpc.host, rpc.port and rpc.connect_timeout_s"
                ) from None
            time.sleep(min(0.2, timeout_s))
