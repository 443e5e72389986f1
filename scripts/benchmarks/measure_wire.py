"""Measures what one training step really sends: bytes at a network interface, TCP/IP headers and all (root, Linux).

    sudo .venv/bin/python scripts/benchmarks/measure_wire.py [--exchange local_loss]

A server and a client run launch.py in two network namespaces with a link between them, once with one step and once
with five on batches of 256 maps of 64×16×16; the difference of the interface's counters is what four steps sent:
payload, labels, RPC's messages, TLS's, and headers and acknowledgements of TCP/IP, with packets cut to the MTU as on a
real network; "plain" is the same with tls.enabled=false. Compare with the payload, with the bare float32 map, and with
the first compressor on the same wire.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from common import markdown, start
from namespaces import network

from splitlearn.saved import metrics

BATCH = 256
MAP = (64, 16, 16)
RUN = ["arch=convnet", "cut=block2.2", f"batch_size={BATCH}", "epochs=1", "data.max_test_samples=1"]
STEPS = (1, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compressors", nargs="+", default=["none", "ms", "qu", "sp"], metavar="NAME")
    parser.add_argument("--exchange", default="labels_up", help="one whose client sends each batch once")
    args = parser.parse_args()
    compressors, exchange = args.compressors, f"exchange={args.exchange}"
    uncompressed = 4 * BATCH * MAP[0] * MAP[1] * MAP[2]
    rows, reference = [["float32 map", f"{uncompressed:,}", "", "", "", "", ""]], None
    for name in compressors:
        plain, _, _ = a_step(f"compressor={name}", exchange, "tls.enabled=false")
        up, down, payload = a_step(f"compressor={name}", exchange, "tls.enabled=true")
        reference = reference or up
        ratios = [f"{up / payload:.3f}", f"{uncompressed / up:.2f} ×", f"{reference / up:.2f} ×"]
        rows.append([name, f"{up:,.0f}", f"{down:,.0f}", f"{plain:,.0f}", *ratios])
    about = ["up / payload", "map / up", f"up of {compressors[0]} / up"]
    print(markdown(["a step", "bytes up", "bytes down", "up, plain", *about], rows))


def a_step(*options: str) -> tuple[float, float, float]:
    """Bytes of a step at the client's interface, up and down, and of its payload."""
    few, many = (measure(steps, *options) for steps in STEPS)
    up, down, payload = ((after - before) / (STEPS[1] - STEPS[0]) for before, after in zip(few, many, strict=True))
    return up, down, payload


def measure(num_steps: int, *options: str) -> tuple[int, int, int]:
    """Bytes up and down at the client's interface during one whole run, and of its payloads."""
    options = [*RUN, *options, f"data.max_train_samples={BATCH * num_steps}"]
    with network(num_clients=1) as net, tempfile.TemporaryDirectory() as folder:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        ranks = [net.start(rank, *options, f"hydra.run.dir={folder}", **pipes) for rank in (0, 1)]
        for process in reversed(ranks):
            out, _ = process.communicate(timeout=300)
            if process.returncode:
                sys.exit(f"the run failed:\n{out}")
        payloads = sum(line["uplink_bytes"] for line in metrics(Path(folder), "step"))
        return *net.bytes_of(client=0), payloads


if __name__ == "__main__":
    start(main)
