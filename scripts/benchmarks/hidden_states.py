"""What codecs make of a language model's hidden states and of their gradients, and what it costs in perplexity.

    python scripts/benchmarks/hidden_states.py --run outputs/gpt
    python scripts/benchmarks/hidden_states.py --cuts 3,15,27 task=causal_lm arch=hf arch.model=<folder> \\
        data=text data.root=<file> data.tokenizer=<folder> task.context=256

Cuts a trained model after some blocks, sends what crosses there for several batches of a held-out text through each
codec, in real bytes, and compares with what was sent. The weights stay as they are. Of the batches the first half lets
a codec that keeps state, such as klt, fit its basis, and is not counted. Writes a table in Markdown.

Columns: bits an element, headers and bases included; error ‖decoded - x‖₂ / ‖x‖₂, which one token of a huge norm
decides; the mean over tokens of the same of each token; the error without each sequence's first token; perplexity
through the codec; bits and error of the gradient that comes back, by the codec in the second column.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from common import markdown, start
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import Dataset

BITS = (0.75, 1.5, 2.3, 3.3)
HEADER = ["up", "down", "bits up", "error", "a token's error", "without first", "perplexity", "bits down", "error down"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="folder of a run with task=causal_lm")
    parser.add_argument("--cuts", default="shallow,medium,deep", help="as of cut=, such as 3,15,27")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=4, help="of a batch")
    parser.add_argument("--out", type=Path, default=Path("outputs/hidden_states.md"))
    parser.add_argument("overrides", nargs="*", help="of a configuration, without --run")
    arguments = parser.parse_intermixed_args()
    if bool(arguments.run) == bool(arguments.overrides):
        parser.error("give --run, or overrides such as task=causal_lm arch=hf arch.model=<folder>")
    from splitlearn.tasks import task_from

    cfg, model, data = of_run(arguments.run) if arguments.run else of_config(arguments.overrides)
    model.requires_grad_(False)
    batches = windows_of(data, arguments.batches * arguments.sequences).split(arguments.sequences)
    text = ""
    for cut in arguments.cuts.split(","):
        path = task_from(cfg).cut_path(cfg, cut, model)
        with torch.autocast("cpu", torch.bfloat16, enabled=cfg.precision == "bf16"):  # not of what the codecs compute
            section = f"### After {path}\n\n{markdown(HEADER, table(model, path, batches))}\n\n"
        print(section, flush=True)
        text += section
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)


def best(**options):
    """What the README calls ms_best."""
    from splitlearn.compressors import REGISTRY

    return REGISTRY["ms"](levels="fitted", values="uint8", lossless="zstd", **options)


def codecs() -> Iterator[tuple[str, str, Callable, Callable]]:
    """Labels and makers of uplink and downlink."""
    from splitlearn.compressors import REGISTRY as KINDS

    alone = {
        "ms_best": best,
        "ms_best, 2.3 bits": partial(best, budget_bits=2.3),
        "qu, 3 bits, zstd": partial(KINDS["qu"], lossless="zstd"),
        "nq, 2 bits": partial(KINDS["nq"], bits=2),
        "int8": KINDS["int8"],
        **{f"uq, {bits} bits": partial(KINDS["uq"], bits=bits) for bits in BITS},
    }
    yield "none", "none", KINDS["none"], KINDS["none"]
    yield "ms", "none", KINDS["ms"], KINDS["none"]
    for label, make in alone.items():
        yield label, "the same", make, make
    for bits in BITS:
        for down in ("linked", "uq"):
            yield (
                f"klt, {bits} bits",
                f"{down}, {bits} bits",
                *(partial(KINDS[one], bits=bits) for one in ("klt", down)),
            )


def table(model: nn.Module, cut: str, batches: Sequence[Tensor]) -> list[list[str]]:
    from splitlearn.segments import split

    client, server = split(model, cut, batches[0][:2, :-1])
    with torch.no_grad():
        maps = [client(batch[:, :-1]) for batch in batches]
    rows = []
    for up, down, *makers in codecs():
        ends = [[make() for make in makers] for _ in range(2)]  # which share nothing
        found = [through(server, x, batch[:, 1:], *ends) for x, batch in zip(maps, batches, strict=True)]
        kept = found[len(found) // 2 :]
        up_bits, error, tokens, rest, loss, down_bits, down_error = (fmean(one) for one in zip(*kept, strict=True))
        errors = f"{error:.3f}", f"{tokens:.3f}", f"{rest:.3f}"
        perplexity = f"{math.exp(min(loss, 30)):,.2f}"
        rows.append([up, down, f"{up_bits:.2f}", *errors, perplexity, f"{down_bits:.2f}", f"{down_error:.3f}"])
        print(*rows[-1], sep="\t", file=sys.stderr, flush=True)
    return rows


def through(server: nn.Module, x: Tensor, targets: Tensor, sender: list, receiver: list) -> tuple[float, ...]:
    """One batch over the cut and back: a row of numbers, as in the table."""
    import splitlearn

    x = x.detach().requires_grad_()
    sent = splitlearn.send(x, *sender, backward="straight_through")
    received = splitlearn.receive(sent.wire, *receiver)
    received.tensor.retain_grad()
    loss = F.cross_entropy(server(received.tensor).flatten(0, 1).float(), targets.flatten())
    loss.backward()
    sent.backward(received.gradient_wire)
    tokens = (received.tensor - x).norm(dim=-1) / x.norm(dim=-1)
    first, whole = x[:, 1:], (received.tensor - x)[:, 1:]
    return (
        8 * sent.wire.numel() / x.numel(),
        relative(received.tensor, x),
        tokens.mean().item(),
        (whole.norm() / first.norm()).item(),
        loss.item(),
        8 * received.gradient_wire.numel() / x.numel(),
        relative(x.grad, received.tensor.grad),
    )


def relative(decoded: Tensor, x: Tensor) -> float:
    return ((decoded - x).norm() / x.norm()).item()


def of_run(folder: str) -> tuple[DictConfig, nn.Module, Dataset]:
    """The configuration of a run, its network, uncut, and its held-out windows."""
    from splitlearn import saved
    from splitlearn.tasks import task_from

    run = saved.load(Path(folder))
    return run.cfg, run.model(), task_from(run.cfg).load_test(run.cfg).test.dataset


def of_config(overrides: list[str]) -> tuple[DictConfig, nn.Module, Dataset]:
    """The same of a configuration: with the weights that it names, or random ones."""
    from splitlearn.compose import compose
    from splitlearn.tasks import task_from

    cfg = compose(*overrides)
    task = task_from(cfg)
    data = task.load_test(cfg)
    model = task.network(cfg, data.about)
    task.pretrain(cfg, model, data.about)
    return cfg, model.eval(), data.test.dataset


def windows_of(data: Dataset, num: int) -> Tensor:
    """(num, T + 1) tokens, drawn at random; fewer where there are not so many."""
    picked = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:num]
    inputs, targets = data.__getitems__([(1, index) for index in picked.tolist()])
    return torch.cat([inputs, targets[:, -1:]], 1)


if __name__ == "__main__":
    start(main)
