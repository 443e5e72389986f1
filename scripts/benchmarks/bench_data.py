"""Times the way of the images to the network, and an epoch of the harness against the same one uncut in one process.

    python scripts/benchmarks/bench_data.py                                  vgg_slim on the digits
    python scripts/benchmarks/bench_data.py -- data=image_folder data.root=<folder> num_clients=5 precision=bf16

First an epoch of one client's loader without training: whole batches of images in memory, the same of files that are
read each time (where the data are files), and image by image, as data.transform does it. Then an epoch over loopback
without compression: the server and all clients, a thread each, against the uncut network on the same samples in
batches of the same size, in one process. Both take turns; figures are medians over the epochs after the first, and of
the harness before the last, which ends with an evaluation, and over the rounds. Arguments after -- are overrides as
for launch.py.
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

FIXED = ["client.num_threads=1", "server.num_threads=1", "log.tensorboard=false", "evaluate.every=1000"]
FIXED += ["checkpoint.every_epochs=null", "compressor=none", "num_clients=2", "epochs=4"]
SHAPE = ["arch=vgg_slim", "data.augment=crop_flip", "batch_size=64", "optimizer.lr=0.01"]
SIZE = "{_target_: torchvision.transforms.v2.Resize, size: [${data.image_size}, ${data.image_size}]}"
CROP = "{_target_: torchvision.transforms.v2.RandomCrop, size: ${data.image_size}, padding: 4}"
FLIP = "torchvision.transforms.v2.RandomHorizontalFlip"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the process with the uncut network")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    overrides = [*SHAPE, *FIXED, *arguments.overrides]
    cfg = compose(*overrides)
    if cfg.epochs < 3:
        parser.error(f"epochs={cfg.epochs} must be at least 3: neither the first nor the last is timed")
    print_loading(overrides, arguments.rounds)
    print_epochs(cfg, arguments.rounds, arguments.threads)


def print_loading(overrides: list[str], rounds: int) -> None:
    from splitlearn.tasks import task_from

    ways = {"batches, in memory": [], "batches, files": ["data.keep_in_memory=false"]}
    ways["image by image"] = [f"data.transform=[{SIZE},{CROP},{FLIP}]"]
    if "data.keep_in_memory=" not in "".join(overrides) and compose(*overrides).data.get("keep_in_memory") is None:
        del ways["batches, files"]  # the digits, which are no files
    else:
        ways["image by image"].append("data.keep_in_memory=true")
    torch.set_num_threads(1)
    loaders, at_start, seconds = {}, {}, {way: [] for way in ways}
    for way, more in ways.items():
        cfg = compose(*overrides, *more)
        started = time.perf_counter()
        loaders[way] = task_from(cfg).load(cfg, 0, cfg.num_clients).train
        at_start[way] = time.perf_counter() - started
    for epoch in range(1, rounds + 2):
        for way, loader in loaders.items():
            loader.batch_sampler.start_at(epoch)
            started = time.perf_counter()
            number = sum(len(labels) for _, labels in loader)
            seconds[way].append((time.perf_counter() - started) / number)
    each = {way: median(found[1:]) for way, found in seconds.items()}
    rows = [
        [way, f"{at_start[way]:.2f}", f"{1e6 * time_s:.1f}", f"{each['image by image'] / time_s:.1f}"]
        for way, time_s in each.items()
    ]
    print(f"\n{number:,} images of {cfg.data.image_size}×{cfg.data.image_size}, batches of {cfg.batch_size}\n")
    print(markdown(["an epoch of loading", "s at the start", "µs an image", "as fast as image by image"], rows))


def print_epochs(cfg, rounds: int, num_threads: int) -> None:
    from splitlearn import local

    names = (
        f"uncut, one process, {num_threads} thread{'s' * (num_threads > 1)}",
        f"harness, {cfg.num_clients} clients and a server",
    )
    uncut, split = [], []
    for _ in range(rounds):
        uncut.append(time_uncut(cfg, num_threads))
        with tempfile.TemporaryDirectory() as folder:
            local.run(cfg, Path(folder))
            split.append(median(line["seconds"] for line in metrics(Path(folder), "epoch")[1:-1]))
    ratio = median(one / other for one, other in zip(split, uncut, strict=True))
    rows = [
        [name, f"{median(one):.2f}", r]
        for name, one, r in zip(names, (uncut, split), ("1.00", f"{ratio:.2f}"), strict=True)
    ]
    what = f"{cfg.arch.name}, cut={cfg.cut}, batch {cfg.batch_size}, {cfg.precision}"
    print("\n" + markdown([what, "s an epoch", "ratio"], rows))


def time_uncut(cfg, num_threads: int) -> float:
    """Seconds of an epoch of the uncut network on all clients' samples."""
    from splitlearn.exchange import network
    from splitlearn.segments.trainable import Trainable
    from splitlearn.tasks import task_from

    torch.set_num_threads(num_threads)
    torch.manual_seed(cfg.seed)
    task = task_from(cfg)
    data = task.load(cfg, 0, 1)
    trainable = Trainable(network.build(cfg, data.about).model, cfg)
    seconds = []
    for epoch in range(1, cfg.epochs + 1):
        data.train.batch_sampler.start_at(epoch)
        started = time.perf_counter()
        for loaded in data.train:
            images, labels = task.to_device(loaded, torch.device("cpu"))
            with torch.autocast("cpu", torch.bfloat16, enabled=cfg.precision == "bf16"):
                outputs = trainable.segment(images)
            trainable.optimizer.zero_grad()
            loss = task.loss(outputs, labels)
            loss.backward()
            trainable.optimizer.step()
            loss.item()
        seconds.append(time.perf_counter() - started)
    torch.set_num_threads(1)
    return median(seconds[1:])


if __name__ == "__main__":
    start(main)
