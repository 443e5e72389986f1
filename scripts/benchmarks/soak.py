"""Memory of server and clients over many tiny steps, while clients crash and come back.

    python scripts/benchmarks/soak.py                       20,000 steps of 8 clients, a quarter of an hour on two cores
    python scripts/benchmarks/soak.py --steps 500 --clients 2 --crash-every 20

Server and clients are started on their own (membership.open=true). Every --crash-every seconds a client, each in turn,
is killed and started again. The table has the memory that the server and the clients that were never killed hold; the
last line what the server has gained a 1,000 steps, by a line fitted to the second half.
"""

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import linear_regression

from common import ROOT, markdown, start
from processes import resident_mb, wait_until

OPTIONS = ["cut=shallow", "batch_size=1", "evaluate.every=100000", "log.tensorboard=false", "epochs=100000"]
OPTIONS += ["data.max_test_samples=8", "compressor@downlink=ms", "membership.open=true", "membership.step_deadline_s=2"]
PORT = 29611
ROWS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--crash-every", type=float, default=30.0, metavar="SECONDS")
    arguments = parser.parse_args()
    if arguments.clients < 2:
        parser.error("--clients must be at least 2: the first is watched, and the others crash")
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "SPLITLEARN_TOKEN": secrets.token_hex(32)}
    options = [*OPTIONS, f"num_clients={arguments.clients}", f"rpc.port={PORT}"]
    with tempfile.TemporaryDirectory() as folder:

        def start(*place: str) -> subprocess.Popen:
            command = [sys.executable, str(ROOT / "launch.py"), *options, *place]
            log = open(Path(folder) / f"{place[-1]}.txt", "ab")  # noqa: SIM115
            return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

        server = start("role=server", "hydra.run.dir=run")
        clients = [start("role=client", f"client.index={index}") for index in range(arguments.clients)]
        metrics = Path(folder) / "run" / "metrics.jsonl"
        rows, crashes = [], 0
        try:
            if not wait_until(metrics.exists, 120):
                sys.exit("the server does not start")
            crash_at = time.monotonic() + arguments.crash_every
            with open(metrics) as lines:
                step, last = 0, {}
                while step < arguments.steps:
                    if server.poll() is not None:
                        sys.exit(f"the server ended after step {step}")
                    for line in lines:
                        last = json.loads(line)
                        step = last["step"]
                    if step >= len(rows) * arguments.steps / ROWS:
                        rows.append([step, resident_mb(server.pid), resident_mb(clients[0].pid), crashes])
                    if time.monotonic() > crash_at:
                        index = 1 + crashes % (arguments.clients - 1)
                        clients[index].kill()
                        clients[index].wait()
                        clients[index] = start("role=client", f"client.index={index}")
                        crashes += 1
                        crash_at = time.monotonic() + arguments.crash_every
                    time.sleep(0.05)
            rows.append([step, resident_mb(server.pid), resident_mb(clients[0].pid), crashes])
            server.send_signal(signal.SIGTERM)
            codes = [process.wait(120) for process in (server, *clients)]
        finally:
            for process in (server, *clients):
                process.kill()
    table = [[f"{step:,}", f"{held:.1f}", f"{held_0:.1f}", f"{number}"] for step, held, held_0, number in rows]
    print(markdown(["step", "server MB", "client 0 MB", "crashes until then"], table))
    second_half = rows[len(rows) // 2 :]
    slope, _ = linear_regression([row[0] / 1000 for row in second_half], [row[1] for row in second_half])
    print(f"the server gains {slope:+.3f} MB in 1,000 steps; exit codes {codes}")


if __name__ == "__main__":
    start(main)
