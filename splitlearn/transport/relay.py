"""RPC through the front desk's port, so that the server needs one open port, and RPC itself listens on loopback alone.

    client's machine                                          server's machine
    RPC agent ──► Forward, 127.0.0.1:Q ══ one port, signed ══► front desk ──► RPC agent, 127.0.0.1:P

How it works: the client's agent is told that the server is at the Forward, which opens a connection to the server for
each that it is given; there is no more to it than `relay`, both ways. RPC opens further connections to the address that
the server's agent names in its first answer, P of the server's machine; Forward puts its own in the place of that.
A Forward knows nothing of the way to the server but `dial`, so that another one, such as an encrypted one, fits in.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from splitlearn.transport.encrypted import Connection

NUM_CONNECTIONS = 4  # of a client to the server's port: one that signs in, and three of RPC's
CHUNK_NBYTES = 1 << 17
KEEPALIVE_S = 60  # of silence, and between two questions
MAX_KEEPALIVES = 127  # without an answer; the system takes no more
MAX_FIRST_NBYTES = 1 << 16  # of RPC's first message either way, which takes a hundred
FIRST_MESSAGE_S = 10.0
HEADER = struct.Struct("<Q")  # a message of RPC's transport "uv": its length, and then the message


def relay_to_agent(client: Connection, address: str, is_there: Callable[[str], bool] = lambda address: True) -> None:
    """Carries a client's connection to the agent at host:port of this machine.

    Not before the client's first message is there as a whole: an agent that somebody connects to without one stops to
    listen, and a client's machine can be switched off at any moment.

    Args:
        is_there: whether the agent listens at an address. Asked once the connection stands: an agent that has lost its
            port does not get it back, so that one that has it now is who was connected to.
    """
    client.settimeout(FIRST_MESSAGE_S)
    first = message(client)
    host, port = address.rsplit(":", 1)
    agent = socket.create_connection((host, int(port)))
    if not is_there(address):
        agent.close()
        raise ConnectionRefusedError(f"RPC does not listen at {address} any more")
    agent.sendall(first)
    relay(client, agent)


def relay(one: Connection, other: Connection, first: Callable[[Connection], bytes] | None = None) -> None:
    """Carries bytes both ways until either side ends; then both are closed.

    Args:
        one, other: connected.
        first: reads what `other` says first, and returns what `one` is to get of it; None for all as it is.
    """
    for connection in (one, other):
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    back = threading.Thread(target=_carry, args=(other, one, first), daemon=True)
    back.start()
    _carry(one, other)
    back.join()
    one.close()
    other.close()


def _carry(source: Connection, sink: Connection, first: Callable[[Connection], bytes] | None = None) -> None:
    buffer = bytearray(CHUNK_NBYTES)
    view = memoryview(buffer)
    with suppress(OSError, ValueError):
        if first:
            sink.sendall(first(source))
        while nbytes := source.recv_into(buffer):
            sink.sendall(view[:nbytes])
    for connection in (source, sink):
        end(connection)


def end(connection: Connection) -> None:
    """Ends a connection that another thread may be reading from."""
    with suppress(OSError):  # it has ended before
        connection.shutdown(socket.SHUT_RDWR)


def keep_alive(connection: Connection, silence_s: float) -> None:
    """Asks a silent machine whether it is there, so that one that has vanished is not connected for hours.

    It asks once a minute at least, before a router forgets a connection that nothing comes over.
    """
    every_s = max(1, min(int(silence_s / 4), KEEPALIVE_S))
    number = max(1, min(int(silence_s / every_s) - 1, MAX_KEEPALIVES))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", every_s), ("TCP_KEEPINTVL", every_s), ("TCP_KEEPCNT", number)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


class Forward:
    """A client's: listens on its machine's loopback, and carries RPC's connections to the server.

    It takes as many as RPC opens at the start, and then listens no more: RPC opens none again, as a pipe of its that is
    broken stays so, and who else found this port would speak to the server in this client's name.

    Args:
        dial: opens a connection to the server's agent; raises OSError or UserError where it cannot.
        named: the server's agent as it calls itself, host:port.

    Attributes:
        address: for the client's agent, as RPC writes it.
        trouble: why the last connection could not be opened; None if it could.
    """

    def __init__(self, dial: Callable[[], Connection], named: str):
        self._dial, self._named = dial, named
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._own = "{}:{}".format(*self._listener.getsockname())
        self.address, self.trouble = f"uv://{self._own}", None
        threading.Thread(target=self._accept, name="forward", daemon=True).start()

    def close(self) -> None:
        end(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        for number in range(NUM_CONNECTIONS - 1):
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(near, number == 0), daemon=True).start()
        self.close()

    def _serve(self, near: socket.socket, is_first: bool) -> None:
        try:
            far = self._dial()
        except (OSError, ValueError) as error:
            self.trouble = str(error)
            return near.close()
        self.trouble = None
        relay(near, far, self._first_answer if is_first else None)

    def _first_answer(self, far: Connection) -> bytes:
        return renamed(message(far), self._named, self._own)


def message(connection: Connection) -> bytes:
    """The next whole message of a connection of RPC's, with its header."""
    header = _exactly(connection, HEADER.size)
    (nbytes,) = HEADER.unpack(header)
    if nbytes > MAX_FIRST_NBYTES:
        raise ValueError("not the beginning of RPC's conversation")
    return header + _exactly(connection, nbytes)


def _exactly(connection: Connection, nbytes: int) -> bytes:
    read = b""
    while len(read) < nbytes:
        part = connection.recv(nbytes - len(read))
        if not part:
            raise ValueError("the connection ended")
        read += part
    return read


def renamed(message: bytes, before: str, after: str) -> bytes:
    """A message of RPC's with one address in the place of another."""
    body = message[HEADER.size :].replace(_text(before), _text(after))
    return HEADER.pack(len(body)) + body


def _text(value: str) -> bytes:
    return bytes([0xBD, len(value)]) + value.encode()  # as libnop writes a string of up to 127 bytes
