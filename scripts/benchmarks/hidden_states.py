"""What codecs make of a language model's hidden states and of their gradients, and what it costs in perplexity.

    python scripts/benchmarks/hidden_states.py --run outputs/gpt
    python scripts/benchmarks/hidden_states.py --model <folder> --text <file> --cuts 3,15,27

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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from common import markdown
from torch import Tensor, nn

BITS = (0.75, 1.5, 2.3, 3.3)
HEADER = ["up", "down", "bits up", "error", "a token's error", "without first", "perplexity", "bits down", "error down"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="folder of a run with task=causal_lm")
    parser.add_argument("--model", help="folder that transformers loads, or a .gguf file, instead of a run")
    parser.add_argument("--text", help="file, with --model")
    parser.add_argument(
        "--cuts", default="", help="numbers of blocks; none: a quarter, half and three quarters of them"
    )
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--sequences", type=int, default=4, help="of a batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence, with --model")
    parser.add_argument("--out", type=Path, default=Path("outputs/hidden_states.md"))
    arguments = parser.parse_args()
    if bool(arguments.run) == bool(arguments.model) or bool(arguments.model) != bool(arguments.text):
        parser.error("give --run, or --model and --text")
    torch.manual_seed(0)
    if arguments.run:
        model, batches = of_run(arguments.run, arguments.batches * arguments.sequences)
    else:
        model, batches = of_folder(arguments.model, arguments.text, arguments.length)
    batches = list(zip(range(arguments.batches), batches.split(arguments.sequences), strict=False))
    batches = [batch for _, batch in batches]
    blocks = blocks_of(model)
    numbers = [int(one) for one in arguments.cuts.split(",") if one] or [
        max(1, round(len(blocks) * part)) for part in (0.25, 0.5, 0.75)
    ]
    text = ""
    for number in numbers:
        rows = table(model, blocks[number - 1], batches)
        text += f"### After block {number} of {len(blocks)}\n\n{markdown(HEADER, rows)}\n\n"
        print(text.split("### ")[-1], flush=True)
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


def table(model: nn.Module, cut: str, batches: list[Tensor]) -> list[list[str]]:
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


def blocks_of(model: nn.Module) -> list[str]:
    """Paths of the blocks: what the longest list of modules holds."""
    lists = [
        (path, module) for path, module in model.named_modules() if isinstance(module, (nn.ModuleList, nn.Sequential))
    ]
    path, module = max(lists, key=lambda pair: len(pair[1]))
    return [f"{path}.{index}" for index in range(len(module))]


def of_run(folder: str, num: int) -> tuple[nn.Module, Tensor]:
    """The network of a run with task=causal_lm, uncut, and windows of its held-out text."""
    from splitlearn import saved
    from splitlearn.tasks import task_from

    run = saved.load(Path(folder))
    data = task_from(run.cfg).load_test(run.cfg).test.dataset
    picked = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:num]
    windows = [data.dataset[int(data.indices[index])] for index in picked.tolist()]
    inputs, targets = (
        torch.stack([torch.as_tensor(one) for one in part]).long() for part in zip(*windows, strict=True)
    )
    return run.model().eval().requires_grad_(False), torch.cat([inputs, targets[:, -1:]], 1)


class Logits(nn.Module):
    """A causal model of transformers that gives its logits, (B, T, vocabulary)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids, use_cache=False).logits


def of_folder(name: str, text: str, length: int) -> tuple[nn.Module, Tensor]:
    """A model of transformers, and sequences of one token more than `length`, (N, length + 1) int64."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(name)
    source = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = str(path.parent) if source else name
    tokenizer = AutoTokenizer.from_pretrained(folder, **source)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **source).eval().requires_grad_(False)
    ids = torch.tensor(tokenizer(Path(text).read_text(), verbose=False)["input_ids"])
    num = len(ids) // (length + 1)
    return Logits(model), ids[: num * (length + 1)].view(num, length + 1)


if __name__ == "__main__":
    main()
