"""What computing ahead gains over a slow link (root, Linux).

    sudo .venv/bin/python scripts/bench_overlap.py --rate 100 -- arch=vgg19 batch_size=256

Two clients and a server in network namespaces (see emulate_link.py) train with pipeline_depth 1 and 2, over links as
fast as the machine and over links of --rate Mbit/s. "bound" is the longer of the step over the fast links and the time
that a client's larger direction of a step takes at the rate; nothing can be faster. Times are medians over the epochs
after the first. Arguments after -- are overrides as for launch.py.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from common import markdown
from namespaces import network

FIXED = ["evaluate.every=1000", "log.tensorboard=false", "checkpoint.every_epochs=null", "epochs=4"]
FIXED += ["data.max_test_samples=8"]
CLIENTS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=100.0, help="Mbit/s up and down")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    rows = []
    for depth in (1, 2):
        overrides = [*arguments.overrides, f"pipeline_depth={depth}"]
        fast, _ = measure(None, overrides)
        slow, nbytes = measure(arguments.rate, overrides)
        wire = 8e-6 * nbytes / arguments.rate
        bound = max(fast, wire)
        figures = [f"{seconds:.3f}" for seconds in (fast, wire, bound, slow)]
        rows.append([f"pipeline_depth={depth}", *figures, f"{slow / bound:.2f}"])
    header = ["s a step", "fast links", "bytes ÷ rate", "bound", f"{arguments.rate:g} Mbit/s", "ratio"]
    print(markdown(header, rows))


def measure(mbits: float | None, overrides: list[str]) -> tuple[float, float]:
    """Seconds of a step, and the bytes of a client's larger direction."""
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
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    steps = [line for line in lines if line["kind"] == "step"]
    nbytes = max(sum(step[f"{link}_bytes"] for step in steps) for link in ("uplink", "downlink"))
    return median(line["seconds"] for line in epochs[1:]) / epochs[0]["step"], nbytes / len(steps) / CLIENTS


if __name__ == "__main__":
    main()
