"""Kills and stops ranks of real runs at random moments, and compares what comes out with a run that was left alone.

    python scripts/benchmarks/chaos.py                      50 moments, a quarter of an hour on two cores
    python scripts/benchmarks/chaos.py --moments 4
    python scripts/benchmarks/chaos.py --roles              each rank is started on its own; only the server is killed
    python scripts/benchmarks/chaos.py --roles --tls        and through the server's one encrypted port

Runs write a checkpoint every --every steps, and follow one another until so many moments came before their run's end.
"kill" is SIGKILL to a rank, which is started anew: by torchrun (--max-restarts) with all others, or with --roles alone.
"stop" is SIGSTOP for --pause seconds, longer than rpc.retry_s, then SIGCONT. Moments fall at start-up, first or after a
kill, until a step is recorded that was not before; in training; at the end of an epoch, from its last step until it is
averaged and evaluated; and at the run's end, from its last epoch until all ranks are gone. A run is the same if every
line of metrics.jsonl, without times, and every weight equals the undisturbed run's. Recovery is the time from the
signal to the first step that had not been recorded before.
"""

import argparse
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from common import ROOT, markdown, start
from processes import children, wait_until

from splitlearn.saved import metrics

OPTIONS = [
    "data.max_train_samples=480",
    "data.max_test_samples=60",
    "batch_size=16",
    "compressor=rt",
    "log.tensorboard=false",
    "rpc.retry_s=1",
    "checkpoint.every_epochs=null",
    "hydra.run.dir=run",
]
STEPS = 15  # of an epoch
WHEN = ["start-up", "training", "evaluation", "end"]
START_S, TRAINING_S, END_S = 6, 2, 0.3  # how far into these a moment may be
PORT = 29621


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="signals that came before their run's end, at least")
    parser.add_argument("--per-run", type=int, default=6, help="of them in one run")
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--pause", type=float, default=3.0, help="seconds that a stop lasts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--roles", action="store_true", help="role=server and role=client instead of torchrun")
    parser.add_argument("--tls", action="store_true", help="through the encrypted port, though all is on one machine")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    events: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        run(whole, [], draw, arguments)
        for number in range(arguments.moments):  # each has one at least, if all is well
            if (missing := arguments.moments - len(events)) <= 0:
                break
            part = Path(folder) / str(number)
            found, status = run(part, plan(min(missing, arguments.per_run), draw), draw, arguments)
            verdict = compare(part, whole) if status == 0 else {"same": False, "lost": None, "twice": None}
            for event in found:
                event.update(verdict)
            events += found
            print(f"run {number}: exit {status}, {len(found)} moments, {verdict}", flush=True)
            if status != 0:
                print((part / "out.txt").read_text()[-2000:], flush=True)
    rows = []
    for what in sorted({event["what"] for event in events}):
        these = [event for event in events if event["what"] == what]
        recovered = [event["recovery_s"] for event in these if event["recovery_s"] is not None]
        rows.append(
            [
                what,
                f"{len(these)}",
                " / ".join(f"{sum(event['when'] == when for event in these)}" for when in WHEN),
                f"{min(event['step'] for event in these)}–{max(event['step'] for event in these)}",
                f"{sum(event['same'] for event in these)} of {len(these)}",
                f"{median(recovered):.1f} ({max(recovered):.1f})" if recovered else "–",
                f"{max((event['lost'] or 0) for event in these)}",
                f"{max((event['twice'] or 0) for event in these)}",
            ]
        )
    header = ["what happened", "moments", " / ".join(WHEN), "at steps", "in a run that ended the same"]
    print("\n" + markdown([*header, "recovery s: median (max)", "steps lost", "applied twice"], rows))
    sys.exit(len(events) < arguments.moments or not all(event["same"] for event in events))


def plan(number: int, draw: random.Random) -> list[tuple[str, str]]:
    """When and what is to happen to a run, the last at its end."""
    found: list[tuple[str, str]] = []
    for last in [False] * (number - 1) + [True]:
        when = "end" if last else draw.choice(["start-up", "training", "training", "evaluation"])
        if when == "start-up" and found and found[-1][1] == "stop":
            when = "training"  # nothing starts after a stop
        found.append((when, draw.choice(["kill", "kill", "stop"])))
    return found


