"""Measures what one training step really sends: bytes at a network interface, TCP/IP headers and all (root, Linux).

    sudo python scripts/measure_wire.py

A server and a client run launch.py in two network namespaces that are joined by a veth pair, once with one step and
once with five on batches of 256 maps of 64×16×16; the difference of the interface's counters is what four steps sent:
payload, labels, RPC's messages, and headers and acknowledgements of TCP/IP, with packets cut to the MTU as on a real
network. Compare with the bare float32 map, and with the first compressor on the same wire.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager

from common import ROOT, markdown

SERVER, CLIENT = "splitlearn-server", "splitlearn-client"  # namespaces
DEVICES = {SERVER: ("slveth0", "10.99.0.1"), CLIENT: ("slveth1", "10.99.0.2")}
BATCH = 256
MAP = (64, 16, 16)
RUN = ["arch=convnet", "cut=block2.2", f"batch_size={BATCH}", "epochs=1", "num_clients=1", "data.max_test_samples=1"]
HOST = f"rpc.host={DEVICES[SERVER][1]}"
STEPS = (1, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compressors", nargs="+", default=["none", "ms", "qu", "sp"], metavar="NAME")
    compressors = parser.parse_args().compressors
    if os.geteuid() != 0 or not shutil.which("ip"):
        sys.exit("this needs root and the command ip (package iproute2), to make network namespaces")
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
    options = [*RUN, HOST, f"compressor={compressor}", f"data.max_train_samples={BATCH * num_steps}"]
    with namespaces(), tempfile.TemporaryDirectory() as folder:
        server = launch(SERVER, [*options, "role=server", f"hydra.run.dir={folder}"])
        client = launch(CLIENT, [*options, "role=client"])
        for process in (client, server):
            out, _ = process.communicate(timeout=300)
            if process.returncode:
                sys.exit(f"the run failed:\n{out}")
        return counter("tx_bytes"), counter("rx_bytes")


@contextmanager
def namespaces():
    """Two namespaces and a link between them, which are removed again whatever happens."""
    try:
        for namespace in DEVICES:
            ip("netns", "add", namespace)
        (server_device, _), (client_device, _) = DEVICES.values()
        ip("link", "add", server_device, "type", "veth", "peer", "name", client_device)
        for namespace, (device, address) in DEVICES.items():
            ip("link", "set", device, "netns", namespace)
            ip("-n", namespace, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", namespace, "link", "set", "lo", "up")
            # One packet a segment: else the counters see one header for 64 kB.
            ip("-n", namespace, "link", "set", device, "gso_max_segs", "1", "up")
        yield
    finally:
        for namespace in DEVICES:
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True)


def launch(namespace: str, options: list[str]) -> subprocess.Popen:
    command = ["ip", "netns", "exec", namespace, sys.executable, str(ROOT / "launch.py"), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def counter(name: str) -> int:
    device, _ = DEVICES[CLIENT]
    path = f"/sys/class/net/{device}/statistics/{name}"
    return int(ip("netns", "exec", CLIENT, "cat", path))


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
