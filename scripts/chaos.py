"""Kills and stops ranks of real runs at random moments, and compares what comes out with a run that was left alone.

    python scripts/chaos.py                      50 moments, a quarter of an hour on two cores
    python scripts/chaos.py --moments 6 --runs 2

Runs are started by torchrun with --max-restarts and write a checkpoint every --every steps. "kill" is SIGKILL to a
rank, anywhere between its start and the run's end; "stop" is SIGSTOP for --pause seconds, longer than rpc.retry_s, then
SIGCONT. A run is the same if every line of metrics.jsonl, without times, and every weight equals the undisturbed run's.
Recovery is the time from the signal to the first step that had not been recorded before.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

import torch
from common import ROOT, markdown
from processes import children, wait_until

OPTIONS = [
    "data.max_train_samples=480",
    "data.max_test_samples=60",
    "batch_size=16",
    "compressor=rt",
    "log.tensorboard=false",
    "rpc.retry_s=1",
    "checkpoint.every_epochs=null",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="signals in all")
    parser.add_argument("--runs", type=int, default=5, help="over how many runs they are spread")
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--pause", type=float, default=3.0, help="seconds that a stop lasts")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    options = [*OPTIONS, f"epochs={arguments.epochs}", f"checkpoint.every_steps={arguments.every}"]
    events: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        run(whole, options, [], draw, arguments.pause)
        for number in range(arguments.runs):
            todo = arguments.moments // arguments.runs + (number < arguments.moments % arguments.runs)
            part = Path(folder) / str(number)
            found, status = run(part, options, [None] * todo, draw, arguments.pause)
            verdict = compare(part, whole) if status == 0 else {"same": False, "lost": None, "twice": None}
            for event in found:
                event.update(verdict)
            events += found
            print(f"run {number}: exit {status}, {len(found)} moments, {verdict}", flush=True)
    rows = []
    for what in sorted({event["what"] for event in events}):
        these = [event for event in events if event["what"] == what]
        recovered = [event["recovery_s"] for event in these if event["recovery_s"] is not None]
        rows.append(
            [
                what,
                f"{len(these)}",
                f"{min(event['step'] for event in these)}–{max(event['step'] for event in these)}",
                f"{sum(event['same'] for event in these)} of {len(these)}",
                f"{median(recovered):.1f} ({max(recovered):.1f})" if recovered else "–",
                f"{max((event['lost'] or 0) for event in these)}",
                f"{max((event['twice'] or 0) for event in these)}",
            ]
        )
    header = ["what happened", "moments", "at steps", "in a run that ended the same", "recovery s: median (max)"]
    print("\n" + markdown([*header, "steps lost", "applied twice"], rows))
    sys.exit(not all(event["same"] for event in events))


def run(folder: Path, options: list[str], moments: list, draw: random.Random, pause_s: float) -> tuple[list[dict], int]:
    """One run with so many disturbances; returns what was done when, and torchrun's exit status."""
    folder.mkdir()
    out = open(folder / "out.txt", "wb")  # noqa: SIM115
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    command = [*torchrun, "--max-restarts", str(len(moments)), str(ROOT / "launch.py"), *options, "hydra.run.dir=run"]
    process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, start_new_session=True)
    metrics = folder / "run" / "metrics.jsonl"
    events: list[dict] = []
    try:
        for _ in moments:
            # From the start of the ranks to some time in training, as long as the run lasts.
            if not wait_until(lambda: len(children(process.pid)) == 3 or process.poll() is not None, 60):
                break
            time.sleep(draw.uniform(0, 12))
            ranks = sorted(children(process.pid))
            if process.poll() is not None or len(ranks) < 3:
                continue
            rank = draw.randrange(3)
            kind = draw.choice(["kill", "kill", "stop"])
            before = steps(metrics)
            event = {"what": f"{kind} {'server' if rank == 0 else 'client'}", "step": before, "recovery_s": None}
            started = time.monotonic()
            os.kill(ranks[rank], signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
            if kind == "stop":
                time.sleep(pause_s)
                os.kill(ranks[rank], signal.SIGCONT)
            if kind == "kill":  # until then, others may finish a step
                wait_until(lambda rank=ranks[rank]: rank not in children(process.pid), 60)
                before = max(before, steps(metrics))
            if wait_until(lambda before=before: steps(metrics) > before or process.poll() is not None, 90):
                event["recovery_s"] = time.monotonic() - started
            events.append(event)
        return events, process.wait(600)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        out.close()


def compare(part: Path, whole: Path) -> dict:
    """Whether two runs recorded and trained the same; how many steps are missing or recorded twice."""
    found, expected = (read(folder / "run" / "metrics.jsonl") for folder in (part, whole))
    counts = Counter(line["step"] for line in found if line["kind"] == "step")
    numbers = {line["step"] for line in expected if line["kind"] == "step"}
    same = found == expected
    for path in (whole / "run").glob("*_segment*.pt"):
        one, other = torch.load(path), torch.load(part / "run" / path.name)
        same = same and all(torch.equal(one[name], other[name]) for name in one)
    twice = sum(count - 1 for count in counts.values())
    return {"same": same, "lost": len(numbers - counts.keys()), "twice": twice}


def read(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl without times."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds" and not k.endswith("_s")} for line in lines]


def steps(path: Path) -> int:
    """How many steps were recorded."""
    return path.read_text().count('"kind": "step"') if path.exists() else 0


if __name__ == "__main__":
    main()
