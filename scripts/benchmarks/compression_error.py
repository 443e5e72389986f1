"""The paper's Fig. 2 on real images: relative ℓ2 error of the decoded map against the bytes that were sent.

    python scripts/benchmarks/compression_error.py                                convnet on the digits
    python scripts/benchmarks/compression_error.py --arch vgg19 --image-folder data    any folder that ImageFolder reads

Trains the uncut network for a few epochs, takes the maps of one test batch at its three cuts and the gradients that
come back there, and compresses both in many ways. Writes a table in Markdown and, with matplotlib, a picture.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from common import markdown, start

from splitlearn.compose import compose

CUTS = ["shallow", "medium", "deep"]
BATCH = 256
THICK = ("ms_best, by budget", "uq", "klt")  # lines of the picture
BASELINES = ("splitfc, none dropped", "fedlite", "low_rank")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="convnet")
    parser.add_argument("--image-folder", help="instead of the digits")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--samples", type=int, default=10_000, help="training samples, at most")
    parser.add_argument("--out", type=Path, default=Path("outputs/compression_error"), help="without its suffix")
    arguments = parser.parse_args()
    data = ["data=image_folder", f"data.root={arguments.image_folder}"] if arguments.image_folder else ["data=digits"]
    overrides = [*data, f"arch={arguments.arch}", f"epochs={arguments.epochs}", "batch_size=64", "num_clients=1"]
    cfg = compose(*overrides, f"data.max_train_samples={arguments.samples}", "schedule=constant", "optimizer.lr=0.02")

    maps, gradients = tensors_of(cfg)
    about = f"{arguments.arch}, {cfg.data.name}, {arguments.epochs} epochs"
    header = ["compressor", *(f"{cut}: {what}" for cut in CUTS for what in ("bits", "error"))]
    up = [[label, *(cell for x in maps for cell in cells(compressor, x, "{:.3f}"))] for label, compressor in settings()]
    header_down = ["compressor", *(f"{cut}: {what}" for cut in CUTS for what in ("bits", "error", "cosine"))]
    down = [
        [
            label,
            *(cell for x in gradients for cell in (*cells(compressor, x, "{:.3f}"), f"{cosine(compressor, x):.3f}")),
        ]
        for label, compressor in settings(gradient=True)
    ]
    text = f"### Maps ({about}): bits an element, relative ℓ2 error\n\n{markdown(header, up)}\n\n"
    text += f"### Cut gradients ({about})\n\n{markdown(header_down, down)}\n"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(text)
    print(text)
    draw(maps, about, arguments.out.with_suffix(".png"))


def tensors_of(cfg) -> tuple[list, list]:
    """Maps and gradients of a test batch at the three cuts of a network that was trained a little."""
    from splitlearn.segments import split
    from splitlearn.segments.trainable import Trainable
    from splitlearn.tasks.image_classification import networks, sources
    from splitlearn.tasks.loading import loaders

    torch.manual_seed(cfg.seed)
    train, test, classes = sources.build(cfg.data, cfg.seed)
    loader, _ = loaders(train, test, 0, 1, cfg)
    trainable = Trainable(networks.build(cfg.arch.name, len(classes), cfg.data.image_size), cfg)
    for epoch in range(cfg.epochs):
        for images, labels in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=cfg.arch.name != "convnet"):
                loss = F.cross_entropy(trainable.segment(images).float(), labels)
            trainable.optimizer.zero_grad()
            loss.backward()
            trainable.optimizer.step()
        print(f"epoch {epoch + 1}/{cfg.epochs} loss {loss.item():.3f}", file=sys.stderr)
    images, labels = next(iter(torch.utils.data.DataLoader(test, BATCH, shuffle=True)))
    maps, gradients = [], []
    for cut in CUTS:
        path = networks.resolve_cut(cut, cfg.arch.cuts, trainable.segment, cfg.data.image_size)
        client, server = split(trainable.segment, path, images[:2])
        smashed = client(images).detach().requires_grad_()
        F.cross_entropy(server(smashed), labels).backward()
        maps.append(smashed.detach())
        gradients.append(smashed.grad)
    return maps, gradients


def settings(gradient: bool = False) -> list[tuple[str, object]]:
    """Labelled compressors of the tables."""
    from splitlearn.compressors import REGISTRY, MaskSparsifier, RandomTopKSparsifier, TopKSparsifier, UniformQuantizer

    ours = {"levels": "fitted", "values": "uint8", "lossless": "zstd"}
    both = [
        ("sp, ratio .95875", TopKSparsifier()),
        ("rt, ratio .95875", RandomTopKSparsifier()),
        ("qu, 3 bits", UniformQuantizer()),
        ("qu, 3 bits, zstd", UniformQuantizer(lossless="zstd")),
        ("int8, block 2048", REGISTRY["int8"]()),
        ("splitfc, half dropped, 1 bit", REGISTRY["splitfc"]()),
        ("splitfc, none dropped, 1 bit", REGISTRY["splitfc"](ratio=0.0)),
        ("fedlite, 4 bits for 4 values", REGISTRY["fedlite"]()),
        ("c3sl, 4 samples", REGISTRY["c3sl"]()),
        ("low_rank, rank 32 of 256", REGISTRY["low_rank"](rank=32)),
        ("ms, floor (paper)", MaskSparsifier(rounding="floor")),
        ("ms, nearest", MaskSparsifier()),
        ("ms, nearest, zstd", MaskSparsifier(lossless="zstd")),
        ("+ fitted levels", MaskSparsifier(levels="fitted", lossless="zstd")),
        ("+ bf16 top values", MaskSparsifier(**{**ours, "values": "bf16"})),
        ("+ 8-bit top values: ms_best", MaskSparsifier(**ours)),
        ("ms_best, per sample", MaskSparsifier(**ours, scope="sample")),
        ("ms_best, per channel", MaskSparsifier(**ours, scope="channel")),
        ("ms_best without zstd, ratio .96", MaskSparsifier(**{**ours, "lossless": "none"}, ratio=0.96)),
        ("ms_best, 2.32 bits", MaskSparsifier(**ours, budget_bits=2.32)),
        *((f"uq, {bits} bits", REGISTRY["uq"](bits=bits)) for bits in (0.65, 1.5)),
        *((f"klt, {bits} bits", REGISTRY["klt"](bits=bits)) for bits in (0.32, 0.65, 1.5)),
    ]
    if gradient:
        both += [(f"ms_best, {bits} bits", MaskSparsifier(**ours, budget_bits=bits)) for bits in (1.0, 1.6)]
    return both


def coded(compressor, x) -> tuple[float, torch.Tensor]:
    """Bits an element, header and all, and what is decoded.

    Of a codec that keeps state what it takes and leaves of half of the samples, after the other half, with the part of
    the basis that each payload pays for.
    """
    if not compressor.keeps_state:
        payload = compressor.encode(x)
        return 8 * payload.nbytes / x.numel(), compressor.decode(payload)
    compressor.load_state_dict({})
    found = torch.empty_like(x)
    compressor.decode(compressor.encode(x[1::2]))
    payload = compressor.encode(x[::2])
    found[::2] = compressor.decode(payload)
    paid = compressor.state_dict().get("debt", 0) / compressor.refresh
    bits = (8 * (payload.nbytes - compressor.basis_nbytes(payload)) + paid) / payload.numel
    compressor.load_state_dict({})
    compressor.decode(compressor.encode(x[::2]))
    found[1::2] = compressor.decode(compressor.encode(x[1::2]))
    return bits, found


def cells(compressor, x, form: str) -> tuple[str, str]:
    bits, decoded = coded(compressor, x)
    return f"{bits:.2f}", form.format(((decoded - x).norm() / x.norm()).item())


def cosine(compressor, x) -> float:
    return F.cosine_similarity(coded(compressor, x)[1].flatten(), x.flatten(), 0).item()


def draw(maps: list, about: str, path: Path) -> None:
    """Error against bits, a panel a cut; lines over each family's options, both axes logarithmic."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print("no picture: pip install matplotlib", file=sys.stderr)
        return
    from splitlearn.compressors import REGISTRY, MaskSparsifier, TopKSparsifier, UniformQuantizer

    ours = {"levels": "fitted", "values": "uint8", "lossless": "zstd"}
    families = {
        "sp": [TopKSparsifier(ratio=ratio) for ratio in (0.99, 0.97, 0.95875, 0.93, 0.9, 0.85)],
        "qu": [UniformQuantizer(bits=bits) for bits in (1, 2, 3, 4)],
        "qu, zstd": [UniformQuantizer(bits=bits, lossless="zstd") for bits in (1, 2, 3, 4)],
        "ms (paper), floor": [MaskSparsifier(bits=bits, rounding="floor") for bits in (1, 2, 3, 4)],
        "ms (paper), nearest": [MaskSparsifier(bits=bits) for bits in (1, 2, 3, 4)],
        "ms_best, by budget": [MaskSparsifier(**ours, budget_bits=bits) for bits in (0.5, 1, 1.5, 2, 2.32, 3, 4)],
        "splitfc, none dropped": [REGISTRY["splitfc"](ratio=0.0, bits=bits) for bits in (0.5, 1, 2, 3, 4)],
        "fedlite": [REGISTRY["fedlite"](length=length) for length in (8, 4, 2, 1)],
        "low_rank": [REGISTRY["low_rank"](rank=rank) for rank in (8, 16, 32, 64, 128)],
        "uq": [REGISTRY["uq"](bits=bits) for bits in (0.35, 0.65, 1, 1.5, 2.3, 4)],
        "klt": [REGISTRY["klt"](bits=bits) for bits in (0.2, 0.35, 0.65, 1, 1.5, 2.3, 4)],
    }
    figure, axes = pyplot.subplots(1, len(maps), figsize=(13, 4), sharey=True, layout="constrained")
    for axis, x, cut in zip(axes, maps, CUTS, strict=True):
        axis.set_prop_cycle(color=[*pyplot.rcParams["axes.prop_cycle"].by_key()["color"], "black"])  # one a family
        for label, family in families.items():
            points = []
            for compressor in family:
                bits, decoded = coded(compressor, x)
                points.append((bits, ((decoded - x).norm() / x.norm()).item()))
            style = "o:" if label in BASELINES else "o-"
            axis.plot(
                *zip(*points, strict=True), style, markersize=4, label=label, linewidth=2.5 if label in THICK else 1.2
            )
        axis.axvline(2.32, color="gray", linewidth=0.7, linestyle=":")
        axis.set(
            xscale="log", yscale="log", xlabel="bits an element", title=f"{cut}: {'×'.join(map(str, x.shape[1:]))}"
        )
        axis.set_xticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("relative ℓ2 error")
    axes[0].legend(fontsize=8)
    figure.suptitle(f"Error of the decoded map against its bytes ({about})")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    start(main)
