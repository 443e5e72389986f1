"""Inversion: a decoder, trained on data of the same kind, gives the inputs back from the smashed data.

    auxiliary inputs ─► client segment ─► codec ─► map ─► decoder ─► inputs again: its loss
    what the server decoded ───────────────────────────► decoder ─► a client's inputs

The server knows the client segment's weights, since it has drawn them and averages them; with weights=shadow the
decoder is trained on maps of a segment of its own instead, from a network that was trained on the auxiliary data.

Of images: PSNR in dB and SSIM against the originals, and of those originals that a classifier, trained on the auxiliary
data, takes for what they are, how many of the reconstructions it still does ("recognised"); the guess is the mean
auxiliary image. Of tokens: the share that comes back, by the decoder ("tokens") and by that token whose auxiliary rows
are nearest in the mean ("nearest"); the guess is the most frequent one.

Source: He, Zhang and Lee 2019, "Model inversion attacks against collaborative inference", its inverse-network attack.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitlearn.errors import UserError
from splitlearn.privacy.attacks.attack import Attack, Found, Scene, applied, computing
from splitlearn.privacy.attacks.images import likeness, mean_image, pair
from splitlearn.seeds import derive, drawing_from, start_from
from splitlearn.segments.forward import ENDED
from splitlearn.segments.mirror import draw_anew, image_decoder
from splitlearn.segments.parts import Parts
from splitlearn.tasks.image_classification import networks

WEIGHTS = ("known", "shadow")


class Inversion(Attack):
    """
    Args:
        weights: of the client segment that the decoder is trained with: "known" or "shadow".
        steps: of the decoder's training, each of `batch_size` samples.
        batch_size: of these.
        width: channels of the decoder.
        lr: of Adam.
        classifier_steps: of the independent classifier's training, and of the shadow network's.

    The decoder of images and the classifier compute in bfloat16, where the run does. One attack on the runs of a sweep
    trains one classifier, where their auxiliary data are the same.
    """

    def __init__(
        self,
        weights: str = "known",
        steps: int = 500,
        batch_size: int = 64,
        width: int = 32,
        lr: float = 1e-3,
        classifier_steps: int = 500,
    ):
        self.check_weights(weights, WEIGHTS)
        self.weights, self.steps, self.batch_size, self.width, self.lr = weights, steps, batch_size, width, lr
        self.classifier_steps = classifier_steps
        self._classifiers: dict[tuple, nn.Module] = {}

    def run(self, scene: Scene, seed: int) -> Found:
        if self.weights == "known":
            scene.require_weights(otherwise="shadow")
        start_from(seed)
        _, seen = scene.channel("smashed")
        inputs = scene.inputs()
        if inputs[0].is_floating_point():
            return self._images(scene, torch.cat(seen), torch.cat(inputs))
        return self._tokens(scene, *rows_of(seen, inputs))

    # Images

    def _images(self, scene: Scene, seen: Tensor, inputs: Tensor) -> Found:
        known, targets = (torch.cat(batches) for batches in zip(*scene.auxiliary, strict=True))
        maps = torch.cat(scene.smashed([*known.split(scene.cfg.batch_size)], self._segment(scene)))
        precision = scene.cfg.precision
        decoder = image_decoder(tuple(maps.shape[1:]), tuple(known.shape[1:]), self.width)
        self._train(decoder, maps, known, nn.MSELoss(), self.steps, precision)
        classifier = self._classifier(known, targets.long(), precision)
        labels = torch.cat([one["targets"] for one in scene.seen]).long()
        is_known = applied(classifier, inputs, precision).argmax(1) == labels

        def figures(reconstructed: Tensor) -> dict[str, float]:
            is_taken = applied(classifier, reconstructed, precision).argmax(1) == labels
            recognised = (is_taken & is_known).sum().item() / max(1, is_known.sum().item())
            return likeness(reconstructed, inputs, scene) | {"recognised": recognised}

        found = applied(decoder, seen, precision)
        return Found(figures(found), figures(mean_image(scene, inputs)), pair(inputs, found, scene))

    def _classifier(self, known: Tensor, targets: Tensor, precision: str) -> nn.Module:
        """Of (N, C, H, W) images with (N,) targets; the same for the same, whatever was drawn before."""
        data = known.shape, known.double().sum().item(), targets.sum().item()
        key = torch.initial_seed(), precision, data
        if key not in self._classifiers:
            with drawing_from(derive(torch.initial_seed(), "classifier")):
                classifier = networks.build("convnet", int(targets.max()) + 1, known.shape[-1])
                self._train(classifier, known, targets, nn.CrossEntropyLoss(), self.classifier_steps, precision)
            self._classifiers[key] = classifier
        return self._classifiers[key]

    # Tokens

    def _tokens(self, scene: Scene, seen: Tensor, truth: Tensor) -> Found:
        known = [inputs for inputs, _ in scene.auxiliary]
        rows, tokens = rows_of(scene.smashed(known, self._segment(scene)), known)
        vocabulary = int(max(tokens.max(), truth.max())) + 1
        decoder = nn.Sequential(
            nn.LayerNorm(rows.shape[1]), nn.Linear(rows.shape[1], 4 * self.width), nn.GELU(),
            nn.Linear(4 * self.width, vocabulary),
        )  # fmt: skip
        self._train(decoder, rows, tokens.long(), nn.CrossEntropyLoss(), self.steps)
        read = {"tokens": applied(decoder, seen).argmax(1), "nearest": nearest(seen, rows, tokens.long())}
        guess = (truth == tokens.mode().values).float().mean().item()
        figures = {name: (found == truth).float().mean().item() for name, found in read.items()}
        return Found(figures, dict.fromkeys(figures, guess))

    # Training

    def _train(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, loss: nn.Module, steps: int, precision: str = "fp32"
    ) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        for _ in range(steps):
            batch = torch.randint(len(inputs), (self.batch_size,))
            optimizer.zero_grad()
            with computing(precision):
                outputs = model(inputs[batch])
            loss(outputs.float(), targets[batch]).backward()
            optimizer.step()

    def _segment(self, scene: Scene) -> Parts:
        """The clients', or one of its kind, of a network that was trained on the auxiliary data from other weights."""
        if self.weights == "known":
            return scene.network.client
        known, targets = (joined(batches) for batches in zip(*scene.auxiliary, strict=True))
        model = copy.deepcopy(scene.network)
        for part in (model.client, model.server):
            draw_anew(part)
        parts = nn.ModuleList([model.client, model.server])
        optimizer = torch.optim.Adam(parts.parameters(), lr=self.lr)
        for _ in range(self.classifier_steps):
            batch = torch.randint(len(known), (self.batch_size,))
            optimizer.zero_grad()
            x, wanted = scene.task.to_device((known[batch], targets[batch]), known.device)
            lengths, told = scene.task.lengths(x), None
            for number, (side, part) in enumerate(model.parts()):
                x = side.run(part, x, told)
                told = lengths if number < len(model.cuts) and model.cuts[number].is_ragged else None
            scene.task.loss(x, wanted).backward()
            optimizer.step()
        return model.client


