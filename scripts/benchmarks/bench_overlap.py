"""What a slow link costs, whether the estimate of it is right, and what computing ahead gains (root, Linux).

    sudo .venv/bin/python scripts/benchmarks/bench_overlap.py --rate 100 -- arch=vgg19 batch_size=256

Two clients and a server in network namespaces (see emulate_link.py) train with pipeline_depth 1 and 2, over links as
fast as the machine and over links of --rate Mbit/s. "estimate" is what link.up_mbits and link.down_mbits would say: the
step over the fast links, and its bytes up and down at the rate. "bound" is the longer of the step over the fast links
and the larger direction's bytes at the rate; nothing can be faster. Times are medians over the epochs after the first.
Arguments after -- are overrides as for launch.py.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from common import markdown, start
from namespaces import network

from splitlearn.saved import metrics

FIXED = ["evaluate.every=1000", "log.tensorboard=false", "checkpoint.every_epochs=null", "epochs=4"]
FIXED += ["data.max_test_samples=8"]
CLIENTS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=100.0, help="Mbit/s up and down")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    rows = []
    for depth in (1, 2):
        overrides = [*arguments.overrides, f"pipeline_depth={depth}"]
        fast, _ = measure(None, overrides)
        slow, nbytes = measure(arguments.rate, overrides)
        up, down = (8e-6 * number / arguments.rate for number in nbytes)
        estimate, bound = fast + up + down, max(fast, up, down)
        figures = [f"{seconds:.3f}" for seconds in (fast, up, down, estimate, slow)]
        rows.append([f"pipeline_depth={depth}", *figures, f"{slow / estimate:.2f}", f"{slow / bound:.2f}"])
    header = ["s a step", "fast links", "up ÷ rate", "down ÷ rate", "estimate", f"{arguments.rate:g} Mbit/s"]
    header += ["÷ estimate", "÷ bound"]
    print(markdown(header, rows))


def measure(mbits: float | None, overrides: list[str]) -> tuple[float, list[float]]:
    """Seconds of a step, and a client's bytes of it up and down."""
    with network(CLIENTS, mbits, mbits) as net, tempfile.TemporaryDirectory() as folder:
        out = open(Path(folder) / "out.txt", "w+")  # noqa: SIM115
        options = [*FIXED, *overrides, f"hydra.run.dir={folder}/run"]
        ranks = [net.start(rank, *options, stdout=out, stderr=out) for rank in range(1 + CLIENTS)]
        try:
            if any([rank.wait(1800) for rank in ranks]):
                sys.exit(f"the run failed:\n{Path(folder, 'out.txt').read_text()}")
        except subprocess.TimeoutExpired:
            sys.exit("the run takes more than half an hour")
        finally:
            for rank in ranks:
                rank.kill()
        epochs, steps = (metrics(Path(folder) / "run", kind) for kind in ("epoch", "step"))
    nbytes = [sum(step[f"{link}_bytes"] for step in steps) / len(steps) / CLIENTS for link in ("uplink", "downlink")]
    return median(line["seconds"] for line in epochs[1:]) / epochs[0]["step"], nbytes


if __name__ == "__main__":
    start(main)
