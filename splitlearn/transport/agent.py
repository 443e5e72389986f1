"""This process's RPC agent: all that is used of torch's private parts to start one by itself.

How it works: init_rpc connects all ranks with all at once and for good: after a rank was killed it fails, also when
torchrun starts all anew. `start_agent` does what it does inside, for one. It needs no rendezvous, as an agent finds
others' addresses in a store, so that one of its own is enough. Checked with torch 2.11 to 2.15.
"""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.rpc as rpc

from splitlearn.errors import UserError
from splitlearn.transport.place import SERVER, Patience

INTERFACE = "TP_SOCKET_IFNAME"  # the environment variable that says where RPC listens
LISTENS = "0A"  # as Linux writes the state of a socket
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


def start_agent(name: str, number: int, patience: Patience, server_address: str | None = None) -> str:
    """Starts this process's RPC agent, which knows itself and, on a client, the server; returns its address.

    It listens on the loopback alone: what comes from other machines comes by relay.py.

    Raises:
        UserError: this version of torch keeps its parts elsewhere.
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
        # For distributed autograd, which nothing here uses. It would take one number for ever, and a client that comes
        # back to a server that was started anew may get another one.
        autograd._init(0)
        with _loopback():
            agent = TensorPipeAgent(store, name, number, None, _options(patience), {}, [])
        rpc.api._init_rpc_states(agent)
        return store.get(f"addrs/{name}").decode()
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(
            f"torch {torch.__version__} cannot start RPC role by role ({error}): use torch 2.11 to 2.15"
        ) from None


def _options(patience: Patience) -> rpc.TensorPipeRpcBackendOptions:
    return rpc.TensorPipeRpcBackendOptions(_transports=["uv"], _channels=["basic"], rpc_timeout=patience.call_s)


@contextmanager
def _loopback() -> Iterator[None]:
    """The interface that RPC listens on, for what is started within this alone."""
    before = os.environ.get(INTERFACE)
    os.environ[INTERFACE] = LOOPBACK
    try:
        yield
    finally:
        if before is None:
            del os.environ[INTERFACE]
        else:
            os.environ[INTERFACE] = before


def stop_agent() -> None:
    """Ends this process's RPC agent, without waiting for others."""
    rpc.shutdown(graceful=False)


def is_listening(address: str) -> bool:
    """Whether this process's agent still listens at host:port.

    RPC stops to listen for good when somebody connects to it and says nothing; so this looks without connecting. After
    that any user of the machine may take the port, so that it matters whose it is, which Linux tells. Elsewhere this
    sees whether anybody has it.
    """
    host, port = address.rsplit(":", 1)
    with suppress(OSError):
        return int(port) in _own_ports()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections do not keep it from the port
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError:
            return True
    return False


def _own_ports() -> set[int]:
    """TCP ports that this process listens on.

    Raises:
        OSError: this system does not tell.
    """
    lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    with suppress(OSError):  # there is no IPv6
        lines += Path("/proc/self/net/tcp6").read_text().splitlines()[1:]
    ports = {}  # of all processes, by socket
    for line in lines:
        _, local, _, state, *_ = fields = line.split()
        if state == LISTENS:
            ports[f"socket:[{fields[9]}]"] = int(local.rsplit(":", 1)[1], 16)
    own = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # it was closed meanwhile
            own.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return {port for one, port in ports.items() if one in own}


def has_agent() -> bool:
    return rpc.api._is_current_rpc_agent_set()
