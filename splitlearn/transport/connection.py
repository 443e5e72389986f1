"""How ranks meet: RPC and the front desk from the start of a run to its end.

How it works: clients sign in at the server's front desk (see frontdesk.py), each for itself, so that one can leave,
crash and come back while the others go on. Where it is, says rpc.host and rpc.port, or for ranks that torchrun or the
launching process has started together, the TCP store that they share.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed.rpc as rpc

from splitlearn.transport import delivery
from splitlearn.transport.agent import is_listening, start_agent, stop_agent
from splitlearn.transport.entry import NoServer, Unreachable, Way
from splitlearn.transport.files import allow_files
from splitlearn.transport.frontdesk import FrontDesk
from splitlearn.transport.link import RECONNECT_EVERY_S, Link
from splitlearn.transport.place import SERVER, Patience, Place, shown
from splitlearn.transport.proxy import ServerProxy
from splitlearn.transport.store import announce, count_fleet, desk_in, join_store, own_address
from splitlearn.transport.tls import Tls
from splitlearn.transport.unpickler import closed

FAREWELL_S = 10.0  # how long the server waits at the end for clients that have not left, such as one that is stopped


@contextmanager
def connect(
    place: Place,
    patience: Patience,
    token: bytes,
    served: Any = None,
    tell: Callable[[str], None] = lambda text: None,
    tls: Tls | None = None,
) -> Iterator[ServerProxy | None]:
    """Meets the other ranks, starts RPC, and ends it on the way out.

    Args:
        place: this process's.
        patience: how long what may take.
        token: lets clients in (see frontdesk.py); the same on all ranks.
        served: on the server, the object with an `inbox`.
        tell: shows the user a line; any thread may call it.
        tls: encrypts what crosses; None where it is not to be.

    Yields:
        A ServerProxy on a client; None on the server.

    Raises:
        UserError: the server or a client was not there in time.
    """
    if place.is_fleet:
        count_fleet()
    with closed([delivery.deliver]):
        if place.rank == 0:
            with _serve(place, patience, token, served, tell, tls):
                yield None
        else:
            with _enter(place, patience, token, tell, tls) as proxy:
                yield proxy


@contextmanager
def _serve(
    place: Place, patience: Patience, token: bytes, served: Any, tell: Callable[[str], None], tls: Tls | None
) -> Iterator[None]:
    allow_files(place.num_clients, place.one_machine)
    inbox = served.inbox

    def notify() -> None:
        with inbox.changed:
            inbox.changed.notify_all()

    agent, desk, why, farewell_s = ServersAgent(patience, tell), None, "its run is over", FAREWELL_S
    try:
        host, port = (own_address(place), place.desk_port) if place.is_fleet else (place.host, place.port)
        desk = FrontDesk(
            host, port, agent.address, place.num_clients, token, notify, inbox.is_open, patience.call_s, tell, tls
        )
        agent.serve(delivery.Served(inbox, desk))
        inbox.is_alive, inbox.troubles = desk.visits.is_present, desk.troubles
        if not place.one_machine:
            inbox.where = shown(place.host, desk.port)
            tell(f"listening at {inbox.where}{', encrypted' * bool(tls)}{_beside(place, host)}")
        if place.is_fleet:
            announce(join_store(place, patience.connect_s), desk.port)
        yield
    except BaseException as error:
        why = str(error) or type(error).__name__
        farewell_s = 0.0 if isinstance(error, KeyboardInterrupt) else FAREWELL_S
        raise
    finally:
        if desk is not None:
            deadline = time.monotonic() + farewell_s  # so that the last answers arrive
            while time.monotonic() < deadline and any(map(desk.visits.is_expected, range(place.num_clients))):
                time.sleep(0.02)
            desk.close(why)
        agent.close()


class ServersAgent:
    """The server's RPC agent, which is started anew where it does not listen any more.

    Anyone on this machine can bring it to that. Clients that it had then connect anew, as after a reset.
    """

    def __init__(self, patience: Patience, tell: Callable[[str], None]):
        self._patience, self._tell, self._lock = patience, tell, threading.Lock()
        self._served: delivery.Served | None = None
        self._start()

    def serve(self, served: delivery.Served) -> None:
        self._served = served
        delivery.served = rpc.RRef(served)

    def address(self) -> str:
        """Where it listens now, host:port."""
        with self._lock:
            if self._served and not is_listening(self._address):
                self._tell(f"RPC does not listen at {self._address} any more: starting it anew, and clients reconnect")
                self._stop()
                self._start()
                delivery.served = rpc.RRef(self._served)
            return self._address

    def close(self) -> None:
        with self._lock:
            self._served = None
            self._stop()

    def _start(self) -> None:
        self._address = start_agent(SERVER, 0, self._patience).removeprefix("uv://")

    def _stop(self) -> None:
        delivery.served = None
        stop_agent()


def _beside(place: Place, host: str) -> str:
    if place.is_fleet:
        return f", beside torchrun's store at {shown(place.host, place.port)}: clients have to reach both ports"
    index = f"<0 to {place.num_clients - 1}>" if place.num_clients > 1 else "0"
    return (
        f": start each client with role=client num_clients={place.num_clients} client.index={index}"
        " rpc.host=<this machine> rpc.port=<this port> and the same options"
    )


def _explained(error: Unreachable, place: Place) -> Unreachable:
    """What to do where torchrun's store is reached and the server is not."""
    if place.one_machine or not place.is_fleet:
        return error
    return Unreachable(
        f"{error}. torchrun's store at {shown(place.host, place.port)} does answer: let the other port through the"
        " firewall too, which rpc.port=<number> fixes on the server"
    )


@contextmanager
def _enter(
    place: Place, patience: Patience, token: bytes, tell: Callable[[str], None], tls: Tls | None
) -> Iterator[ServerProxy]:
    deadline = time.monotonic() + patience.connect_s
    tell(f"waiting for the server at {shown(place.host, place.port)} (rpc.connect_timeout_s={patience.connect_s:g})")
    store = join_store(place, patience.connect_s) if place.is_fleet else None
    link = Link(place, Way(place.host, place.port, tls), patience, token, tell)
    try:
        while True:
            if store:
                link.way.port = desk_in(store, place, deadline)
            try:
                link.open(deadline, RECONNECT_EVERY_S if store else max(RECONNECT_EVERY_S, deadline - time.monotonic()))
                break
            except Unreachable as error:
                # A fleet that torchrun has started again finds the desk of the one before, until its server has come.
                if time.monotonic() > deadline or (isinstance(error, NoServer) and not store):
                    raise _explained(error, place) from None
                time.sleep(RECONNECT_EVERY_S)
        yield ServerProxy(link)
    finally:
        link.close()
