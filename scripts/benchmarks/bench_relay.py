"""What carrying RPC through the front desk's port costs: calls that are carried, and calls straight to RPC's own port.

    python scripts/benchmarks/bench_relay.py

A server and a client on this machine. Each round measures both ways one after the other; a call takes a tensor up and
brings a number back. The median of all calls.
"""

import argparse
import multiprocessing
import os
import socket
import time
from statistics import median

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch
from common import markdown

from splitlearn.transport import Inbox, Patience, Place, connect

TOKEN = b"of this measurement"
PATIENCE = Patience(call_s=60, retry_s=30, connect_s=60)
NUM_BYTES = 1, 10_000, 100_000, 1_000_000, 10_000_000


class Served:
    """Answers one client's calls."""

    def __init__(self):
        self.inbox = Inbox(1, PATIENCE.call_s, is_open=True)

    def run(self) -> None:
        while True:
            self.inbox.take(0, "hello").reply(0)


def serve(port: int) -> None:
    torch.set_num_threads(1)
    served = Served()
    with connect(Place(0, 1, "127.0.0.1", port, is_fleet=False), PATIENCE, TOKEN, served):
        served.run()


def seconds_a_call(port: int, is_carried: bool, num_calls: int) -> dict[int, list[float]]:
    place, found = Place(1, 1, "127.0.0.1", port, is_fleet=False, one_machine=not is_carried), {}
    with connect(place, PATIENCE, TOKEN) as server:
        for num_bytes in NUM_BYTES:
            tensor, found[num_bytes] = torch.zeros(num_bytes, dtype=torch.uint8), []
            for _ in range(max(5, num_calls if num_bytes < 1e6 else num_calls // 10)):
                started = time.perf_counter()
                server.call("hello", tensor)
                found[num_bytes].append(time.perf_counter() - started)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=200, help="in a round, of each size below 1 MB")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    server.start()
    seconds = {is_carried: {num_bytes: [] for num_bytes in NUM_BYTES} for is_carried in (False, True)}
    for _ in range(arguments.rounds):
        for is_carried, found in seconds.items():
            for num_bytes, more in seconds_a_call(port, is_carried, arguments.calls).items():
                found[num_bytes] += more
    server.kill()
    rows = []
    for num_bytes in NUM_BYTES:
        straight, carried = (1e3 * median(seconds[is_carried][num_bytes]) for is_carried in (False, True))
        rows.append([f"{num_bytes:,}", f"{straight:.2f}", f"{carried:.2f}", f"{carried - straight:.2f}"])
    print(markdown(["bytes up", "straight, ms", "carried, ms", "more, ms"], rows))


if __name__ == "__main__":
    main()
