"""Is error feedback sound on the cut gradient: adding what compression left out of one step's to a later one's?

    python scripts/benchmarks/error_feedback.py            convnet on the digits, in one process, ten minutes

"by position" adds what was left out at the same place of the last batch, which belonged to other samples; "by sample"
keeps a map for every training sample and adds what was left out of its own, an epoch ago. Prints, over all steps, the
relative ℓ2 error of the cut gradient that the client works with, and the cosine between the client's weight gradient
and the one without compression; then the loss of the last epoch and the test accuracy, the means over the seeds.
"""

import argparse
from statistics import fmean

import torch
import torch.nn.functional as F
from common import markdown, start

from splitlearn.compose import compose

MEMORIES = ["none", "by position", "by sample"]


class Feedback:
    """A compressor whose loss at `places` of a memory is added to what is next encoded for them."""

    def __init__(self, compressor, memory: torch.Tensor | None):
        self.compressor, self.memory = compressor, memory
        self.places = self.gradient = None

    def __getattr__(self, name: str):
        return getattr(self.compressor, name)

    def encode(self, gradient: torch.Tensor):
        self.gradient = gradient
        if self.memory is None:
            return self.compressor.encode(gradient)
        wanted = gradient + self.memory[self.places]
        payload = self.compressor.encode(wanted)
        self.memory[self.places] = wanted - self.compressor.decode(payload)
        return payload

    def linked_to(self, trace) -> "Feedback":
        return self

    def decode(self, payload, device) -> torch.Tensor:
        return self.compressor.decode(payload, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    from splitlearn.compressors import Identity, MaskSparsifier, TopKSparsifier

    best = {"levels": "fitted", "values": "uint8", "lossless": "zstd"}
    settings = [
        ("none", Identity(), MEMORIES[:1]),
        ("ms_best", MaskSparsifier(**best), MEMORIES),
        ("sp, ratio .95875", TopKSparsifier(), MEMORIES),
        ("sp, ratio .999", TopKSparsifier(ratio=0.999), MEMORIES),
    ]
    rows = []
    for label, compressor, memories in settings:
        for memory in memories:
            runs = [train(compressor, memory, seed, arguments.epochs) for seed in arguments.seeds]
            error, cosine, loss, accuracy = (fmean(column) for column in zip(*runs, strict=True))
            rows.append([label, memory, f"{error:.3f}", f"{cosine:.3f}", f"{loss:.4f}", f"{100 * accuracy:.2f} %"])
            print(*rows[-1], flush=True)
    header = ["downlink", "feedback", "gradient error", "weight cosine", "last loss", "test accuracy"]
    print("\n" + markdown(header, rows))


def train(compressor, memory: str, seed: int, epochs: int) -> tuple[float, float, float, float]:
    """Gradient error and weight cosine, means over the steps; mean loss of the last epoch; test accuracy."""
    import splitlearn
    from splitlearn.compressors import Identity
    from splitlearn.exchange import network
    from splitlearn.rates import Rates
    from splitlearn.seeds import generator
    from splitlearn.segments.trainable import Trainable
    from splitlearn.tasks.image_classification import sources

    cfg = compose(f"seed={seed}", f"epochs={epochs}")
    (images, labels), (test_images, test_labels) = (part.tensors for part in sources.build(cfg.data, seed)[:2])
    built = network.build(cfg, {"num_classes": 10})
    client, server, point = built.client, built.server, built.cuts[0]
    sides = [Trainable(client, cfg), Trainable(server, cfg)]
    num_kept = {"none": 0, "by position": cfg.batch_size, "by sample": len(images)}[memory]
    downlink = Feedback(compressor, torch.zeros(num_kept, *point.shape) if num_kept else None)
    shuffle = generator(seed, "shuffle")
    errors, cosines = [], []
    rates = Rates(cfg, -(-len(images) // cfg.batch_size))
    for epoch in range(1, epochs + 1):
        losses = []
        for batch in torch.randperm(len(images), generator=shuffle).split(cfg.batch_size):
            downlink.places = batch if memory == "by sample" else torch.arange(len(batch))
            smashed = client(images[batch])
            smashed.retain_grad()
            loss = F.cross_entropy(server(splitlearn.compress(smashed, Identity(), downlink)), labels[batch])
            for side in sides:
                side.optimizer.zero_grad()
            loss.backward(retain_graph=True)
            losses.append(loss.item())
            errors.append(((smashed.grad - downlink.gradient).norm() / downlink.gradient.norm()).item())
            weights = list(client.parameters())
            exact = flat(torch.autograd.grad(smashed, weights, downlink.gradient))
            cosines.append(F.cosine_similarity(flat([one.grad for one in weights]), exact, 0).item())
            for side in sides:
                side.collect(1.0)
                side.step(rates.at(epoch, 0))
    client.eval(), server.eval()
    with torch.no_grad():
        accuracy = (server(client(test_images)).argmax(1) == test_labels).float().mean().item()
    return fmean(errors), fmean(cosines), fmean(losses), accuracy


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


if __name__ == "__main__":
    start(main)
