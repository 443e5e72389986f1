"""Times one training step: split over loopback without compression, against the uncut network in one process.

    python scripts/benchmarks/bench_step.py                              convnet on the digits
    python scripts/benchmarks/bench_step.py --rounds 5 -- arch=vgg19 cut=medium batch_size=64

Both sides train the same network on the same samples with one thread a process, in turns; each round's time is the
median over its epochs after the first. With one client the server and the client take turns too, so that all the split
costs is its calls: what it adds is `codec`, `network` and `waiting`. Arguments after -- are overrides as for launch.py.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from common import markdown, start

from splitlearn.compose import compose
from splitlearn.saved import metrics

FIXED = [
    "num_clients=1",
    "client.num_threads=1",
    "server.num_threads=1",
    "log.tensorboard=false",
    "evaluate.every=1000",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    cfg = compose("compressor=none", "epochs=4", "data.max_train_samples=512", *FIXED, *arguments.overrides)

    from splitlearn import local
    from splitlearn.measure.recorder import PHASES

    torch.set_num_threads(1)
    uncut, split = [], []
    for _ in range(arguments.rounds):
        uncut.append(time_uncut(cfg))
        with tempfile.TemporaryDirectory() as folder:
            local.run(cfg, Path(folder))
            split.append(phases_of(Path(folder), PHASES))
    whole = 1e3 * median(uncut)
    totals = [sum(phases.values()) for phases in split]
    rows = [["uncut, one process", f"{whole:.2f}", "1.00"]]
    for phase in PHASES:
        milliseconds = 1e3 * median(phases[phase] for phases in split)
        rows.append([f"split: {phase}", f"{milliseconds:.2f}", f"{milliseconds / whole:.2f}"])
    ratios = [total / one for total, one in zip(totals, uncut, strict=True)]
    rows.append(["split, all", f"{1e3 * median(totals):.2f}", f"{median(ratios):.2f}"])
    print("\n" + markdown([f"{cfg.arch.name}, cut={cfg.cut}, batch {cfg.batch_size}", "ms a step", "ratio"], rows))
    print(f"ratio of each round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


def time_uncut(cfg) -> float:
    """Seconds a step of the uncut network."""
    from splitlearn.exchange import network
    from splitlearn.segments.trainable import Trainable
    from splitlearn.tasks import task_from

    torch.manual_seed(cfg.seed)
    task = task_from(cfg)
    data = task.load(cfg, 0, 1)
    trainable = Trainable(network.build(cfg, data.about).model, cfg)
    epochs = []
    for epoch in range(1, cfg.epochs + 1):
        data.train.batch_sampler.start_at(epoch)
        seconds = 0.0
        for loaded in data.train:  # as in the split run, without the time to load
            started = time.perf_counter()
            images, labels = task.to_device(loaded, torch.device("cpu"))
            with torch.autocast("cpu", torch.bfloat16, enabled=cfg.precision == "bf16"):
                outputs = trainable.segment(images)
            loss = task.loss(outputs, labels)
            trainable.optimizer.zero_grad()
            loss.backward()
            trainable.optimizer.step()
            loss.item()
            seconds += time.perf_counter() - started
        epochs.append(seconds / len(data.train))
    return median(epochs[1:])


def phases_of(folder: Path, phases: tuple[str, ...]) -> dict[str, float]:
    """Seconds a step by phase, of a split run."""
    epochs = metrics(folder, "epoch")
    steps = epochs[0]["step"]
    return {phase: median(line[f"{phase.replace(' ', '_')}_s"] for line in epochs[1:]) / steps for phase in phases}


if __name__ == "__main__":
    start(main)
