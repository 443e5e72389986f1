"""A client's way to the server, and what brings it back: its connection to the front desk, and those of RPC.

How it works: either may break alone, or both, or the server is started anew. Where the front desk's connection breaks,
a thread signs in again while calls go on. Where a call fails or is not answered, and the server does not answer the
question whether it is there either, all is opened anew. The session stays the same, so that the server takes no call
twice.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch.distributed.rpc as rpc

from splitlearn.console import legible
from splitlearn.errors import PeerError
from splitlearn.transport.agent import has_agent, start_agent, stop_agent
from splitlearn.transport.delivery import PROOF, deliver, value_of
from splitlearn.transport.encrypted import Connection
from splitlearn.transport.entry import Entry, Unreachable, Way, enter, open_rpc
from splitlearn.transport.handshake import HANDSHAKE_S, LINE_NBYTES
from splitlearn.transport.place import SERVER, Patience, Place
from splitlearn.transport.relay import NUM_CONNECTIONS, Forward, end, keep_alive
from splitlearn.transport.token import sign

RECONNECT_EVERY_S = 0.5
LAUNCHED_RECONNECT_S = 5.0, 30.0  # on one machine and on several: then the launcher knows better
LAST_LINE_NBYTES = 1 << 15  # of what the server says when it ends, at most; JSON writes some letters as six
RENEW_S = 30.0  # how long calls may take to arrive over new connections


class Link:
    """
    Args:
        place: the client's.
        way: to the server.
        patience: how long what may take.
        token: lets the client in.
        tell: shows the user a line.

    Attributes:
        session: of this client's calls.
        renewals: how often RPC was started anew.
    """

    def __init__(self, place: Place, way: Way, patience: Patience, token: bytes, tell: Callable[[str], None]):
        self.place, self.way, self.patience, self.token, self.tell = place, way, patience, token, tell
        self.client, self.session, self.renewals = place.rank - 1, secrets.token_hex(16), 0
        self._entry: Entry | None = None
        self._forward: Forward | None = None
        self._ended: str | None = None  # why the server has ended, as it says
        self._is_broken = self._is_closed = False
        self._lock = threading.RLock()

    @property
    def key(self) -> bytes:
        """What calls are signed with."""
        return self._entry.key

    def open(self, deadline: float, desk_s: float) -> None:
        """Signs in, which the server may take `desk_s` to be there for, and makes sure that calls arrive.

        Raises:
            Unreachable: no server is there, or calls to it do not come through by the deadline.
            PeerError: it does not let this client in.
        """
        with self._lock:
            # On few cores with many clients, the server's answer may take as long as the server.
            self._sign_in(desk_s, max(1.0, deadline - time.monotonic()))
            self.tell(f"found the server at {self.way}")
            self._start(deadline - time.monotonic())

    def renew(self, renewals: int, deadline: float) -> None:
        """Opens all anew, to the same server or to one that was started since, which may take until `deadline`.

        Args:
            renewals: before the call that failed; where another thread has done it since, there is nothing to do.
            deadline: of time.monotonic().

        Raises:
            PeerError: it did not work.
        """
        with self._lock:
            if renewals != self.renewals:
                return
            if self.place.is_fleet:
                deadline = min(deadline, time.monotonic() + LAUNCHED_RECONNECT_S[not self.place.one_machine])
            self._break(deadline)
            while True:
                time.sleep(RECONNECT_EVERY_S)
                if self._is_closed:
                    raise PeerError("this client has left")
                if self._ended is not None:
                    raise PeerError(f"the server at {self.way} has ended: {self._ended}")
                try:
                    self._sign_in(RECONNECT_EVERY_S, HANDSHAKE_S)
                    self._start(min(RENEW_S, deadline - time.monotonic()))
                    if self._is_closed:  # meanwhile, which has stopped what there was before
                        self._stop()
                        continue
                    break
                except Unreachable as error:
                    if time.monotonic() > deadline:
                        raise PeerError(
                            f"the server at {self.way} is gone: its process ended or the connection broke ({error})"
                        ) from None
            self.renewals += 1
            self._mend()

    def answers(self, within_s: float) -> bool:
        """Whether the server says that it is there, which it does whatever else it is doing."""
        try:
            return self.send(0, PROOF, (), max(0.1, within_s))[0] == "done"
        except RuntimeError:
            return False

    def send(self, number: int, kind: str, body: tuple, within_s: float) -> tuple[str, Any]:
        """Sends a call, once; returns its status and the answer.

        Raises:
            RuntimeError: it did not arrive, or no answer came within this time.
        """
        what = self.client, self.session, number, kind
        arguments = (*what, sign(self.key, *what), body)
        return value_of(rpc.rpc_async(SERVER, deliver, args=arguments, timeout=within_s))

    def give_up(self) -> None:
        """Nothing is opened again."""
        self._is_closed = True

    def close(self) -> None:
        self.give_up()
        if self._entry is not None:
            with suppress(OSError):
                self._entry.connection.sendall(b"{}\n")  # that it leaves
            end(self._entry.connection)
        self._stop()

    def _sign_in(self, desk_s: float, within_s: float) -> None:
        before = self._entry  # stays open until then, or a server that is there would take this client for gone
        number = before.id if before else 0
        self._entry = enter(self.way, self.client, number, self.session, self.token, desk_s, within_s)
        if self._is_closed:  # meanwhile, which has ended the connection of before alone
            end(self._entry.connection)
            raise PeerError("this client has left")
        if before is not None:
            end(before.connection)
        keep_alive(self._entry.connection, self.patience.call_s)
        threading.Thread(target=self._watch, args=(self._entry,), name="front desk's watch", daemon=True).start()

    def _start(self, within_s: float) -> None:
        """Starts RPC, and makes sure that calls arrive."""
        self._stop()
        address = f"uv://{self._entry.address}"
        if self.way.tls or not self.place.one_machine:  # where RPC listens on the loopback of the server's machine
            self._forward = Forward(self._dial, self._entry.address)
            address = self._forward.address
        start_agent(self.place.name, self._entry.id, self.patience, address)
        if not self.answers(within_s):
            trouble = (self._forward and self._forward.trouble) or f"no answer from {address}"
            raise Unreachable(
                f"client {self.client} is signed in at {self.way}, but its calls do not come through ({trouble}): let"
                f" {NUM_CONNECTIONS} connections of a client pass to that port at the same time"
            )

    def _dial(self):
        connection = open_rpc(self.way, self.client, self.session, self.key, HANDSHAKE_S)
        keep_alive(connection, self.patience.call_s)
        return connection

    def _stop(self) -> None:
        if has_agent():
            stop_agent()
        if self._forward is not None:
            self._forward.close()
            self._forward = None

    def _watch(self, entry: Entry) -> None:
        """Signs in again where the front desk's connection breaks, unless `renew` does."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            self._ended = legible(str(json.loads(_last_line(entry.connection))["ended"]), LAST_LINE_NBYTES)
        while not (self._is_closed or self._ended):
            with self._lock:
                if self._entry is not entry or self._is_closed:
                    break
                self._break(None)
                try:
                    self._sign_in(RECONNECT_EVERY_S, HANDSHAKE_S)
                    self._mend()
                    break
                except Unreachable:
                    pass
                except PeerError as error:  # it is not let in any more, which the next call is told
                    if not self._is_closed:
                        self.tell(str(error))
                    break
            time.sleep(RECONNECT_EVERY_S)
        entry.connection.close()

    def _break(self, deadline: float | None) -> None:
        if not self._is_broken:
            self._is_broken = True
            until = (
                ""
                if deadline is None
                else time.strftime(" until %H:%M:%S", time.localtime(time.time() + deadline - time.monotonic()))
            )
            self.tell(f"the connection to the server at {self.way} broke: trying again{until}")

    def _mend(self) -> None:
        if self._is_broken:
            self._is_broken = False
            self.tell("the connection to the server is back")


def _last_line(connection: Connection) -> bytes:
    """What the server says when it ends, as a whole; nothing where the connection breaks."""
    line = b""
    while not line.endswith(b"\n") and len(line) < LAST_LINE_NBYTES and (part := connection.recv(LINE_NBYTES)):
        line += part
    return line
