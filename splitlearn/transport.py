"""The only file that knows torch.distributed.rpc: how ranks meet, and how a call reaches the server.

How it works: the server holds an RRef to the object with the server segment, and a call is one RPC to it. A handler
thread puts the call into the server's inbox and returns a future; the server's main thread takes requests from the
inbox in the order that its own program asks for them, and answers. Calls are numbered by the client, sent again where
no answer comes, and applied once (see inbox.py). Every call is signed with a key of the client's connection to the
front desk, and a message can name nothing but `_deliver` (see guard.py).

Clients sign in at the server's front desk (see frontdesk.py), each for itself, so that one can leave, crash and come
back while the others go on. Where it is, says rpc.host and rpc.port, or for ranks that torchrun or the launching
process has started together, the TCP store that they share. init_rpc connects all ranks with all at once and for good:
after a rank was killed it fails, also when torchrun starts all anew. `_start_agent` does what it does inside, for one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.rpc as rpc
from torch.futures import Future

from splitlearn import frontdesk, guard
from splitlearn.errors import PeerError, Rejoin, UserError
from splitlearn.inbox import Inbox

SERVER = "server"
FAREWELL_S = 10.0  # how long the server waits at the end for clients that have not left, such as one that is stopped
RECONNECT_EVERY_S = 0.5
FLEET_RECONNECT_S = 5.0  # then the launcher knows better
MAX_RECONNECTS = 10  # in a row, with the server there each time and its RPC not
INTERFACE = "TP_SOCKET_IFNAME"  # the environment variable that says where RPC listens


@dataclass(frozen=True)
class Place:
    """Where this process stands in the run.

    Attributes:
        rank: 0 for the server, 1 + index for a client.
        num_clients: clients in the run.
        host, port: where the ranks meet.
        is_fleet: all ranks were started together, and meet at a TCP store; else at the server's front desk.
        one_machine: all ranks are on this machine, on one console.
    """

    rank: int
    num_clients: int
    host: str
    port: int
    is_fleet: bool = True
    one_machine: bool = False

    @property
    def name(self) -> str:
        return rank_name(self.rank)


def rank_name(rank: int) -> str:
    return SERVER if rank == 0 else f"client{rank - 1}"


@dataclass(frozen=True)
class Patience:
    """How long what may take, in seconds.

    Attributes:
        call_s: a call until its answer, waiting for others included.
        retry_s: until a call without an answer is sent again; doubles each time.
        connect_s: until all ranks, or the server, are there.
    """

    call_s: float
    retry_s: float
    connect_s: float


class ServerProxy:
    """The client's side: calls to the server."""

    def __init__(
        self,
        client: int,
        address: str,
        patience: Patience,
        session: str,
        key: bytes,
        reconnect: Callable[[float], tuple[str, bytes]],
    ):
        self.client, self.address, self.patience = client, address, patience
        self._session, self._key, self._reconnect = session, key, reconnect
        self._number = 0

    def call(self, kind: str, *body: Any) -> Any:
        """Sends one request and waits for its answer.

        Raises:
            PeerError: the server ended the run, is gone, or did not answer in time.
            Rejoin: the server does not know this client any more, and waits for its hello.
        """
        self._number += 1
        what = self.client, self._session, self._number, kind
        deadline = time.monotonic() + self.patience.call_s
        wait_s = self.patience.retry_s
        num_reconnects = 0
        while True:
            remaining_s = deadline - time.monotonic()
            try:
                timeout_s = max(0.1, min(wait_s, remaining_s))
                arguments = (*what, guard.sign(self._key, *what), body)
                status, value = _wait(rpc.rpc_async(SERVER, _deliver, args=arguments, timeout=timeout_s))
                if status == "unsigned":  # the front desk takes this client for gone
                    raise RuntimeError(value)
                break
            except RuntimeError as error:
                if "timeout" not in str(error).lower():
                    rpc_address, self._key = self._reconnect(deadline)
                    num_reconnects += 1
                    if num_reconnects == MAX_RECONNECTS:
                        raise PeerError(
                            f"the server at {self.address} lets client {self.client} in, but its RPC at {rpc_address}"
                            f" cannot be reached: let that port through its firewall, and unset {INTERFACE}"
                        ) from error
                elif remaining_s > wait_s:
                    wait_s *= 2  # the call or its answer was lost, or the server is only slow: it applies it once
                else:
                    raise PeerError(
                        f"the server at {self.address} did not answer within {self.patience.call_s:.0f} s"
                        " (rpc.timeout_s)"
                    ) from error
        if status == "rejoin":
            raise Rejoin
        if status == "failed":
            error = PeerError(value)
            error.is_told = True
            raise error
        return value

    def give_up(self) -> None:
        """Calls that still wait, in other threads, end with the connection instead of connecting anew."""

        def refuse(_: float) -> str:
            raise PeerError("this client has left")

        self._reconnect = refuse


