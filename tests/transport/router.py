"""A router between clients and the server's one port, which breaks connections, by what they are for."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

DESK, RPC, MUTE = "desk", "rpc", "mute"
ALPN = b"splitlearn-rpc"  # what a TLS connection is for is said before it is encrypted
RESETS = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


@dataclass
class Flow:
    """A connection through the router.

    Attributes:
        near, far: towards the client and the server.
        kind: what it is for.
        is_mute: whatever is sent is lost, and nobody is told.
    """

    near: socket.socket
    far: socket.socket
    kind: str = ""
    is_mute: bool = False


@dataclass
class Rule:
    """What happens when a word, as pickle writes it, goes up for the n-th time, before it is passed on or after."""

    word: bytes
    left: int
    act: Callable[[], None]
    before: bool


@dataclass
class Router:
    """
    Args:
        server_port: on this machine, where it carries connections.

    Attributes:
        port: its own.
        lets_in: whether it takes a connection of this kind; else it is silent.
    """

    server_port: int
    lets_in: Callable[[str], bool] = lambda kind: True
    flows: list[Flow] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)

    def __post_init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def when(self, word: str, number: int, *kinds: str, before: bool) -> None:
        """Breaks all connections of these kinds as soon as `word` goes up for the n-th time; with MUTE, silently."""
        act = self.mute if MUTE in kinds else self.reset
        self.rules.append(Rule(b"\x8c" + bytes([len(word)]) + word.encode(), number, lambda: act(*kinds), before))

    def reset(self, *kinds: str) -> None:
        with self._lock:
            broken = [flow for flow in self.flows if flow.kind in kinds]
            self.flows = [flow for flow in self.flows if flow.kind not in kinds]
        for flow in broken:
            for end in (flow.near, flow.far):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETS)
                with suppress(OSError):  # it may be reset by the other side meanwhile
                    end.shutdown(socket.SHUT_RD)  # wakes the thread that reads from it, which would keep it open
                end.close()

    def mute(self, *kinds: str) -> None:
        with self._lock:
            for flow in self.flows:
                flow.is_mute |= flow.kind in kinds

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        try:
            begins = near.recv(1 << 16)
            kind = RPC if b'"rpc"' in begins or ALPN in begins else DESK
            if not begins or not self.lets_in(kind):
                return
            flow = Flow(near, socket.create_connection(("127.0.0.1", self.server_port)), kind)
            flow.far.sendall(begins)
        except OSError:
            return near.close()
        with self._lock:
            self.flows.append(flow)
        threading.Thread(target=self._carry, args=(flow, flow.far, flow.near), daemon=True).start()
        self._carry(flow, near, flow.far)

    def _carry(self, flow: Flow, source: socket.socket, sink: socket.socket) -> None:
        try:
            while part := source.recv(1 << 16):
                acts = self._acts_on(part) if source is flow.near else []
                for rule in acts:
                    if rule.before:
                        rule.act()
                if not flow.is_mute:
                    sink.sendall(part)
                for rule in acts:
                    if not rule.before:
                        rule.act()
            sink.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _acts_on(self, part: bytes) -> list[Rule]:
        found = []
        with self._lock:
            for rule in self.rules:
                if rule.word in part:
                    rule.left -= 1
                    if rule.left == 0:
                        found.append(rule)
        return found
