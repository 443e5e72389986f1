"""What both sides of a sign-in say, and what comes of it.

Both prove that they have the token without sending it: each signs what the other has just drawn.

    client: {"nonce": …, "client": 3, "id": 0 or that of before, "session": drawn once by each process for each run}
    server: {"nonce": …, "proof": sign("server", client's nonce)}
    client: {"proof": sign("client", server's nonce, client, id, session)}
    server: {"address": "127.0.0.1:…", "id": …} or {"refused": why}
            … and when the server ends, if it can: {"ended": why}; when the client leaves: {}

What was drawn gives both a key, which signs the client's calls as long as this connection lasts. So what somebody has
recorded of an earlier one is worth nothing. With it a client opens connections of RPC at the same port (see relay.py):

    client: {"rpc": session, "client": 3}
    server: {"nonce": …}
    client: {"proof": sign with the key("rpc", server's nonce)}
    server: {"open": true} or {"refused": why}, and from then on both are RPC's
"""

import json
import socket
import time

from splitlearn.transport.token import sign

LINE_NBYTES = 1024
HANDSHAKE_S = 10.0
# Of what a stranger says. RecursionError and OverflowError: JSON that is deeply nested, or has a huge number
MALFORMED = (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError)


class Strange(ValueError):
    """What came is no line of a sign-in."""


class Line:
    """A connection that signs in: messages of one line of JSON each, all of them within HANDSHAKE_S, or `within_s`."""

    def __init__(self, connection: socket.socket, within_s: float | None = None):
        self._connection, self._deadline = connection, time.monotonic() + (within_s or HANDSHAKE_S)

    def send(self, message: dict) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict:
        line = b""
        while not line.endswith(b"\n"):
            self._connection.settimeout(max(0.001, self._deadline - time.monotonic()))
            part = self._connection.recv(LINE_NBYTES - len(line))
            if not part:
                raise ValueError("the connection ended") if len(line) < LINE_NBYTES else Strange("too long a line")
            line += part
        try:
            message = json.loads(line)
        except ValueError:
            raise Strange(f"it says {line[:40]!r}") from None
        if not isinstance(message, dict):
            raise Strange("not a message")
        return message


def calls_key(token: bytes, clients_nonce: str, servers_nonce: str, client: int) -> bytes:
    """What the calls of a client are signed with, from what both sides have drawn."""
    return sign(token, "calls", clients_nonce, servers_nonce, client).encode()