def _wait(future: Future) -> Any:
    """The future's value. Waiting for the future itself could not be interrupted by a signal."""
    answered = threading.Event()
    future.add_done_callback(lambda _: answered.set())
    answered.wait()
    return future.wait()


@contextmanager
def connect(place: Place, patience: Patience, token: bytes, served: Any = None) -> Iterator[ServerProxy | None]:
    """Meets the other ranks, starts RPC, and ends it on the way out.

    Args:
        place: this process's.
        patience: how long what may take.
        token: lets clients in (see frontdesk.py); the same on all ranks.
        served: on the server, the object with an `inbox`.

    Yields:
        A ServerProxy on a client; None on the server.

    Raises:
        UserError: the server or a client was not there in time.
    """
    global _num_fleets
    _num_fleets += place.is_fleet
    with guard.closed([_deliver]), _interface(place) as address:
        if place.rank == 0:
            with _serve(place, address, patience, token, served):
                yield None
        else:
            with _enter(place, patience, token) as proxy:
                yield proxy


@contextmanager
def _serve(place: Place, address: str, patience: Patience, token: bytes, served: Any) -> Iterator[None]:
    global _served
    inbox = served.inbox

    def notify() -> None:
        with inbox.changed:
            inbox.changed.notify_all()

    rpc_address = _start_agent(SERVER, 0, patience)
    desk = None
    try:
        host, port = (address, 0) if place.is_fleet else (place.host, place.port)
        desk = frontdesk.FrontDesk(
            host, port, rpc_address, place.num_clients, token, notify, inbox.is_open, patience.call_s
        )
        _served = rpc.RRef(_Served(inbox, desk))
        inbox.is_alive = desk.is_present
        if place.is_fleet:
            store = _join_store(place, patience.connect_s)
            store.set(_desk_key(), f"{host}:{desk.port}")
        yield
    finally:
        if desk is not None:
            deadline = time.monotonic() + FAREWELL_S  # so that the last answers arrive
            while time.monotonic() < deadline and any(map(desk.is_present, range(place.num_clients))):
                time.sleep(0.02)
            desk.close()
        _served = None
        rpc.shutdown(graceful=False)


@contextmanager
def _enter(place: Place, patience: Patience, token: bytes) -> Iterator[ServerProxy]:
    global _worker_id
    client, session = place.rank - 1, secrets.token_hex(16)
    deadline = time.monotonic() + patience.connect_s
    store = _join_store(place, patience.connect_s) if place.is_fleet else None
    while True:
        host, port = _desk_in(store, place, deadline) if store else (place.host, place.port)
        try:
            timeout_s = RECONNECT_EVERY_S if store else patience.connect_s
            entry = frontdesk.enter(host, port, client, _worker_id, session, token, timeout_s)
            break
        except frontdesk.Unreachable:
            # A fleet that torchrun has started again finds the desk of the one before, until its server has come.
            if store is None or time.monotonic() > deadline:
                raise
            time.sleep(RECONNECT_EVERY_S)

    def reconnect(deadline: float) -> tuple[str, bytes]:
        """Connects anew, to the same server or to one that was started since, which may take until `deadline`.

        Returns:
            The address of its RPC, and the key to sign with.
        """
        nonlocal entry
        before = entry  # stays connected until then, so that a server that is there does not take this client for gone
        rpc.shutdown(graceful=False)
        if place.is_fleet:
            deadline = min(deadline, time.monotonic() + FLEET_RECONNECT_S)
        while True:
            time.sleep(RECONNECT_EVERY_S)
            try:
                entry = frontdesk.enter(host, port, client, _worker_id, session, token, RECONNECT_EVERY_S)
                break
            except frontdesk.Unreachable:
                if time.monotonic() > deadline:
                    raise PeerError(
                        f"the server at {host}:{port} is gone: its process ended or the connection broke"
                    ) from None
        before.connection.close()
        _start_agent(place.name, entry.id, patience, entry.address)
        return entry.address, entry.key

    try:
        _worker_id = entry.id
        _start_agent(place.name, entry.id, patience, entry.address)
        yield ServerProxy(client, f"{host}:{port}", patience, session, entry.key, reconnect)
    finally:
        entry.connection.close()
        if rpc.api._is_current_rpc_agent_set():
            rpc.shutdown(graceful=False)


def _desk_in(store: dist.TCPStore, place: Place, deadline: float) -> tuple[str, int]:
    """Where the store says that the server's front desk is."""
    try:
        store.wait([_desk_key()], timedelta(seconds=max(0.1, deadline - time.monotonic())))
    except RuntimeError:  # DistStoreError
        raise UserError(
            f"the server did not come to {place.host}:{place.port} in time: start all ranks, or raise"
            " rpc.connect_timeout_s"
        ) from None
    host, port = store.get(_desk_key()).decode().rsplit(":", 1)
    return host, int(port)


