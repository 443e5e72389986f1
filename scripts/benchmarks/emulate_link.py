"""Runs a server and clients on this machine as if each client had a slow link to the server (root, Linux).

    sudo .venv/bin/python scripts/benchmarks/emulate_link.py --rate 20 --clients 2 -- compressor=ms epochs=5
    sudo .venv/bin/python scripts/benchmarks/emulate_link.py --up 20 --down 100 -- arch=vgg19 data=cifar10

Server and clients run launch.py, each in a network namespace of its own, with the overrides after --. What the server
says is shown and its exit code returned. Ctrl-C or SIGTERM stops the run as it does without a link: with a checkpoint
after the current step; a second one at once. Nothing is left behind, whatever happens.

A link has a rate each way, but no delay; the kernel's queueing discipline tbf makes it. The namespaces have no way out:
data must be on this machine.
"""

import argparse
import sys
import time

from common import start
from namespaces import Network, network

GRACE_S = 10.0  # for the other ranks to end by themselves after one has ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=mbits, default=100.0, metavar="MBITS", help="Mbit/s both ways, by default 100")
    parser.add_argument("--up", type=mbits, metavar="MBITS", help="Mbit/s from each client, where not as --rate")
    parser.add_argument("--down", type=mbits, metavar="MBITS", help="Mbit/s to each client, where not as --rate")
    parser.add_argument("--clients", type=int, default=2, metavar="N")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    up, down = arguments.up or arguments.rate, arguments.down or arguments.rate
    with network(arguments.clients, up, down) as net:
        measured_up, measured_down = net.measure()
        print(
            f"each client's link: {up:g} Mbit/s up, {down:g} Mbit/s down; a plain TCP transfer gets"
            f" {measured_up:.1f} up, {measured_down:.1f} down",
            flush=True,
        )
        sys.exit(run(net, arguments.overrides))


def mbits(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 10_000:
        raise argparse.ArgumentTypeError(f"{text} Mbit/s is out of range: choose 0.1 to 10000")
    return value


def run(net: Network, overrides: list[str], **options) -> int:
    """Plays a run through on a network; returns the server's exit code, 128 + number for a signal's.

    Args:
        net: with as many clients as the run is to have.
        overrides: as for launch.py.
        options: of each process's Popen.
    """
    from splitlearn.stopping import StopRequest

    ranks = []
    try:
        for rank in range(1 + len(net.clients)):
            ranks.append(net.start(rank, *overrides, **options))
        server, *clients = ranks
        with StopRequest(then=server.terminate):
            while server.poll() is None and not any(client.poll() for client in clients):
                time.sleep(0.05)
            deadline = time.monotonic() + GRACE_S
            while None in [rank.poll() for rank in ranks] and time.monotonic() < deadline:
                time.sleep(0.05)
        if server.poll() is None:
            codes = {index: client.returncode for index, client in enumerate(clients) if client.returncode}
            print(f"ended by exit codes of clients, and the server did not see it: {codes}", file=sys.stderr)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


if __name__ == "__main__":
    start(main)
