"""How a step grows with the number of clients, how much of it the server works, and what a client costs the server.

    python scripts/benchmarks/scaling.py                                   1 to 32 clients on this machine, some minutes
    python scripts/benchmarks/scaling.py --clients 2 10 50 100 --rounds 1  what each costs in memory, threads and files
    python scripts/benchmarks/scaling.py --clients 100 --rounds 1 -- membership.sample=10
    python scripts/benchmarks/scaling.py --clients 1 2 --rounds 1 -- arch=resnet18

Every client has the same number of batches, and all processes have one thread. Times are medians over the epochs after
the first, of runs that take turns. The clients share this machine's cores, which the last column of the first table
tells apart: a machine of its own for each client would leave the server's part alone, one client's batch after the
other's. The second table has the server's process, at its largest, and the memory that one client's has for itself.
Arguments after -- are overrides as for launch.py.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

from common import markdown, start

from splitlearn.compose import compose
from splitlearn.saved import metrics

FIXED = ["client.num_threads=1", "server.num_threads=1", "log.tensorboard=false", "evaluate.every=1000"]
FIXED += ["checkpoint.every_epochs=null", "data.max_test_samples=32", "epochs=4", "batch_size=8"]
STEPS = 5  # an epoch
LOOK_EVERY_S = 1.0
LEAST_FREE_MB = 4096  # below this, a run is ended before the machine is
TITLES = ["clients", "start and end, s", "server MB", "threads", "files", "a client, MB"]


@dataclass
class Found:
    """What runs with one number of clients came to.

    Attributes:
        epochs: seconds, seconds of them that the server computes, and steps, of every epoch but the first.
        start_s: of a run, that is in no epoch: until the first begins, and after the last.
        server: the memory in MB that its process has for itself, its threads and open files, at most.
        client_mb: the same memory of a client's process, the mean over the clients, at most.
    """

    epochs: list[tuple[float, float, int]] = field(default_factory=list)
    start_s: float = 0.0
    server: tuple[float, int, int] = (0.0, 0, 0)
    client_mb: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    found = {number: Found() for number in arguments.clients}
    for _ in range(arguments.rounds):
        for number, of_runs in found.items():
            measure(number, arguments.overrides, of_runs)
    times, costs = [], []
    for number, one in found.items():
        in_step = compose(*arguments.overrides).membership.get("sample") or number
        step, server = (median(epoch[i] / epoch[2] for epoch in one.epochs) for i in (0, 1))
        figures = [f"{1e3 * seconds:.1f}" for seconds in (step, step / in_step, server / in_step)]
        times.append([f"{number}", *figures, f"{in_step / step:.0f}", f"{server / step:.0%}"])
        megabytes, *counts = one.server
        costs.append([f"{number}", f"{one.start_s:.1f}", f"{megabytes:.0f}", *map(str, counts), f"{one.client_mb:.0f}"])
    print()
    print(markdown(["clients", "step, ms", "ms a batch", "of it server", "batches / s", "server works"], times))
    print()
    print(markdown(TITLES, costs))
    print(f"{os.cpu_count()} cores")


def measure(num_clients: int, overrides: list[str], found: Found) -> None:
    """Adds a run of so many clients."""
    from splitlearn import local

    with tempfile.TemporaryDirectory() as folder:
        cfg = compose(*FIXED, *overrides, f"num_clients={num_clients}")
        cfg.data.max_train_samples = num_clients * STEPS * cfg.batch_size
        started_at, over = time.time(), threading.Event()
        watching = threading.Thread(target=watch, args=(found, over))
        watching.start()
        try:
            local.run(cfg, Path(folder))
        finally:
            over.set()
            watching.join()
        steps = metrics(Path(folder), "step")
        for line in metrics(Path(folder), "epoch")[1:]:
            num_steps = sum(step["epoch"] == line["epoch"] for step in steps)
            found.epochs.append((line["seconds"], line["server_compute_s"], num_steps))
        in_epochs = sum(line["seconds"] for line in metrics(Path(folder), "epoch"))
        found.start_s = max(found.start_s, time.time() - started_at - in_epochs)


def watch(found: Found, over: threading.Event) -> None:
    """Looks at the processes of the run until it is over."""
    while not over.wait(LOOK_EVERY_S):
        ranks = {rank.name: rank.pid for rank in multiprocessing.active_children()}
        try:
            if "server" in ranks:
                found.server = tuple(map(max, found.server, costs_of(ranks["server"])))
            if own := [private_mb(pid) for name, pid in ranks.items() if name != "server"]:
                found.client_mb = max(found.client_mb, fmean(own))
        except (OSError, KeyError):
            continue  # one has ended meanwhile
        if free_mb() < LEAST_FREE_MB:
            print(f"less than {LEAST_FREE_MB} MB are free: the run is ended", file=sys.stderr)
            for rank in multiprocessing.active_children():
                rank.kill()


def costs_of(pid: int) -> tuple[float, int, int]:
    """A process's memory in MB, its threads and its open files."""
    threads, files = (len(list(Path(f"/proc/{pid}/{name}").iterdir())) for name in ("task", "fd"))
    return private_mb(pid), threads, files


def private_mb(pid: int) -> float:
    """What a process has for itself. The ranks share what was there before the first was forked."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1e3


def free_mb() -> float:
    (line,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) / 1e3


if __name__ == "__main__":
    start(main)