def _desk_key() -> str:
    """Where the store says where the server's front desk is; a key a run, as a process may do several."""
    return f"splitlearn/{_num_fleets}"


def _start_agent(name: str, number: int, patience: Patience, server_address: str | None = None) -> str:
    """Starts this process's RPC agent, which knows itself and, on a client, the server; returns its address.

    It is what init_rpc does without its rendezvous: an agent finds others' addresses in a store, so that one of its
    own is enough. All of it is private to torch; checked with 2.11 to 2.15.
    """
    from torch.distributed import autograd

    try:
        from torch._C._distributed_rpc import TensorPipeAgent

        store = dist.HashStore()
        if server_address is not None:
            for key, value in (
                ("names/0", SERVER),
                ("names/_ALL_WORKER_INFOS", f"{SERVER}-0,"),
                (f"addrs/{SERVER}", server_address),
            ):
                store.set(key, value)
        autograd._init(number)
        agent = TensorPipeAgent(store, name, number, None, _options(patience), {}, [])
        rpc.api._init_rpc_states(agent)
        return store.get(f"addrs/{name}").decode()
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(
            f"torch {torch.__version__} cannot start RPC role by role ({error}): use torch 2.11 to 2.15"
        ) from None


def _options(patience: Patience) -> rpc.TensorPipeRpcBackendOptions:
    return rpc.TensorPipeRpcBackendOptions(_transports=["uv"], _channels=["basic"], rpc_timeout=patience.call_s)


def host_store(host: str, port: int) -> dist.TCPStore:
    """Makes the store that the ranks meet at, listening on `host` alone. Port 0 takes a free one (see `store.port`)."""
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise UserError(
            f"cannot listen on rpc.host={host} rpc.port={port} ({error.strerror}): choose an address of this machine"
            " and a free port"
        ) from None
    port = listener.getsockname()[1]
    return dist.TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


_num_fleets = 0  # that this process was part of
_worker_id = 0  # of this process, as its first server gave it; RPC takes no other one after


class _Served:
    """What the server's RRef is to. It cannot be had from outside: who fetches the RRef gets nothing."""

    def __init__(self, inbox: Inbox, desk: frontdesk.FrontDesk):
        self.inbox, self.desk = inbox, desk

    def __reduce__(self):
        guard.refuse("message", "it fetches the server's RRef")
        raise TypeError("the server is not sent to anyone")


_served: rpc.RRef | None = None


@rpc.functions.async_execution
def _deliver(*call: Any) -> Future:
    """Takes a call of (client, session, number, kind, signature, body), from anyone who reaches this process's port."""
    served = _served and _served.local_value()
    if served and len(call) == 6:
        *what, signature, body = call
        key = served.desk.key_of(*what[:2])
        if key and guard.is_signed(signature, key, *what):
            return served.inbox.deliver(*what, body)
    guard.refuse("call", f"it is not signed: {call[:1] + call[2:4]!r:.100}")
    refusal = Future()
    refusal.set_result(("unsigned", "the call is not signed by a client that is signed in"))
    return refusal


def _join_store(place: Place, timeout_s: float) -> dist.TCPStore:
    # A plain socket finds out whether the store is there, since TCPStore reports a missing one on 60 lines.
    frontdesk.reach(place.host, place.port, timeout_s).close()
    return dist.TCPStore(place.host, place.port, is_master=False, timeout=timedelta(seconds=timeout_s))


@contextmanager
def _interface(place: Place) -> Iterator[str]:
    """Binds RPC to the network interface that leads to where the ranks meet, and yields its address.

    It is the loopback where all ranks are on one machine.
    """
    if place.one_machine:
        address = "127.0.0.1"
    else:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect((place.host, place.port))  # sends nothing
                address = probe.getsockname()[0]
        except (OSError, UnicodeError) as error:
            key = "MASTER_ADDR" if place.is_fleet else "rpc.host"
            raise UserError(
                f"{key}={place.host} cannot be reached ({error}): give the server's name or IPv4 address"
            ) from None
    if INTERFACE in os.environ:
        yield address  # the user chose the interface
        return
    if name := _name_of(address):
        os.environ[INTERFACE] = name
    try:
        yield address
    finally:
        os.environ.pop(INTERFACE, None)  # for what else this process runs, or starts


def _name_of(address: str) -> str | None:
    """Name of this machine's interface with an IPv4 address."""
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                request = struct.pack("256s", name.encode()[:15])
                if socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24]) == address:
                    return name
            except OSError:
                continue  # an interface without an IPv4 address
    return None


_SIOCGIFADDR = 0x8915  # linux/sockios.h
