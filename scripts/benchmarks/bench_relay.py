"""What carrying RPC through the server's one port costs, encrypted or not, against RPC that connects by itself.

    python scripts/benchmarks/bench_relay.py                         over the loopback
    sudo .venv/bin/python scripts/benchmarks/bench_relay.py --mbits 100   over links of that rate (root, Linux)

straight: RPC's own connections; carried: through the front desk's port; encrypted: the same in TLS. Those are what
launch.py does, by threads of the ranks. "processes" is how it might be done: the same relays, in a process beside each
rank. A call brings one tensor up and another down; a client makes one after the other, all clients at once. Rounds of
all ways take turns. CPU seconds are those of all processes beyond what "straight" takes, for each GB that is carried.
"""

import argparse
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch
from common import markdown, start
from namespaces import SERVER_ADDRESS, network

from splitlearn import local
from splitlearn.compose import compose
from splitlearn.saved import metrics
from splitlearn.transport import Inbox, Patience, Place, agent, connect, link
from splitlearn.transport.entry import reach
from splitlearn.transport.relay import Forward, relay, relay_to_agent
from splitlearn.transport.tls import DESK, RPC, tls_of_token

TOKEN = b"of this measurement"
PATIENCE = Patience(call_s=600, retry_s=300, connect_s=60)
WAYS = "straight", "carried", "encrypted", "processes"
SIZES = (1, 1), (37_000, 512_000), (16_000_000, 16_000_000)  # bytes up and down
PORT, DESK_PORT = 29641, 29642


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of calls, in a round, of each size")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--mbits", type=float, help="of each client's link, both ways; else over the loopback")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.rank:
        return play(json.loads(arguments.rank))
    rows = []
    for num_clients in arguments.clients:
        rounds = [
            {way: measure(way, num_clients, arguments.seconds, arguments.mbits) for way in WAYS}
            for _ in range(arguments.rounds)
        ]
        for at, size in enumerate(SIZES):
            found = {way: [one[way][at] for one in rounds] for way in WAYS}
            rows.append(row_of(size, num_clients, found))
    milliseconds = ["straight, ms", *(f"{way} (ratio)" for way in WAYS[1:])]
    print(markdown(["clients", "bytes up, down", *milliseconds, "CPU s / GB: " + ", ".join(WAYS[1:])], rows))
    if not arguments.mbits:
        print(real_steps(arguments.rounds))


def real_steps(rounds: int) -> str:
    """The default run's steps without and with encryption, in a sentence."""
    seconds = {is_on: [] for is_on in (False, True)}
    for _ in range(rounds):
        for is_on, found in seconds.items():
            options = [f"tls.enabled={str(is_on).lower()}", "epochs=4", "num_clients=1", "evaluate.every=1000"]
            with tempfile.TemporaryDirectory() as folder:
                local.run(compose(*options, "data.max_train_samples=512", "log.tensorboard=false"), Path(folder))
                lines = metrics(Path(folder), "epoch")[1:]
            found.append(median(line["seconds"] for line in lines) / (512 / 32))
    ratios = [on / off for off, on in zip(seconds[False], seconds[True], strict=True)]
    off, on = (1e3 * median(found) for found in seconds.values())
    return (
        f"a step of the default run with one client, all of it: {off:.1f} ms straight, {on:.1f} ms encrypted, a ratio"
        f" of {median(ratios):.3f} ({', '.join(f'{ratio:.3f}' for ratio in ratios)})"
    )


def row_of(size: tuple[int, int], num_clients: int, found: dict[str, list[dict]]) -> list[str]:
    straight, cells, more = found["straight"], [], []
    for way in WAYS:
        pairs = list(zip(found[way], straight, strict=True))
        ms, ratio = median(one["ms"] for one, _ in pairs), median(one["ms"] / other["ms"] for one, other in pairs)
        cells.append(f"{ms:.2f} ({ratio:.2f})" if way != "straight" else f"{ms:.2f}")
        if way != "straight" and num_clients == 1 and sum(size) > 1e5:
            more.append(f"{median(one['cpu_s'] - other['cpu_s'] for one, other in pairs) / sum(size) * 1e9:.1f}")
    return [f"{num_clients}", "{:,}, {:,}".format(*size), *cells, ", ".join(more)]


def measure(way: str, num_clients: int, seconds: float, mbits: float | None) -> list[dict]:
    """Milliseconds of a call, the median of all clients, and CPU seconds of all processes for one, for each size."""
    with ExitStack() as stack:
        net = stack.enter_context(network(num_clients, mbits, mbits)) if mbits else None
        host = SERVER_ADDRESS if net else "127.0.0.1"
        ranks = []
        for rank in range(num_clients + 1):
            told = {"rank": rank, "way": way, "clients": num_clients, "seconds": seconds, "host": host}
            told |= {"interface": None if not net else "eth0" if rank else "bridge"}
            command = [sys.executable, __file__, "--rank", json.dumps(told)]
            inside = (net.clients[rank - 1] if rank else net.server).inside() if net else ExitStack()
            with inside:
                ranks.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(ranks[-1].kill)
        _, *clients = [rank.communicate(timeout=600)[0].splitlines() for rank in ranks]
    found = [json.loads(lines[-1]) for lines in clients]
    return [
        {"ms": median(client[at]["ms"] for client in found), "cpu_s": found[0][at]["cpu_s"]} for at in range(len(SIZES))
    ]


