"""How long every compressor takes, beside copying the map and beside a plain program for the same method.

Prints one table for each map and number of threads, and for CUDA where there is one: the median and the quartiles of
the time to encode and to decode (checksum included), both in milliseconds and as a multiple of the time to copy the
map into an existing buffer, and the factor by which the payload is smaller than the map. The maps are the ReLU of
Gaussian noise, and what the first layers of VGG19 make of the digits after some training. The last rows are
mask-encoded sparsification the plain way, as its authors published it: the whole map sorted, the mask in float32, and
everything pickled.

    python scripts/benchmarks/bench_codec.py            # two maps, one and two threads
    python scripts/benchmarks/bench_codec.py --quick    # the smaller map only
    python scripts/benchmarks/bench_codec.py --large    # instead: time and extra memory from 10^6 to 10^8 elements
"""

import argparse
import functools
import pickle
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from common import start
from rich.console import Console
from rich.table import Table
from torch import nn

from splitlearn.compose import compose
from splitlearn.compressors import REGISTRY, Compressor, MaskSparsifier, Payload
from splitlearn.exchange import network
from splitlearn.tasks.image_classification import sources
from splitlearn.tasks.loading import loaders

MAPS = {(256, 64, 16, 16): "features.6", (256, 64, 32, 32): "features.5"}  # and the layer of VGG19 that has such maps
EPOCHS = 3
LARGE = [1_000_000, 10_000_000, 100_000_000]


class PlainMask:
    """The method the plain way: what there is to gain on."""

    label = "plain ms: sort, float32 mask, pickle"

    def __init__(self, ratio: float = 0.99, bits: int = 2):
        self.ratio, self.top_code = ratio, 2**bits - 1

    def encode(self, x: torch.Tensor) -> bytes:
        flat = x.reshape(-1)
        ordered, order = torch.sort(flat, descending=True)
        k = max(1, int((1 - self.ratio) * flat.numel()))
        positions = order[:k].sort().values
        mask = (flat / ordered[k - 1] * self.top_code).round().clamp(max=self.top_code - 1)
        mask[positions] = self.top_code
        return pickle.dumps((flat[positions].cpu().numpy(), mask.view(x.shape).cpu().numpy()))

    def decode(self, payload: bytes, device: torch.device) -> torch.Tensor:
        values, mask = (torch.from_numpy(part).to(device) for part in pickle.loads(payload))
        x = mask * (values.min() / self.top_code)
        x[mask == self.top_code] = values
        return x


def noise(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu_()


@functools.cache
def trained(shape: tuple[int, ...]) -> torch.Tensor:
    """Test digits after VGG19's first layers, which were trained with a linear classifier behind them."""
    cfg = compose("arch=vgg19", f"cut={MAPS[shape]}")
    train, test, classes = sources.build(cfg.data, cfg.seed)
    loader, _ = loaders(train, test, 0, 1, cfg)
    torch.manual_seed(cfg.seed)
    client = network.build(cfg, {"num_classes": len(classes)}).client
    model = nn.Sequential(client, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[1], len(classes)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(EPOCHS):
        for images, labels in loader:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(images)
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
    with torch.no_grad():
        return client.eval()(torch.stack([image for image, _ in test][: shape[0]]))


def timed(function, device: torch.device, seconds: float) -> tuple[float, str]:
    """Runs `function` for about `seconds`: median and quartiles of its times, in milliseconds."""

    def once() -> float:
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start)

    first = min(once() for _ in range(3))
    times = [once() for _ in range(min(200, max(5, int(1e3 * seconds / first))))]
    low, median, high = statistics.quantiles(times, n=4)
    return median, f"{low:.2f}–{high:.2f}"


def compressors() -> list[Compressor]:
    found = [cls() for cls in REGISTRY.values()]
    found.insert(1 + [type(one) for one in found].index(MaskSparsifier), MaskSparsifier(scope="sample"))
    return found


def bench(console: Console, kind: str, x: torch.Tensor, threads: int, seconds: float) -> None:
    torch.set_num_threads(threads)
    device = x.device
    nbytes = x.numel() * x.itemsize
    buffer = torch.empty_like(x)
    where = f"{threads} thread{'s'[: threads > 1]}" if device.type == "cpu" else torch.cuda.get_device_name(device)
    copy, spread = timed(lambda: buffer.copy_(x), device, seconds)
    title = f"{'×'.join(map(str, x.shape))} float32, {kind}, {where}; copy {copy:.2f} ms ({spread})"
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    table.add_column("compressor", no_wrap=True)
    for column in ("encode ms", "quartiles", "× copy", "decode ms", "quartiles", "× copy", "saving ×"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in [*compressors(), PlainMask()]:
        payload = one.encode(x)
        if isinstance(one, PlainMask):
            sent = len(payload)
            jobs = (lambda: one.encode(x), lambda: one.decode(payload, device))  # noqa: B023
        else:
            sent = payload.nbytes
            jobs = (lambda: one.encode(x), lambda: one.decode(Payload.parse(payload.tensor), device))  # noqa: B023
        cells = []
        for job in jobs:
            copy, _ = timed(lambda: buffer.copy_(x), device, seconds / 4)  # at the same time, as load comes and goes
            median, spread = timed(job, device, seconds)
            cells += [f"{median:.2f}", spread, f"{median / copy:.1f}"]
        table.add_row(one.label, *cells, f"{nbytes / sent:.2f}")
    console.print(table)
    console.print()


def measure_one(numel: int, what: str) -> None:
    """In a process of its own, so that its highest use of memory is that of this one step. Prints the two numbers."""
    torch.set_num_threads(1)
    x = noise((numel,))
    compressor = MaskSparsifier()
    small = x[:100_000]  # whatever is loaded at the first call
    compressor.decode(compressor.encode(small))
    if what == "decode":
        payload = compressor.encode(x[: numel // 2].repeat(2))
        del x
        x = torch.ones(numel)  # in place of the map, so that the highest use so far is no higher
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    out = compressor.encode(x) if what == "encode" else compressor.decode(payload)
    seconds = time.perf_counter() - start
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(seconds, extra * 1024 / (4 * numel))
    del out


def bench_large(console: Console) -> None:
    table = Table(title="ms, 1 thread, first call in a fresh process", title_justify="left", box=None)
    for column in ("elements", "step", "ms", "ns per element", "peak extra memory, × map"):
        table.add_column(column, justify="right")
    for numel in LARGE:
        for what in ("encode", "decode"):
            command = [sys.executable, __file__, "--measure", str(numel), what]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds, extra = map(float, done.stdout.split())
            cells = (f"{1e3 * seconds:.1f}", f"{1e9 * seconds / numel:.2f}", f"{extra:.2f}")
            table.add_row(f"{numel:,}", what, *cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smaller map only")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (default: 1 2)")
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each measurement (default: 0.5)")
    parser.add_argument("--large", action="store_true", help="time and memory of ms from 10^6 to 10^8 elements instead")
    parser.add_argument("--measure", nargs=2, metavar=("ELEMENTS", "STEP"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    if args.measure:
        return measure_one(int(args.measure[0]), args.measure[1])
    if args.large:
        return bench_large(console)
    console.print(f"torch {torch.__version__}")
    for shape in list(MAPS)[:1] if args.quick else MAPS:
        for kind, x in {"noise": noise(shape), "trained": trained(shape)}.items():
            for threads in args.threads:
                bench(console, kind, x, threads, args.seconds)
            if torch.cuda.is_available():
                bench(console, kind, x.cuda(), 1, args.seconds)


if __name__ == "__main__":
    start(main)
