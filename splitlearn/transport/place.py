"""Where a process stands in the run, and how long it waits."""

import ipaddress
from dataclasses import dataclass

SERVER = "server"


@dataclass(frozen=True)
class Place:
    """Where this process stands in the run.

    Attributes:
        rank: 0 for the server, 1 + index for a client.
        num_clients: clients in the run.
        host, port: where the ranks meet.
        is_fleet: all ranks were started together, and meet at a TCP store; else at the server's front desk.
        desk_port: where the front desk of a fleet is, beside the store; 0 for a free one.
        one_machine: all ranks are on this machine, on one console.
    """

    rank: int
    num_clients: int
    host: str
    port: int
    is_fleet: bool = True
    desk_port: int = 0
    one_machine: bool = False

    @property
    def name(self) -> str:
        return rank_name(self.rank)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address, as one sees from it alone: names can be other machines'."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def shown(host: str, port: int) -> str:
    """An address in words."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def rank_name(rank: int) -> str:
    return SERVER if rank == 0 else f"client{rank - 1}"


@dataclass(frozen=True)
class Patience:
    """How long what may take, in seconds.

    Attributes:
        call_s: a call until its answer, waiting for others included, unless these train alone (see proxy.py).
        retry_s: until a call without an answer is sent again; doubles each time.
        connect_s: until all ranks, or the server, are there.
    """

    call_s: float
    retry_s: float
    connect_s: float
