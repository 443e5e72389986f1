"""How ranks meet: RPC and the front desk from the start of a run to its end.

How it works: clients sign in at the server's front desk (see frontdesk.py), each for itself, so that one can leave,
crash and come back while the others go on. Where it is, says rpc.host and rpc.port, or for ranks that torchrun or the
launching process has started together, the TCP store that they share.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed.rpc as rpc

from splitlearn.errors import PeerError
from splitlearn.transport import delivery
from splitlearn.transport.agent import has_agent, start_agent, stop_agent
from splitlearn.transport.entry import Unreachable, enter
from splitlearn.transport.files import allow_files
from splitlearn.transport.frontdesk import FrontDesk
from splitlearn.transport.interface import bound_interface
from splitlearn.transport.place import SERVER, Patience, Place
from splitlearn.transport.proxy import ServerProxy
from splitlearn.transport.store import announce, count_fleet, desk_in, join_store
from splitlearn.transport.unpickler import closed

FAREWELL_S = 10.0  # how long the server waits at the end for clients that have not left, such as one that is stopped
RECONNECT_EVERY_S = 0.5
FLEET_RECONNECT_S = 5.0  # then the launcher knows better

_worker_id = 0  # of this process, as its first server gave it; RPC takes no other one after


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
    if place.is_fleet:
        count_fleet()
    with closed([delivery.deliver]), bound_interface(place) as address:
        if place.rank == 0:
            with _serve(place, address, patience, token, served):
                yield None
        else:
            with _enter(place, patience, token) as proxy:
                yield proxy


@contextmanager
def _serve(place: Place, address: str, patience: Patience, token: bytes, served: Any) -> Iterator[None]:
    allow_files(place.num_clients)
    inbox = served.inbox

    def notify() -> None:
        with inbox.changed:
            inbox.changed.notify_all()

    rpc_address = start_agent(SERVER, 0, patience)
    desk = None
    try:
        host, port = (address, 0) if place.is_fleet else (place.host, place.port)
        desk = FrontDesk(host, port, rpc_address, place.num_clients, token, notify, inbox.is_open, patience.call_s)
        delivery.served = rpc.RRef(delivery.Served(inbox, desk))
        inbox.is_alive = desk.is_present
        if place.is_fleet:
            announce(join_store(place, patience.connect_s), host, desk.port)
        yield
    finally:
        if desk is not None:
            deadline = time.monotonic() + FAREWELL_S  # so that the last answers arrive
            while time.monotonic() < deadline and any(map(desk.is_present, range(place.num_clients))):
                time.sleep(0.02)
            desk.close()
        delivery.served = None
        stop_agent()


@contextmanager
def _enter(place: Place, patience: Patience, token: bytes) -> Iterator[ServerProxy]:
    global _worker_id
    client, session = place.rank - 1, secrets.token_hex(16)
    deadline = time.monotonic() + patience.connect_s
    store = join_store(place, patience.connect_s) if place.is_fleet else None
    while True:
        host, port = desk_in(store, place, deadline) if store else (place.host, place.port)
        try:
            timeout_s = RECONNECT_EVERY_S if store else patience.connect_s
            # Its answer may take as long: with many clients on few cores, the server is one process among them.
            entry = enter(host, port, client, _worker_id, session, token, timeout_s, patience.connect_s)
            break
        except Unreachable:
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
        stop_agent()
        if place.is_fleet:
            deadline = min(deadline, time.monotonic() + FLEET_RECONNECT_S)
        while True:
            time.sleep(RECONNECT_EVERY_S)
            try:
                entry = enter(host, port, client, _worker_id, session, token, RECONNECT_EVERY_S)
                break
            except Unreachable:
                if time.monotonic() > deadline:
                    raise PeerError(
                        f"the server at {host}:{port} is gone: its process ended or the connection broke"
                    ) from None
        before.connection.close()
        start_agent(place.name, entry.id, patience, entry.address)
        return entry.address, entry.key

    try:
        _worker_id = entry.id
        start_agent(place.name, entry.id, patience, entry.address)
        yield ServerProxy(client, f"{host}:{port}", patience, session, entry.key, reconnect)
    finally:
        entry.connection.close()
        if has_agent():
            stop_agent()