def play(told: dict) -> None:
    """One rank of a measurement, which says at its end what it took."""
    if told["way"] == "straight" and told["interface"]:
        agent.LOOPBACK = os.environ[agent.INTERFACE] = told["interface"]
    serve(told) if told["rank"] == 0 else call(told)


class Served:
    """What a server has, to answer calls."""

    def __init__(self, num_clients: int):
        self.inbox = Inbox(num_clients, PATIENCE.call_s, is_open=True)


def serve(told: dict) -> None:
    served, num_clients, beside, tls = Served(told["clients"]), told["clients"], None, None
    answers = {down: torch.zeros(down, dtype=torch.uint8) for _, down in SIZES}

    def answer_all(client: int) -> None:
        while (what := (request := served.inbox.take(client, "hello")).body[0]) != "end":
            request.reply(cpu_s(beside) if what == "cpu" else answers[what])
        request.reply(0)

    place = Place(0, num_clients, told["host"], PORT, is_fleet=False, one_machine=is_straight(told))
    if told["way"] == "processes":
        place = Place(0, num_clients, "127.0.0.1", DESK_PORT, is_fleet=False)
    if told["way"] == "encrypted":
        tls = tls_of_token("server", TOKEN)
    with connect(place, PATIENCE, TOKEN, served, tls=tls):
        if told["way"] == "processes":
            beside = Beside(front, told["host"], rpc_address())
        for first in [served.inbox.take(client, "hello") for client in range(num_clients)]:
            first.reply(0)
        threads = [threading.Thread(target=answer_all, args=(client,)) for client in range(num_clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def call(told: dict) -> None:
    way, beside, found = told["way"], None, []
    place = Place(told["rank"], told["clients"], told["host"], PORT, is_fleet=False, one_machine=is_straight(told))
    tls = tls_of_token("client", TOKEN) if way == "encrypted" else None
    if way == "processes":
        beside = Beside(forwards, told["host"])
        place = Place(told["rank"], told["clients"], "127.0.0.1", beside.ask(None), is_fleet=False)
        link.Forward = lambda dial, named: Elsewhere(beside, named)
    with connect(place, PATIENCE, TOKEN, tls=tls) as server:
        server.call("hello", "all are there")
        for up, down in SIZES:
            tensor, seconds = torch.zeros(up, dtype=torch.uint8), []
            until = time.perf_counter() + told["seconds"]
            before = cpu_s(beside) + server.call("hello", "cpu")
            while len(seconds) < 3 or time.perf_counter() < until:
                began = time.perf_counter()
                server.call("hello", down, tensor)
                seconds.append(time.perf_counter() - began)
            used_s = cpu_s(beside) + server.call("hello", "cpu") - before
            found.append({"ms": 1e3 * median(seconds), "cpu_s": used_s / len(seconds)})
        server.call("hello", "end")
    print(json.dumps(found), flush=True)


def is_straight(told: dict) -> bool:
    return told["way"] == "straight"


def rpc_address() -> str:
    """Where this process's agent listens, host:port."""
    import torch.distributed.rpc as rpc

    return rpc.api._get_current_rpc_agent().store.get("addrs/server").decode().removeprefix("uv://")


# Relays in a process of their own


class Beside:
    """A process beside this one, which it asks by a pipe; it ends with it."""

    def __init__(self, target, *arguments):
        context = multiprocessing.get_context("spawn")
        self._lock, (self._pipe, end) = threading.Lock(), context.Pipe()
        process = context.Process(target=target, args=(*arguments, end), daemon=True)
        process.start()
        self.ask("cpu")  # it is there

    def ask(self, what):
        with self._lock:
            self._pipe.send(what)
            return self._pipe.recv()


def cpu_s(beside: Beside | None) -> float:
    """Of this process, and of the one beside it."""
    return time.process_time() + (beside.ask("cpu") if beside else 0.0)


class Elsewhere:
    """A Forward in the process beside this one."""

    def __init__(self, beside: Beside, named: str):
        self.address, self.trouble = beside.ask(named), None

    def close(self) -> None:
        pass


def front(host: str, address: str, pipe) -> None:
    """Beside the server: takes what is encrypted, for the front desk and for RPC."""
    tls = tls_of_token("server", TOKEN)

    def take(raw: socket.socket) -> None:
        connection = tls.wrap(raw, 60)
        if connection.purpose == RPC:
            relay_to_agent(connection, address)
        else:
            relay(connection, socket.create_connection(("127.0.0.1", DESK_PORT)))

    accept(socket.create_server((host, PORT), backlog=64), take)
    with suppress(EOFError):  # the rank has ended
        while pipe.recv():
            pipe.send(time.process_time())


def forwards(host: str, pipe) -> None:
    """Beside a client: encrypts what it says to the front desk, and to RPC."""
    tls, kept = tls_of_token("client", TOKEN), []

    def dial(purpose: str):
        return tls.wrap(reach(host, PORT, 60), 60, purpose)

    listener = socket.create_server(("127.0.0.1", 0))
    accept(listener, lambda near: relay(near, dial(DESK)))
    with suppress(EOFError):
        while True:
            what = pipe.recv()
            if what == "cpu":
                pipe.send(time.process_time())
            elif what is None:
                pipe.send(listener.getsockname()[1])
            else:
                kept.append(Forward(lambda: dial(RPC), what))
                pipe.send(kept[-1].address)


def accept(listener: socket.socket, take) -> None:
    def run() -> None:
        while True:
            near, _ = listener.accept()
            threading.Thread(target=take, args=(near,), daemon=True).start()

    threading.Thread(target=run, daemon=True).start()


if __name__ == "__main__":
    start(main)
