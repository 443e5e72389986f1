"""The TCP store that ranks which were started together meet at, and where it says that the server's front desk is.

torchrun's own store listens on every interface and takes what anybody writes into it. What it says here is only where
the server is, and there it has to show that it is the server. But torchrun itself, with --standalone, without a port,
or with another dynamic rendezvous, keeps a pickle in one, which whoever reaches it can put code into; its static
rendezvous keeps none.
"""

import ipaddress
import os
import socket
import time
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import torch.distributed as dist

from splitlearn.errors import UserError
from splitlearn.transport.entry import reach
from splitlearn.transport.place import Place, shown

num_fleets = 0  # that this process was part of


def count_fleet() -> None:
    """Says that this process is part of one more fleet, whose front desk has a key of its own."""
    global num_fleets
    num_fleets += 1


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


def join_store(place: Place, timeout_s: float) -> dist.TCPStore:
    """The store that another process hosts."""
    # A plain socket finds out whether the store is there, since TCPStore reports a missing one on 60 lines.
    reach(place.host, place.port, timeout_s).close()
    return dist.TCPStore(place.host, place.port, is_master=False, timeout=timedelta(seconds=timeout_s))


def own_address(place: Place) -> str:
    """This machine's address that a fleet's clients find it at; "", all of them, where its own name is the loopback's.

    Raises:
        UserError: where the ranks meet is no address that can be reached.
    """
    if place.one_machine:
        return "127.0.0.1"
    try:
        family, *_, address = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            own = probe.getsockname()[0]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"MASTER_ADDR={place.host} cannot be reached ({error}): give the server's name or address"
        ) from None
    return "" if ipaddress.ip_address(own.split("%")[0]).is_loopback else own


def announce(store: dist.TCPStore, port: int) -> None:
    """Says at which port of the machine that the ranks meet at the server's front desk is."""
    store.set(_desk_key(), str(port))


def desk_in(store: dist.TCPStore, place: Place, deadline: float) -> int:
    """The port that the store says that the server's front desk is at."""
    try:
        store.wait([_desk_key()], timedelta(seconds=max(0.1, deadline - time.monotonic())))
    except RuntimeError:  # DistStoreError
        raise UserError(
            f"the server did not come to {place.host}:{place.port} in time: start all ranks, or raise"
            " rpc.connect_timeout_s"
        ) from None
    said = store.get(_desk_key())
    if not (said.isdigit() and 0 < int(said) < 1 << 16):
        raise UserError(
            f"torchrun's store at {shown(place.host, place.port)} says that the server is at port {said[:20]!r}:"
            " somebody else writes into it; keep strangers away from that port"
        )
    return int(said)


def left_open(place: Place) -> str:
    """What of torchrun anybody on the network can reach, in words."""
    here = f"torchrun's store listens on every interface of this machine, port {place.port}"
    if _is_dynamic():
        return (
            f"{here}, and at another one, out of which torchrun runs code that anybody has put there: start it with"
            " --master-port 29500, and without --standalone or --rdzv-backend (see docs/security.md)"
        )
    return f"{here}: who reaches it can end the run, and no more (see docs/security.md)"


def _is_dynamic() -> bool:
    """Whether torchrun's ranks meet by a rendezvous that keeps pickles, by its command line or environment."""
    try:
        command = os.fsdecode((Path("/proc") / str(os.getppid()) / "cmdline").read_bytes()).split("\0")
    except OSError:
        command = []
    command = [word.replace("_", "-") for word in command]
    backends = [value for name, value in pairwise(command) if name == "--rdzv-backend"]
    backends += [name.partition("=")[2] for name in command if name.startswith("--rdzv-backend=")]
    backends = backends or [os.environ.get("PET_RDZV_BACKEND", "static")]
    # With neither of these nor a port, recent versions of torchrun take one that is dynamic, and draw an id for it.
    has_drawn = os.environ["TORCHELASTIC_RUN_ID"] != "none" and not any("--rdzv-id" in word for word in command)
    return "--standalone" in command or backends[-1] != "static" or has_drawn


def _desk_key() -> str:
    """Where the store says where the server's front desk is; a key a run, as a process may do several."""
    return f"splitlearn/{num_fleets}"
