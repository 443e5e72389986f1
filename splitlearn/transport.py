"""The only file that knows torch.distributed.rpc: who is where, how they meet, and how a call reaches the server.

How it works: all ranks meet at a TCP store at host:port, which torchrun, the launching process or the server hosts.
Each then starts its RPC agent, and every client fetches an RRef to the server, the object that holds the server
segment. A call is one RPC: a handler thread puts it into the server's inbox and returns a future; the server's main
thread takes requests from the inbox in the order that its own program asks for them, and answers. Calls are numbered
by the client. A repeated number gets the first one's future, so that a call is never applied twice.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
import torch.distributed.rpc as rpc
from torch.futures import Future

from splitlearn.errors import PeerError, UserError

SERVER = "server"
PING_EVERY_S = 1.0  # how often the server looks whether a client it waits for is still there
FAREWELL_S = 2.0  # how long the server waits at the end for the clients to have left


@dataclass(frozen=True)
class Place:
    """Where this process stands in the run.

    Attributes:
        rank: 0 for the server, 1 + index for a client.
        num_clients: clients in the run.
        host, port: address of the store that all ranks meet at.
        hosts_store: this process makes the store; else it is there already, or another's to make.
        one_machine: all ranks are on this machine, on one console.
    """

    rank: int
    num_clients: int
    host: str
    port: int
    hosts_store: bool = False
    one_machine: bool = False

    @property
    def name(self) -> str:
        return rank_name(self.rank)


def rank_name(rank: int) -> str:
    return SERVER if rank == 0 else f"client{rank - 1}"


class Request:
    """A client's call, waiting for its answer."""

    def __init__(self, number: int, kind: str, body: tuple, future: Future):
        self.number, self.kind, self.body = number, kind, body
        self.future = future
        self.arrived_at = time.perf_counter()

    def reply(self, value: Any = None) -> None:
        self.future.set_result(("done", value))


class Inbox:
    """The server's requests: at most one a client, since a client waits for its answer."""

    def __init__(self, num_clients: int, timeout_s: float):
        self.timeout_s = timeout_s
        self._requests: list[Request | None] = [None] * num_clients  # the latest of each client
        self._taken = [0] * num_clients  # its number, once it was taken
        self._failure: str | None = None
        self._closed = False  # by the server, because of the failure
        self._changed = threading.Condition()

    def deliver(self, client: int, number: int, kind: str, body: tuple) -> Future:
        """Called by RPC threads. The future's value is ("done", answer) or ("failed", why)."""
        with self._changed:
            latest = self._requests[client]
            if latest is not None and number == latest.number:
                return latest.future
            request = self._requests[client] = Request(number, kind, body, Future())
            if kind == "failed":
                self._failure = self._failure or f"client {client} stopped: {body[0]}"
            if self._closed:
                request.future.set_result(("failed", self._failure))
            self._changed.notify_all()
            return request.future

    def take(self, client: int, kind: str) -> Request:
        """Waits for the client's next request, which must be of this kind.

        Raises:
            PeerError: a client failed, is gone, or sent nothing for `timeout_s`.
        """
        deadline = time.monotonic() + self.timeout_s
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._failure or self._is_new(client), PING_EVERY_S)
                if self._failure:
                    raise PeerError(self._failure)
                if self._is_new(client):
                    request = self._requests[client]
                    self._taken[client] = request.number
                    assert request.kind == kind, f"client {client} sent {request.kind} where {kind} was due"
                    return request
            if not _is_alive(rank_name(client + 1)):
                raise PeerError(f"client {client} is gone: its process ended or its connection broke")
            if time.monotonic() > deadline:
                raise PeerError(
                    f"client {client} did not send its {kind} within {self.timeout_s:.0f} s (rpc.timeout_s)"
                )

    def fail(self, why: str) -> None:
        """Answers every waiting and coming request with why the run ends."""
        with self._changed:
            self._failure = self._failure or why
            self._closed = True
            for request in self._requests:
                if request is not None and not request.future.done():
                    request.future.set_result(("failed", self._failure))

    def _is_new(self, client: int) -> bool:
        request = self._requests[client]
        return request is not None and request.number > self._taken[client]


class ServerProxy:
    """The client's side: calls to the server, through an RRef to it."""

    def __init__(self, client: int, address: str, timeout_s: float):
        self.client, self.address, self.timeout_s = client, address, timeout_s
        self._rref = rpc.remote(SERVER, _served_object, timeout=timeout_s)
        self._number = 0

    def call(self, kind: str, *body: Any) -> Any:
        """Sends one request and waits for its answer.

        Raises:
            PeerError: the server ended the run, is gone, or did not answer within `timeout_s`.
        """
        self._number += 1
        # To the RRef's owner, without the RRef: to send it along would cost each call another message, and a process's
        # second world, in a sweep, cannot receive one (torch keeps the first world's agent for that).
        arguments = (self.client, self._number, kind, body)
        future = rpc.rpc_async(self._rref.owner(), _deliver, args=arguments, timeout=self.timeout_s)
        # Waiting for the future itself could not be interrupted by Ctrl-C.
        answered = threading.Event()
        future.add_done_callback(lambda _: answered.set())
        answered.wait()
        try:
            status, value = future.wait()
        except RuntimeError as error:
            if "timeout" in str(error).lower():
                why = f"did not answer within {self.timeout_s:.0f} s (rpc.timeout_s)"
            else:
                why = "is gone: its process ended or the connection broke"
            raise PeerError(f"the server at {self.address} {why}") from error
        if status == "failed":
            error = PeerError(value)
            error.is_told = True
            raise error
        return value


