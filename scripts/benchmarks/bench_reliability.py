"""What safety costs: a step with checkpoints against one without, and the checks that every call goes through.

    python scripts/benchmarks/bench_reliability.py
    python scripts/benchmarks/bench_reliability.py --rounds 5 --every 5 -- arch=resnet18 batch_size=64

Runs with and without a checkpoint every so many steps take turns; a run's time is the median of its epochs after the
first. A call's checks are signing it, checking the signature, and unpickling with names looked up; all are timed alone.
Arguments after -- are overrides as for launch.py.
"""

import argparse
import io
import pickle
import tempfile
import time
from pathlib import Path
from statistics import median

from common import markdown, start

from splitlearn.compose import compose
from splitlearn.saved import metrics

FIXED = ["client.num_threads=1", "server.num_threads=1", "log.tensorboard=false", "evaluate.every=1000", "epochs=5"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()

    from splitlearn import local

    seconds: dict[str, list[float]] = {"null": [], str(arguments.every): []}
    for _ in range(arguments.rounds):
        for every, found in seconds.items():
            overrides = [f"checkpoint.every_steps={every}", "checkpoint.every_epochs=null", *arguments.overrides]
            with tempfile.TemporaryDirectory() as folder:
                local.run(compose(*FIXED, *overrides), Path(folder))
                found.append(seconds_a_step(Path(folder)))
    without, with_checkpoints = seconds.values()
    ratios = [one / other for one, other in zip(with_checkpoints, without, strict=True)]
    rows = [
        ["without checkpoints", f"{1e3 * median(without):.2f}", "1.00"],
        [f"one every {arguments.every} steps", f"{1e3 * median(with_checkpoints):.2f}", f"{median(ratios):.3f}"],
        ["checks of one call", f"{1e3 * seconds_of_checks():.3f}", f"{seconds_of_checks() / median(without):.4f}"],
    ]
    print("\n" + markdown(["a step", "ms", "ratio"], rows))
    print(f"ratio of each round: {', '.join(f'{ratio:.3f}' for ratio in ratios)}")


def seconds_a_step(folder: Path) -> float:
    epochs = metrics(folder, "epoch")
    return median(line["seconds"] for line in epochs[1:]) / epochs[0]["step"]


def seconds_of_checks(number: int = 2000) -> float:
    """Of signing a call, checking it, and what the closed unpickler takes longer than pickle's own."""
    from torch.distributed.rpc import internal

    from splitlearn.transport.delivery import deliver
    from splitlearn.transport.token import is_signed, sign
    from splitlearn.transport.unpickler import closed

    token, what = b"0" * 64, (0, "0123456789abcdef", 1, "step")
    message = pickle.dumps(internal.PythonUDF(deliver, (*what, "0" * 64, ()), {}))
    started = time.perf_counter()
    for _ in range(number):
        assert is_signed(sign(token, *what), token, *what)
    with closed([deliver]):
        for _ in range(number):
            internal.deserialize(message, [])
    middle = time.perf_counter()
    for _ in range(number):
        pickle.Unpickler(io.BytesIO(message)).load()
    return (middle - started - (time.perf_counter() - middle)) / number


if __name__ == "__main__":
    start(main)
