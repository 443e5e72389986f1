"""The TCP store that ranks which were started together meet at, and where it says that the server's front desk is."""

import socket
import time
from datetime import timedelta

import torch.distributed as dist

from splitlearn.errors import UserError
from splitlearn.transport.entry import reach
from splitlearn.transport.place import Place

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


def announce(store: dist.TCPStore, host: str, port: int) -> None:
    """Says where the server's front desk is."""
    store.set(_desk_key(), f"{host}:{port}")


def desk_in(store: dist.TCPStore, place: Place, deadline: float) -> tuple[str, int]:
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
    return f"splitlearn/{num_fleets}"