class Fleet:
    """A server and two clients in a folder: all torchrun's, or each started on its own."""

    def __init__(self, folder: Path, options: list[str], restarts: int, roles: bool):
        self.roles, self.folder, self.out = roles, folder, open(folder / "out.txt", "wb")  # noqa: SIM115
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "3", "--master-port", str(PORT)]
        torchrun += ["--max-restarts", str(restarts), str(ROOT / "launch.py"), *options]
        role = [str(ROOT / "launch.py"), *options, "num_clients=2", f"rpc.port={PORT}"]
        clients = [[*role, "role=client", f"client.index={index}"] for index in range(2)]
        self.commands = [[*role, "role=server"], *clients] if roles else [torchrun]
        self.environment = {"OMP_NUM_THREADS": "1", **os.environ, "SPLITLEARN_TOKEN": secrets.token_hex(32)}
        self.processes = [self.start(command) for command in self.commands]

    def start(self, command: list[str]) -> subprocess.Popen:
        options = {"cwd": self.folder, "env": self.environment, "stdout": self.out, "stderr": self.out}
        return subprocess.Popen([sys.executable, *command], start_new_session=True, **options)

    def ranks(self) -> list[int]:
        """Pids of the living ranks, in order."""
        if self.roles:
            return [process.pid for process in self.processes if process.poll() is None]
        return sorted(children(self.processes[0].pid))

    def revive(self) -> None:
        """Starts the server anew after it was killed, where torchrun does not."""
        if self.roles:
            self.processes[0] = self.start(self.commands[0])

    def status(self) -> int | None:
        """The exit status, of the rank with the highest; None as long as one is there."""
        codes = [process.poll() for process in self.processes]
        return None if None in codes else max(map(abs, codes))

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        self.out.close()


def run(folder: Path, planned: list[tuple[str, str]], draw: random.Random, arguments) -> tuple[list[dict], int | None]:
    """One run that is disturbed as planned; returns what was done when, and its exit status (None: it did not end)."""
    folder.mkdir()
    options = [*OPTIONS, f"epochs={arguments.epochs}", f"checkpoint.every_steps={arguments.every}"]
    options += ["tls.enabled=true"] * arguments.tls
    fleet = Fleet(folder, options, len(planned), arguments.roles)
    recorded = folder / "run" / "metrics.jsonl"
    events: list[dict] = []
    before = 0  # steps that had been recorded at the last signal

    def reaches(condition, within_s: float) -> bool:
        return wait_until(lambda: condition() or fleet.status() is not None, within_s) and fleet.status() is None

    def has_recovered() -> bool:
        return count(recorded, "step") > before

    def now() -> str:
        steps, epochs = count(recorded, "step"), count(recorded, "epoch")
        if epochs == arguments.epochs:
            return "end"
        if steps <= before:
            return "start-up"
        return "evaluation" if steps == STEPS * (epochs + 1) else "training"

    try:
        for (when, kind), (following, _) in pairwise([*planned, ("", "")]):
            reaches(lambda: len(fleet.ranks()) == 3, 60)
            if when == "start-up":
                time.sleep(draw.uniform(0, START_S))
            else:
                reaches(has_recovered, 90)
                reaches(lambda when=when: when == "training" or now() in (when, "end"), 90)
                time.sleep(draw.uniform(0, {"training": TRAINING_S, "evaluation": 0, "end": END_S}[when]))
            if arguments.roles and now() == "end":
                kind = "stop"  # a server that starts again after its goodbyes would wait for clients that have ended
            rank = 0 if kind == "kill" and arguments.roles else draw.randrange(3)
            ranks, steps = fleet.ranks(), count(recorded, "step")
            event = {"what": f"{kind} {'client' if rank else 'server'}", "when": now(), "step": steps}
            if len(ranks) < 3:
                continue
            started = time.monotonic()
            try:
                os.kill(ranks[rank], signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
            except ProcessLookupError:
                continue
            events.append({**event, "recovery_s": None})
            if kind == "stop":
                before = steps
                time.sleep(arguments.pause)
                with suppress(ProcessLookupError):
                    os.kill(ranks[rank], signal.SIGCONT)
            else:  # until it is gone, others may finish a step
                wait_until(lambda rank=ranks[rank]: rank not in fleet.ranks(), 60)
                before = max(before, count(recorded, "step"))
                fleet.revive()
            if following != "start-up" and reaches(has_recovered, 90):
                events[-1]["recovery_s"] = time.monotonic() - started
        wait_until(lambda: fleet.status() is not None, 300)
        return events, fleet.status()
    finally:
        fleet.end()


def compare(part: Path, whole: Path) -> dict:
    """Whether two runs recorded and trained the same; how many steps are missing or recorded twice."""
    found, expected = (untimed(folder / "run") for folder in (part, whole))
    counts = Counter(line["step"] for line in found if line["kind"] == "step")
    numbers = {line["step"] for line in expected if line["kind"] == "step"}
    same = found == expected
    for path in (whole / "run").glob("*_segment*.pt"):
        one, other = torch.load(path), torch.load(part / "run" / path.name)
        same = same and all(torch.equal(one[name], other[name]) for name in one)
    twice = sum(count - 1 for count in counts.values())
    return {"same": same, "lost": len(numbers - counts.keys()), "twice": twice}


def untimed(folder: Path) -> list[dict]:
    """What a run measured, without times."""
    return [{k: v for k, v in line.items() if k != "seconds" and not k.endswith("_s")} for line in metrics(folder)]


def count(path: Path, kind: str) -> int:
    """How many lines of a kind were recorded."""
    return path.read_text().count(f'"kind": "{kind}"') if path.exists() else 0


if __name__ == "__main__":
    start(main)
