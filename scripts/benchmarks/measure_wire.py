"""Measures what one training step really sends: bytes at a network interface, TCP/IP headers and all (root, Linux).

    sudo .venv/bin/python scripts/benchmarks/measure_wire.py

A server and a client run launch.py in two network namespaces with a link between them, once with one step and once
with five on batches of 256 maps of 64×16×16; the difference of the interface's counters is what four steps sent:
payload, labels, RPC's messages, and headers and acknowledgements of TCP/IP, with packets cut to the MTU as on a real
network. Compare with the bare float32 map, and with the first compressor on the same wire.
"""

import argparse
import subprocess
import sys
import tempfile

from common import markdown
from namespaces import network

BATCH = 256
MAP = (64, 16, 16)
RUN = ["arch=convnet", "cut=block2.2", f"batch_size={BATCH}", "epochs=1", "data.max_test_samples=1"]
STEPS = (1, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compressors", nargs="+", default=["none", "ms", "qu", "sp"], metavar="NAME")
    compressors = parser.parse_args().compressors
    uncompressed = 4 * BATCH * MAP[0] * MAP[1] * MAP[2]
    rows, reference = [["float32 map", f"{uncompressed:,}", "", "", ""]], None
    for name in compressors:
        (few_up, few_down), (many_up, many_down) = (measure(name, steps) for steps in STEPS)
        num_steps = STEPS[1] - STEPS[0]
        up, down = (many_up - few_up) / num_steps, (many_down - few_down) / num_steps
        reference = reference or up
        rows.append([name, f"{up:,.0f}", f"{down:,.0f}", f"{uncompressed / up:.2f} ×", f"{reference / up:.2f} ×"])
    print(markdown(["a step", "bytes up", "bytes down", "map / up", f"up of {compressors[0]} / up"], rows))


def measure(compressor: str, num_steps: int) -> tuple[int, int]:
    """Bytes up and down at the client's interface during one whole run."""
    options = [*RUN, f"compressor={compressor}", f"data.max_train_samples={BATCH * num_steps}"]
    with network(num_clients=1) as net, tempfile.TemporaryDirectory() as folder:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        ranks = [net.start(rank, *options, f"hydra.run.dir={folder}", **pipes) for rank in (0, 1)]
        for process in reversed(ranks):
            out, _ = process.communicate(timeout=300)
            if process.returncode:
                sys.exit(f"the run failed:\n{out}")
        return net.bytes_of(client=0)


if __name__ == "__main__":
    main()
