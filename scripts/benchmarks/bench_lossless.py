"""The lossless stages: bytes and milliseconds of MS without one, with zstd, and with the entropy coder.

    python scripts/benchmarks/bench_lossless.py

Maps and cut gradients of the convnet and the slim VGG, trained on the digits for a few epochs, at their three cuts, and
of a small transformer over bytes that reads this project's own pages for a minute or two. One thread, the best of five;
the processor's time, so that a machine that others use too hardly matters.
"""

import argparse
import sys
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from common import ROOT, markdown, start
from compression_error import CUTS, tensors_of
from torch import nn

from splitlearn.compose import compose
from splitlearn.compressors import Compressor, MaskSparsifier, UniformQuantizer

STAGES = ("none", "zstd", "ans")
WIDTH, LENGTH = 128, 128
EPOCHS = {"convnet": 5, "vgg_slim": 4}
SETTINGS = {
    "ms": lambda stage: MaskSparsifier(lossless=stage),
    "ms_best": lambda stage: MaskSparsifier(levels="fitted", values="uint8", lossless=stage),
    "qu": lambda stage: UniformQuantizer(lossless=stage),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="*", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--epochs", type=int, help="of those; 5 and 4 if not given")
    parser.add_argument("--steps", type=int, default=250, help="of the transformer's training")
    arguments = parser.parse_args()
    found = dict(tensors(arguments))
    torch.set_num_threads(1)
    header = ["tensor", "codec", *(f"{stage}: {what}" for what in ("bits", "encode", "decode") for stage in STAGES)]
    rows = []
    for name, x in found.items():
        for label, make in SETTINGS.items():
            measured = [measure(make(stage), x) for stage in STAGES]
            bits, *times = zip(*measured, strict=True)
            cells = [f"{one:.2f}" for one in bits] + [f"{one:.1f}" for some in times for one in some]
            rows.append([name, label, *cells])
    print(markdown(header, rows))


def measure(compressor: Compressor, x: torch.Tensor) -> tuple[float, float, float]:
    """Bits an element, header and all, and milliseconds to encode and to decode."""
    times = []
    for _ in range(6):  # the first compiles
        started = time.process_time()
        payload = compressor.encode(x)
        encoded = time.process_time()
        compressor.decode(payload)
        times.append((encoded - started, time.process_time() - encoded))
    return 8 * payload.nbytes / x.numel(), *(1e3 * min(some) for some in zip(*times[1:], strict=True))


def tensors(arguments: argparse.Namespace) -> Iterator[tuple[str, torch.Tensor]]:
    """Names, and what they name."""
    for arch in arguments.archs:
        epochs = arguments.epochs or EPOCHS[arch]
        overrides = ["data=digits", f"arch={arch}", f"epochs={epochs}", "batch_size=64", "num_clients=1"]
        maps, gradients = tensors_of(compose(*overrides, "schedule=constant", "optimizer.lr=0.02"))
        for cut, x, gradient in zip(CUTS, maps, gradients, strict=True):
            shape = "×".join(map(str, x.shape))
            yield f"{arch} {cut}, {shape}", x
            yield f"{arch} {cut}, gradient", gradient
    x, gradient = tokens(arguments.steps)
    yield f"transformer, {'×'.join(map(str, x.shape))}", x
    yield "transformer, gradient", gradient


class Transformer(nn.Module):
    """Next bytes by four blocks, cut in the middle."""

    def __init__(self):
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, **options) for _ in range(4))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))

    def client(self, text: torch.Tensor) -> torch.Tensor:
        return self._through(self.blocks[:2], self.bytes(text) + self.places)

    def server(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self._through(self.blocks[2:], x))

    def _through(self, blocks: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        for block in blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return x


def tokens(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states, (32, 128, 128), and their gradient."""
    torch.manual_seed(0)
    files = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("splitlearn/**/*.py")])
    text = torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8).long()
    net = Transformer()
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)

    def loss_of(x: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(net.server(x).flatten(0, 1), following.flatten())

    def windows(num: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.stack([text[i : i + LENGTH + 1] for i in torch.randint(len(text) - LENGTH, (num,)).tolist()])
        return found[:, :-1], found[:, 1:]

    for _ in range(steps):
        here, following = windows(16)
        loss = loss_of(net.client(here), following)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    print(f"transformer: loss {loss.item():.2f} nats a byte", file=sys.stderr)
    here, following = windows(32)
    x = net.client(here).detach().requires_grad_()
    loss_of(x, following).backward()
    return x.detach(), x.grad


if __name__ == "__main__":
    start(main)
