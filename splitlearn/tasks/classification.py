"""What all tasks share whose samples have one label each: cross-entropy, and how often the label is the likeliest."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, ListConfig
from torch import Tensor
from torch.utils.data import Dataset

from splitlearn.compressors.checking import is_as_sent
from splitlearn.errors import UserError
from splitlearn.tasks import classes
from splitlearn.tasks.checking import check_smoothing
from splitlearn.tasks.loading import client_data
from splitlearn.tasks.partition import read_labels
from splitlearn.tasks.task import ClientData, Metric, Task

LABELS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
MAX_SAMPLES = 1 << 53
HIGHEST = {"top1": 1, "top5": 5}  # scores that a label may be among


class Classification(Task):
    """Targets are (B,) int64 labels, outputs (B, classes) scores.

    Args:
        label_smoothing: the part of a label that is shared out over all classes, in training.
        class_weights: of the classes in the training loss: a number each; or "balanced", what makes each weigh the same
            over the training samples of all clients: num_samples / (num_classes · samples of the class). For that, each
            client tells the server how many samples of each class it has.

    Raises:
        ValueError: an option is not one of these.
    """

    metrics: ClassVar = (Metric("top1", "accuracy"), Metric("top5", "top-5"))
    train_metrics: ClassVar = ("top1",)

    def __init__(self, label_smoothing: float = 0.0, class_weights: Any = None):
        check_smoothing(label_smoothing)
        if class_weights not in (None, "balanced") and not (
            isinstance(class_weights, (list, tuple, ListConfig))
            and all(isinstance(weight, (int, float)) and 0 < weight < math.inf for weight in class_weights)
        ):
            raise ValueError(
                f"class_weights={class_weights} must be null, balanced, or a number above 0 for each class"
            )
        self.label_smoothing, self.counts = label_smoothing, class_weights == "balanced"
        self.counted = ("num_train_of_class",) if self.counts else ()
        self.class_weights = None if class_weights in (None, "balanced") else torch.tensor([*class_weights]).float()

    def check(self, cfg: DictConfig) -> None:
        if self.counts and cfg.membership.open:
            raise UserError(
                "task.class_weights=balanced does not go with membership.open=true, where nobody knows which samples"
                " will come: give a weight for each class"
            )

    # Data

    def labelled(
        self, train: Dataset, test: Dataset, about: dict[str, Any], client: int, num_clients: int, cfg: DictConfig
    ) -> ClientData:
        """`client_data` of samples with labels: tells how many of each class there are, where that is wanted."""
        data = client_data(train, test, about, client, num_clients, cfg)
        if self.counts:
            need = "task.class_weights=balanced", "task.class_weights=null"
            own = read_labels(train, data.train.dataset.indices, *need)
            data.about["num_train_of_class"] = np.bincount(own, minlength=about["num_classes"]).tolist()
        return data

    def together(self, abouts: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.counts:
            return abouts[0]
        counts = [about["num_train_of_class"] for about in abouts]
        return abouts[0] | {"num_train_of_class": [sum(of_class) for of_class in zip(*counts, strict=True)]}

    def know(self, about: dict[str, Any]) -> None:
        # An older run's summary does not have them: it is evaluated without, since classes weigh in training alone.
        if self.counts and (counted := about.get("num_train_of_class")):
            counts = torch.tensor(counted, dtype=torch.float64)
            self.class_weights = (counts.sum() / len(counts) / counts).float()
            self.class_weights[counts == 0] = 0
        if self.class_weights is not None and len(self.class_weights) != about["num_classes"]:
            raise UserError(
                f"task.class_weights has {len(self.class_weights)} numbers, but the data {about['num_classes']} classes"
            )

    def check_about(self, about: Any) -> None:
        names = {"num_classes", "classes", *self.more_about, *self.counted}
        if not isinstance(about, dict) or about.keys() != names:
            more = "".join(f", {what}" for what in self.more_about.values())
            of_each = ", how many training samples of each" if self.counts else ""
            raise ValueError(
                f"it does not say how many classes there are, what they are called{of_each}{more}, and nothing else"
            )
        classes.check(about)
        if self.counts:
            counts = about["num_train_of_class"]
            if not isinstance(counts, list) or len(counts) != about["num_classes"]:
                raise ValueError("num_train_of_class is no list of a number for each class")
            if not all(type(count) is int and 0 <= count <= MAX_SAMPLES for count in counts):
                raise ValueError("num_train_of_class has more than numbers of samples")

    more_about: ClassVar[dict[str, str]] = {}
    """What a subclass says of its data beside this, by key, in words."""

    def disagreement(self, one: dict[str, Any], other: dict[str, Any]) -> str | None:
        return classes.disagreement(one, other)

    # A batch

    def pack(self, targets: Tensor) -> Tensor:
        largest = int(targets.max())
        dtype = torch.uint8 if largest < 1 << 8 else torch.int16 if largest < 1 << 15 else torch.int32
        return targets.to("cpu", dtype)

    def check_targets(self, packed: Any, about: dict[str, Any], max_samples: int) -> None:
        if not isinstance(packed, Tensor) or packed.dim() != 1 or packed.dtype not in LABELS:
            raise ValueError("the labels are no 1-D integer tensor")
        if not is_as_sent(packed) or not 1 <= len(packed) <= max_samples:
            raise ValueError(f"there are {len(packed)} labels, where a batch has 1 to {max_samples}")
        lowest, highest = (int(label) for label in packed.aminmax())
        if not 0 <= lowest <= highest < about["num_classes"]:
            raise ValueError(f"the labels are from {lowest} to {highest}; there are {about['num_classes']} classes")

    # What is optimised and measured

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weights = None if self.class_weights is None else self.class_weights.to(outputs.device)
        return F.cross_entropy(outputs.float(), targets, weights, label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def score(self, outputs: Tensor, targets: Tensor, names: Iterable[str]) -> dict[str, float]:
        def total(name: str) -> float:
            if name == "loss":
                return F.cross_entropy(outputs.float(), targets, reduction="sum").item()
            return float(num_correct(outputs, targets, HIGHEST[name]))

        return {name: total(name) for name in names}

    @torch.no_grad()
    def told_apart(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([targets, outputs.topk(1, dim=1).indices[:, 0]], 1).cpu()  # topk, as in `score`

    def class_names(self, about: dict[str, Any]) -> list[str]:
        return about.get("classes") or [str(number) for number in range(about["num_classes"])]


def num_correct(scores: Tensor, labels: Tensor, k: int) -> int:
    """How many labels, (B), are among the k highest of their scores, (B, classes)."""
    top = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return int((top == labels.unsqueeze(1)).sum())