def joined(batches: Sequence[Tensor]) -> Tensor:
    """Batches one after the other, (N, …); of (B, T) tokens and different T filled up to the longest."""
    if batches[0].dim() == 2:
        longest = max(batch.shape[1] for batch in batches)
        batches = [F.pad(batch, (0, longest - batch.shape[1]), value=ENDED) for batch in batches]
    return torch.cat([*batches])


def rows_of(maps: Sequence[Tensor], tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(N, C) rows of all batches, each (B, T, C) maps or (n, 1, C) rows that crossed alone, and (N,) their tokens.

    Raises:
        UserError: maps have no row for each of their (B, T) tokens.
    """
    rows, truth = torch.cat([one.flatten(0, -2) for one in maps]), torch.cat([one[one != ENDED] for one in tokens])
    if len(rows) != len(truth):
        raise UserError("attack=inversion of texts needs a map with a row for each token, which this run's cut has not")
    return rows, truth


def nearest(seen: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """(N,) for each of (N, C) rows the token whose own rows, of (M, C) with (M,) tokens, have the nearest mean."""
    known, which, counts = tokens.unique(return_inverse=True, return_counts=True)
    means = torch.zeros(len(known), rows.shape[1]).index_add(0, which, rows) / counts.unsqueeze(1)
    return known[torch.cat([torch.cdist(part, means).argmin(1) for part in seen.split(1024)])]
