"""A TLS connection that one thread may read from while another writes.

How it works: an SSL object must not be used by two threads at once, and one that waits for its socket would keep the
other out. So it works on memory, where it never waits, under a lock; what it has encrypted goes to the socket, and what
comes from there to it, outside of that lock.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time

CHUNK_NBYTES = 1 << 17  # that are encrypted at a time
RAW_NBYTES = 1 << 18  # that are read at a time


class Encrypted:
    """Has those of a socket's methods that connections are used with here.

    Args:
        connection: over which nothing has gone yet.
        context: of this side.
        is_server: this side took the connection.
        server_name: that the server's certificate has to be for, on a client.
        within_s: how long the handshake may take.

    Raises:
        OSError: the other side does not speak TLS, or is not who it has to be (ssl.SSLError).
    """

    def __init__(
        self,
        connection: socket.socket,
        context: ssl.SSLContext,
        is_server: bool,
        server_name: str | None,
        within_s: float,
    ):
        self._socket = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, is_server, server_name)
        self._lock, self._sending = threading.Lock(), threading.Lock()
        self._raw = memoryview(bytearray(RAW_NBYTES))
        # A chunk is one packet or several anyhow, and the last one must not wait for an acknowledgement.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._shake_hands(time.monotonic() + within_s)

    @property
    def purpose(self) -> str | None:
        """What the client wants of it (ALPN)."""
        return self._tls.selected_alpn_protocol()

    @property
    def names(self) -> list[str]:
        """Whom the other side's certificate is for."""
        return [name for kind, name in (self._tls.getpeercert() or {}).get("subjectAltName", ()) if kind == "DNS"]

    def recv(self, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        return bytes(buffer[: self.recv_into(buffer)])

    def recv_into(self, buffer: bytearray) -> int:
        """Reads at least one byte, and what more is there; 0 where the connection has ended."""
        view = memoryview(buffer)
        while True:
            with self._lock:
                nbytes, has_ended = self._decrypt_into(view)
            if nbytes or has_ended:
                return nbytes
            raw = self._socket.recv_into(self._raw)
            if not raw:
                return 0
            with self._lock:
                self._incoming.write(self._raw[:raw])

    def sendall(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        with self._sending:
            for start in range(0, len(view), CHUNK_NBYTES):
                with self._lock:
                    self._tls.write(view[start : start + CHUNK_NBYTES])
                    encrypted = self._outgoing.read()
                self._socket.sendall(encrypted)

    def settimeout(self, timeout_s: float | None) -> None:
        self._socket.settimeout(timeout_s)

    def setsockopt(self, *option: int | bytes) -> None:
        self._socket.setsockopt(*option)

    def shutdown(self, how: int) -> None:
        self._socket.shutdown(how)

    def close(self) -> None:
        self._socket.close()

    def _decrypt_into(self, view: memoryview) -> tuple[int, bool]:
        """How many bytes there were, and whether the other side has ended the connection."""
        nbytes = 0
        try:
            while nbytes < len(view):  # a read gives one record, of 16 kB at most
                more = self._tls.read(len(view) - nbytes, view[nbytes:])
                if not more:
                    return nbytes, True
                nbytes += more
        except ssl.SSLWantReadError:
            pass
        return nbytes, False

    def _shake_hands(self, deadline: float) -> None:
        while True:
            try:
                self._tls.do_handshake()
                self._flush(deadline)
                return
            except ssl.SSLWantReadError:
                self._flush(deadline)
            except ssl.SSLError:
                self._flush(deadline)  # tells the other side why
                raise
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            raw = self._socket.recv_into(self._raw)
            if not raw:
                raise ConnectionResetError("the connection ended")
            self._incoming.write(self._raw[:raw])

    def _flush(self, deadline: float) -> None:
        if encrypted := self._outgoing.read():
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            self._socket.sendall(encrypted)


Connection = socket.socket | Encrypted
