"""How a step grows with the number of clients, and how much of it the server works.

    python scripts/benchmarks/scaling.py                                   1 to 32 clients on this machine, some minutes
    python scripts/benchmarks/scaling.py --clients 1 2 --rounds 1 -- arch=resnet18

Every client has the same number of batches, and all processes have one thread. Times are medians over the epochs after
the first, of runs that take turns. The clients share this machine's cores, which the last column tells apart: a machine
of its own for each client would leave the server's part alone, one client's batch after the other's.
Arguments after -- are overrides as for launch.py.
"""

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median

from common import markdown

from splitlearn.compose import compose
from splitlearn.saved import metrics

FIXED = ["client.num_threads=1", "server.num_threads=1", "log.tensorboard=false", "evaluate.every=1000"]
FIXED += ["checkpoint.every_epochs=null", "data.max_test_samples=32", "epochs=4", "batch_size=8"]
STEPS = 5  # an epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    found: dict[int, list[tuple[float, float]]] = {number: [] for number in arguments.clients}
    for _ in range(arguments.rounds):
        for number, epochs in found.items():
            epochs += measure(number, arguments.overrides)
    rows = []
    for number, epochs in found.items():
        step, server = (median(one) / STEPS for one in zip(*epochs, strict=True))
        figures = [f"{1e3 * seconds:.1f}" for seconds in (step, step / number, server / number)]
        rows.append([f"{number}", *figures, f"{number / step:.0f}", f"{server / step:.0%}"])
    print()
    print(markdown(["clients", "step, ms", "ms a batch", "of it server", "batches / s", "server works"], rows))
    print(f"{os.cpu_count()} cores")


def measure(num_clients: int, overrides: list[str]) -> list[tuple[float, float]]:
    """Seconds, and the server's seconds of computing, of every epoch but the first."""
    from splitlearn import local

    with tempfile.TemporaryDirectory() as folder:
        cfg = compose(*FIXED, *overrides, f"num_clients={num_clients}")
        cfg.data.max_train_samples = num_clients * STEPS * cfg.batch_size
        local.run(cfg, Path(folder))
        return [(line["seconds"], line["server_compute_s"]) for line in metrics(Path(folder), "epoch")[1:]]


if __name__ == "__main__":
    main()
