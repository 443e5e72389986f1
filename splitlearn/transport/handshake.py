"""What both sides of a sign-in say, and what comes of it.

Both prove that they have the token without sending it: each signs what the other has just drawn.

    client: {"nonce": …, "client": 3, "id": 0 or that of before, "session": drawn once by each process for each run}
    server: {"nonce": …, "proof": sign("server", client's nonce)}
    client: {"proof": sign("client", server's nonce, client, id, session)}
    server: {"address": "uv://…", "id": …} or {"refused": why}

What was drawn gives both a key, which signs the client's calls as long as this connection lasts. So what somebody has
recorded of an earlier one is worth nothing.
"""

import json
import socket
import time

from splitlearn.transport.token import sign

LINE_NBYTES = 1024
HANDSHAKE_S = 10.0
# Of what a stranger says. RecursionError and OverflowError: JSON that is deeply nested, or has a huge number
MALFORMED = (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError)


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
                raise ValueError("the connection ended" if len(line) < LINE_NBYTES else "too long a line")
            line += part
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("not a message")
        return message


def calls_key(token: bytes, clients_nonce: str, servers_nonce: str, client: int) -> bytes:
    """What the calls of a client are signed with, from what both sides have drawn."""
    return sign(token, "calls", clients_nonce, servers_nonce, client).encode()
