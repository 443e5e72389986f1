"""The codec's share of a client's training step, on the CPU.

    python scripts/benchmarks/bench_client.py                     vgg19 with batches of 256, convnet with batches of 32
    python scripts/benchmarks/bench_client.py --rounds 20 -- arch=resnet18 cut=shallow batch_size=64

Times the client segment's forward and backward pass, the encoding of its map and the decoding of the cut gradient, in
turns, and prints medians. Images are noise and the weights untrained. Arguments after -- are overrides as for
launch.py, of one network instead of the two.
"""

import argparse
import time
from collections import defaultdict
from statistics import median

import torch
import torch.nn.functional as F
from common import markdown, start

from splitlearn.compose import compose

CASES = [["arch=vgg19", "batch_size=256"], ["arch=convnet", "batch_size=32"]]
UP, DOWN = ["none", "ms", "ms_best"], ["none", "ms_best"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(arguments.threads)
    header = ["uplink + downlink", "forward + backward ms", "encode ms", "decode ms", "codec / compute"]
    for overrides in [arguments.overrides] if arguments.overrides else CASES:
        cfg = compose(*overrides)
        print(f"{cfg.arch.name}, cut={cfg.cut}, batch {cfg.batch_size}, {arguments.threads} thread(s)\n")
        print(markdown(header, rows(times(cfg, arguments.rounds))) + "\n", flush=True)


def times(cfg, rounds: int) -> dict[str, float]:
    """Median milliseconds of what a client does in a step."""
    from splitlearn.compressors import Payload
    from splitlearn.config import compressor_from
    from splitlearn.exchange import network

    built = network.build(cfg, {"num_classes": 10})
    client, server = built.client, built.server
    images = torch.randn(cfg.batch_size, 3, cfg.data.image_size, cfg.data.image_size)
    smashed = client(images).detach().requires_grad_()
    F.cross_entropy(server(smashed), torch.randint(10, (cfg.batch_size,))).backward()
    compressors = {name: compressor_from(compose(f"compressor={name}"), "compressor") for name in {*UP, *DOWN}}
    wires = {name: compressors[name].encode(smashed.grad).tensor for name in DOWN}
    seconds = defaultdict(list)

    def timed(what: str, function):
        started = time.perf_counter()
        result = function()
        seconds[what].append(time.perf_counter() - started)
        return result

    for _ in range(1 + rounds):
        found = timed("forward", lambda: client(images))
        for name in UP:
            timed(f"encode {name}", lambda: compressors[name].encode(found))  # noqa: B023
        for name in DOWN:
            gradient = timed(f"decode {name}", lambda: compressors[name].decode(Payload.parse(wires[name])))  # noqa: B023
        timed("backward", lambda: found.backward(gradient))  # noqa: B023
    return {what: 1e3 * median(several[1:]) for what, several in seconds.items()}


def rows(milliseconds: dict[str, float]) -> list[list[str]]:
    compute = milliseconds["forward"] + milliseconds["backward"]
    cells = []
    for down in DOWN:
        for up in UP:
            encode, decode = milliseconds[f"encode {up}"], milliseconds[f"decode {down}"]
            share = f"{100 * (encode + decode) / compute:.2f} %"
            cells.append([f"{up} + {down}", f"{compute:,.1f}", f"{encode:.2f}", f"{decode:.2f}", share])
    return cells


if __name__ == "__main__":
    start(main)