@contextmanager
def connect(place: Place, timeout_s: float, connect_timeout_s: float, served: Any = None):
    """Meets all other ranks, starts RPC, and ends it on the way out.

    Args:
        place: this process's.
        timeout_s: seconds that a call may take.
        connect_timeout_s: seconds that the other ranks may take to come.
        served: on the server, the object with an `inbox`, that the clients' RRefs are to.

    Yields:
        A ServerProxy on a client; None on the server.

    Raises:
        UserError: the server or a client was not there in time.
    """
    global _served, _num_connects
    _served = served
    _num_connects += 1
    store = _join_store(place, connect_timeout_s)
    keys = {rank: f"splitlearn/{_num_connects}/{{}}/{rank_name(rank)}" for rank in range(place.num_clients + 1)}
    store.set(keys[place.rank].format("here"), "1")
    _wait_for_all(store, place, {rank: key.format("here") for rank, key in keys.items()}, connect_timeout_s)
    _choose_interface(place)
    # init_rpc looks for the store in the environment; this says that it is there already.
    os.environ.update(MASTER_ADDR=place.host, MASTER_PORT=str(place.port), TORCHELASTIC_USE_AGENT_STORE="True")
    os.environ.setdefault("TORCHELASTIC_RESTART_COUNT", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rpc.init_rpc(
            place.name,
            rank=place.rank,
            world_size=place.num_clients + 1,
            rpc_backend_options=rpc.TensorPipeRpcBackendOptions(
                _transports=["uv"], _channels=["basic"], rpc_timeout=timeout_s
            ),
        )
    try:
        yield None if place.rank == 0 else ServerProxy(place.rank - 1, f"{place.host}:{place.port}", timeout_s)
    finally:
        # The server leaves last, so that its last answers arrive. A store that is gone means that nobody waits.
        try:
            if place.rank == 0:
                clients = [key.format("left") for rank, key in keys.items() if rank]
                store.wait(clients, timedelta(seconds=FAREWELL_S))
            else:
                store.set(keys[place.rank].format("left"), "1")
        except RuntimeError:
            pass
        rpc.shutdown(graceful=False)
        _served = None


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


_served: Any = None
_num_connects = 0


def _served_object() -> Any:
    return _served


@rpc.functions.async_execution
def _deliver(client: int, number: int, kind: str, body: tuple) -> Future:
    return _served.inbox.deliver(client, number, kind, body)


def _pong() -> None:
    pass


def _is_alive(name: str) -> bool:
    """False if the peer's process is gone; a peer that is only slow is alive."""
    try:
        rpc.rpc_sync(name, _pong, timeout=PING_EVERY_S)
    except RuntimeError as error:
        return "timeout" in str(error).lower()
    return True


def _join_store(place: Place, timeout_s: float) -> dist.TCPStore:
    if place.hosts_store:
        return host_store(place.host, place.port)
    # A plain socket finds out whether the store is there, since TCPStore reports a missing one on 60 lines.
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((place.host, place.port), timeout=max(0.1, timeout_s)).close()
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"no server at {place.host}:{place.port} within {timeout_s:g} s ({error.strerror or error}):"
                    " start it, or set rpc.host, rpc.port and rpc.connect_timeout_s"
                ) from None
            time.sleep(min(0.2, timeout_s))
    return dist.TCPStore(place.host, place.port, is_master=False, timeout=timedelta(seconds=timeout_s))


def _wait_for_all(store: dist.TCPStore, place: Place, keys: dict[int, str], timeout_s: float) -> None:
    try:
        store.wait(list(keys.values()), timedelta(seconds=timeout_s))
    except RuntimeError:  # DistStoreError
        missing = [rank_name(rank) for rank, key in keys.items() if not store.check([key])]
        raise UserError(
            f"{' and '.join(missing)} did not come to {place.host}:{place.port} within {timeout_s:g} s:"
            f" start all of num_clients={place.num_clients} clients, or raise rpc.connect_timeout_s"
        ) from None


def _choose_interface(place: Place) -> None:
    """Binds RPC to the network interface that leads to the store: the loopback where all ranks are on one machine."""
    if "TP_SOCKET_IFNAME" in os.environ and not _chosen:
        return  # the user chose
    if place.one_machine:
        address = "127.0.0.1"
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((place.host, place.port))  # sends nothing
            address = probe.getsockname()[0]
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                request = struct.pack("256s", name.encode()[:15])
                found = socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
            except OSError:
                continue  # an interface without an IPv4 address
        if found == address:
            os.environ["TP_SOCKET_IFNAME"] = os.environ["GLOO_SOCKET_IFNAME"] = name
            _chosen.add(name)
            return


_SIOCGIFADDR = 0x8915  # linux/sockios.h
_chosen: set[str] = set()
