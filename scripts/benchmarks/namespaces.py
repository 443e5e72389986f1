"""A network on one machine: a server and clients in network namespaces of their own, over links of a chosen rate.

For scripts (root, Linux). The namespaces have no names: the processes in them and a file descriptor of this one hold
them, and with the last of these they go, and their devices with them, however this process ends. So there is nothing
to clean up, and networks side by side can all have the same addresses.

    client 0: eth0 ─── client0 ┐
    client 1: eth0 ─── client1 ┴ bridge, 10.99.0.1: server
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from common import ROOT

SUBNET = "10.99.0"
SERVER_ADDRESS = f"{SUBNET}.1"
PROBE_S = 0.5  # how long a transfer takes that measures a link
_OWN = "/proc/thread-self/ns/net"
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace with nothing but its loopback in it, until `close` and the end of the processes in it."""

    def __init__(self):
        home = os.open(_OWN, os.O_RDONLY)
        try:
            _call(_libc.unshare, _CLONE_NEWNET)
            try:
                self.file = os.open(_OWN, os.O_RDONLY)
            finally:
                _call(_libc.setns, home, _CLONE_NEWNET)
        finally:
            os.close(home)
        self.run("ip", "link", "set", "lo", "up")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Sockets that are opened and processes that are started within this are in the namespace, and stay there."""
        home = os.open(_OWN, os.O_RDONLY)
        try:
            _call(_libc.setns, self.file, _CLONE_NEWNET)
            yield
        finally:
            _call(_libc.setns, home, _CLONE_NEWNET)
            os.close(home)

    def run(self, *command: str) -> str:
        """Output of a command that is run to its end in here; one that fails ends this program with what it says."""
        with self.inside():
            result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            sys.exit(f"the network cannot be made: `{' '.join(command)}` says: {result.stderr.strip()}")
        return result.stdout

    def close(self) -> None:
        os.close(self.file)


class Network:
    """A server and clients, each client at a link of its own; see `network`.

    Attributes:
        server, clients: their namespaces.
        up_mbits, down_mbits: each link's rates in Mbit/s; None as fast as the machine.
    """

    def __init__(self, server: Namespace, clients: list[Namespace], up_mbits: float | None, down_mbits: float | None):
        self.server, self.clients, self.up_mbits, self.down_mbits = server, clients, up_mbits, down_mbits
        num_ranks = str(1 + len(clients))
        self._environment = {
            "OMP_NUM_THREADS": "1",
            **os.environ,
            "SPLITLEARN_TOKEN": secrets.token_hex(32),
            # As from torchrun: all ranks share a console, and the server alone tells what concerns all.
            "WORLD_SIZE": num_ranks,
            "LOCAL_WORLD_SIZE": num_ranks,
        }
        server.run("ip", "link", "add", "bridge", "type", "bridge")
        server.run("ip", "addr", "add", f"{SERVER_ADDRESS}/24", "dev", "bridge")
        server.run("ip", "link", "set", "bridge", "up")
        for index, client in enumerate(clients):
            port = f"client{index}"
            path = f"/proc/{os.getpid()}/fd/{client.file}"
            server.run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", path)
            client.run("ip", "addr", "add", f"{SUBNET}.{index + 2}/24", "dev", "eth0")
            # One packet a segment: else 64 kB would have one header, and would pass at once.
            client.run("ip", "link", "set", "dev", "eth0", "gso_max_segs", "1", "up")
            server.run("ip", "link", "set", "dev", port, "master", "bridge", "gso_max_segs", "1", "up")
            _limit(client, "eth0", up_mbits)
            _limit(server, port, down_mbits)

    def start(self, rank: int, *overrides: str, **options) -> subprocess.Popen:
        """Starts launch.py as the server (rank 0) or a client (1 + index) of a run, with `options` of Popen.

        It ends with this process, however that ends; Ctrl-C reaches only this process.
        """
        place = ["role=server"] if rank == 0 else ["role=client", f"client.index={rank - 1}"]
        place += [f"num_clients={len(self.clients)}", f"rpc.host={SERVER_ADDRESS}"]
        command = [sys.executable, str(ROOT / "launch.py"), *overrides, *place]
        with (self.clients[rank - 1] if rank else self.server).inside():
            return subprocess.Popen(command, env=self._environment, preexec_fn=_belong_to_parent, **options)

    def bytes_of(self, client: int) -> tuple[int, int]:
        """Bytes that went up and down a client's link so far, all headers included."""
        (device,) = json.loads(self.clients[client].run("ip", "-s", "-j", "link", "show", "dev", "eth0"))
        return device["stats64"]["tx"]["bytes"], device["stats64"]["rx"]["bytes"]

    def measure(self, client: int = 0) -> tuple[float, float]:
        """Mbit/s that a plain TCP transfer gets up and down a client's link, headers not counted: 96 % of its rate."""
        return self._transfer(client, True, self.up_mbits), self._transfer(client, False, self.down_mbits)

    def _transfer(self, client: int, up: bool, mbits: float | None) -> float:
        nbytes = int(PROBE_S * 1e6 / 8 * (mbits or 1000))
        with self.server.inside():
            listener = socket.create_server((SERVER_ADDRESS, 0))
        with listener:
            with self.clients[client].inside():
                near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
        with near, far:
            source, sink = (near, far) if up else (far, near)
            started = time.perf_counter()
            sender = threading.Thread(target=source.sendall, args=(bytes(nbytes),), daemon=True)
            sender.start()
            received = 0
            while received < nbytes:
                received += len(sink.recv(1 << 16))
            seconds = time.perf_counter() - started
            sender.join()
        return 8e-6 * nbytes / seconds


@contextmanager
def network(num_clients: int, up_mbits: float | None = None, down_mbits: float | None = None) -> Iterator[Network]:
    """A server and clients whose links have these rates, in Mbit/s of Ethernet frames, both ways at once.

    The links have no delay of their own beside the time that a packet takes at the rate.

    Raises:
        SystemExit: with one sentence, where it cannot be made.
    """
    if reason := why_not():
        sys.exit(f"this makes network namespaces: {reason}")
    with ExitStack() as stack:
        namespaces = [Namespace() for _ in range(1 + num_clients)]
        for namespace in namespaces:
            stack.callback(namespace.close)
        yield Network(namespaces[0], namespaces[1:], up_mbits, down_mbits)


def why_not() -> str | None:
    """Why no network can be made here, in words; None where it can."""
    if sys.platform != "linux":
        return "only Linux has them"
    if os.geteuid() != 0:
        return "start it as root, with sudo"
    if missing := [command for command in ("ip", "tc") if not shutil.which(command)]:
        return f"there is no command {' and no '.join(missing)} (package iproute2)"
    try:
        Namespace().close()
    except OSError as error:
        return f"this system does not let root make them ({error.strerror})"
    return None


def _limit(namespace: Namespace, device: str, mbits: float | None) -> None:
    """Lets a device send no faster than this."""
    if mbits is None:
        return
    # What may go at once, unlimited: two packets, or what a timer costs that is late by a quarter of a millisecond.
    # With the tens of kilobytes that are often used, a whole compressed payload would pass as if there were no limit.
    burst = max(3200, int(mbits * 1e6 / 8 * 0.25e-3))
    limit = ("rate", f"{mbits}mbit", "burst", str(burst), "latency", "50ms")
    namespace.run("tc", "qdisc", "replace", "dev", device, "root", "tbf", *limit)


def _belong_to_parent() -> None:
    """In a process that starts: makes it end with its parent, and out of the reach of the terminal's Ctrl-C."""
    os.setpgrp()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _call(function, *arguments: int) -> None:
    if function(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
