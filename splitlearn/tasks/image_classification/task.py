"""Image classification: one label an image, cross-entropy, and how often the label is among the highest scores."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, ListConfig
from torch import Tensor, nn

from splitlearn.errors import UserError
from splitlearn.tasks.image_classification import networks, pretrained, sources
from splitlearn.tasks.image_classification.fitting import check_scores, fitted
from splitlearn.tasks.image_classification.folders import given_classes
from splitlearn.tasks.loading import client_data, test_data
from splitlearn.tasks.partition import labels
from splitlearn.tasks.task import ClientData, Metric, Task

LABELS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
MAX_CLASSES = 1 << 20  # what a client may make the server build
MAX_SAMPLES = 1 << 53
MAX_NAME = 255  # letters, as of a file
NUM_NAMED = 5  # classes, where there are many
HIGHEST = {"top1": 1, "top5": 5}  # scores that a label may be among


class ImageClassification(Task):
    """Inputs are (B, 3, size, size) float32 images, targets (B) int64 labels, outputs (B, classes) scores.

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
    unit: ClassVar = "images"

    def __init__(self, label_smoothing: float = 0.0, class_weights: Any = None):
        if not isinstance(label_smoothing, (int, float)) or not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be a number from 0, and below 1")
        if class_weights not in (None, "balanced") and not (
            isinstance(class_weights, (list, tuple, ListConfig))
            and all(isinstance(weight, (int, float)) and 0 < weight < math.inf for weight in class_weights)
        ):
            raise ValueError(
                f"class_weights={class_weights} must be null, balanced, or a number above 0 for each class"
            )
        self.label_smoothing, self.counts = label_smoothing, class_weights == "balanced"
        self.class_weights = None if class_weights in (None, "balanced") else torch.tensor([*class_weights]).float()

    def check(self, cfg: DictConfig) -> None:
        if "image_size" not in cfg.data:
            raise UserError(f"data={cfg.data.name} has no images: task=causal_lm learns from it")
        if self.counts and cfg.membership.open:
            raise UserError(
                "task.class_weights=balanced does not go with membership.open=true, where nobody knows which samples"
                " will come: give a weight for each class"
            )

    # Data

    def load(self, cfg: DictConfig, client: int, num_clients: int) -> ClientData:
        tells = client == 0 or cfg.role is not None  # once on a screen
        train, test, classes = sources.build(cfg.data, cfg.seed, print if tells else lambda note: None)
        data = client_data(train, test, about_of(classes), client, num_clients, cfg)
        if self.counts:
            known, own = labels(train), data.train.dataset.indices
            own = [int(train[index][1]) for index in own] if known is None else known[own]
            data.about["num_train_of_class"] = np.bincount(own, minlength=len(classes)).tolist()
        return data

    def load_test(self, cfg: DictConfig) -> ClientData:
        train, test, classes = sources.build(cfg.data, cfg.seed)
        return test_data(train, test, about_of(classes), cfg)

    def together(self, abouts: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.counts:
            return abouts[0]
        counts = [about["num_train_of_class"] for about in abouts]
        return abouts[0] | {"num_train_of_class": [sum(of_class) for of_class in zip(*counts, strict=True)]}

    def know(self, about: dict[str, Any]) -> None:
        if self.counts:
            counts = torch.tensor(about["num_train_of_class"], dtype=torch.float64)
            self.class_weights = (counts.sum() / len(counts) / counts).float()
            self.class_weights[counts == 0] = 0
        if self.class_weights is not None and len(self.class_weights) != about["num_classes"]:
            raise UserError(
                f"task.class_weights has {len(self.class_weights)} numbers, but the data {about['num_classes']} classes"
            )

    def imports(self, cfg: DictConfig) -> tuple[str, ...]:
        return ("sklearn.datasets", "sklearn.model_selection") if cfg.data.name == "digits" else ()

    def check_about(self, about: Any) -> None:
        names = {"num_classes", "classes"} | ({"num_train_of_class"} if self.counts else set())
        if not isinstance(about, dict) or about.keys() != names:
            of_each = ", how many training samples of each" if self.counts else ""
            raise ValueError(
                f"it does not say how many classes there are, what they are called{of_each}, and nothing else"
            )
        number, names = about["num_classes"], about["classes"]
        if type(number) is not int or not 1 <= number <= MAX_CLASSES:
            raise ValueError(f"num_classes is not a number from 1 to {MAX_CLASSES}")
        if type(names) is not list or len(names) != number:
            raise ValueError(f"its classes are no list of {number} names")
        if not all(type(name) is str and len(name) <= MAX_NAME for name in names):
            raise ValueError(f"its classes are no names of up to {MAX_NAME} letters")
        if self.counts:
            counts = about["num_train_of_class"]
            if not isinstance(counts, list) or len(counts) != about["num_classes"]:
                raise ValueError("num_train_of_class is no list of a number for each class")
            if not all(type(count) is int and 0 <= count <= MAX_SAMPLES for count in counts):
                raise ValueError("num_train_of_class has more than numbers of samples")

    def disagreement(self, one: dict[str, Any], other: dict[str, Any]) -> str | None:
        names = one["classes"], other["classes"]
        if names[0] == names[1]:
            return None
        if sorted(names[0]) == sorted(names[1]):
            differ = "the same classes in another order"
        else:
            missing, more = ([name for name in a if name not in set(b)] for a, b in (names, names[::-1]))
            found = [f"lacks {in_words(missing)}"] * bool(missing) + [f"has {in_words(more)}"] * bool(more)
            differ = f"{len(names[1])} classes instead of {len(names[0])}: it {' and '.join(found)}"
        return f"it has {differ}; data.classes=[…] gives one list for all, of which a client may lack some"

    def default_about(self, cfg: DictConfig) -> dict[str, Any]:
        return about_of(given_classes(cfg.data) or list(range(cfg.data.num_classes or 10)))

    def headline(self, cfg: DictConfig) -> tuple[str, str]:
        return networks.title(cfg.arch), (cfg.data.get("_target_") or cfg.data.name).rpartition(".")[2]

    def details(self, cfg: DictConfig, about: dict[str, Any]) -> str:
        number, size = about["num_classes"], cfg.data.image_size
        return f"{number} class{'es' * (number > 1)} ({in_words(about['classes'])}), images of {size}×{size}"

    # Network

    def example(self, cfg: DictConfig) -> Tensor:
        return networks.example(cfg.data.image_size)

    def network(self, cfg: DictConfig, about: dict[str, Any]) -> nn.Module:
        def build(image_size: int) -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(cfg.seed)
                return networks.from_config(cfg.arch, about["num_classes"], image_size)

        return fitted(build, cfg.data.image_size, networks.title(cfg.arch))

    def pretrain(self, cfg: DictConfig, model: nn.Module, about: dict[str, Any]) -> list[str]:
        if cfg.arch.get("weights") is None:
            return []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            return pretrained.load(cfg.arch, model, about["num_classes"], cfg.data.image_size)

    def check_outputs(self, cfg: DictConfig, outputs: Tensor, about: dict[str, Any]) -> None:
        check_scores(outputs, networks.title(cfg.arch), about["num_classes"])

    def cut_path(self, cfg: DictConfig, cut: str, model: nn.Module) -> str:
        return networks.resolve_cut(cut, networks.cuts_of(cfg.arch, model), model, cfg.data.image_size)

    # A batch

    def pack(self, targets: Tensor) -> Tensor:
        largest = int(targets.max())
        dtype = torch.uint8 if largest < 1 << 8 else torch.int16 if largest < 1 << 15 else torch.int32
        return targets.to("cpu", dtype)

    def check_targets(self, packed: Any, about: dict[str, Any], max_samples: int) -> None:
        if not isinstance(packed, Tensor) or packed.dim() != 1 or packed.dtype not in LABELS:
            raise ValueError("the labels are no 1-D integer tensor")
        is_as_sent = packed.device.type == "cpu" and packed.layout == torch.strided and not packed.requires_grad
        if not is_as_sent or not 1 <= len(packed) <= max_samples:
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


def about_of(classes: Iterable[Any]) -> dict[str, Any]:
    """What the server is told of the data: how many classes there are, and their names, in the order of the labels."""
    names = [str(name)[:MAX_NAME] for name in classes]
    return {"num_classes": len(names), "classes": names}


def in_words(names: list[str]) -> str:
    """The first of some names."""
    return ", ".join(names[:NUM_NAMED]) + ", …" * (len(names) > NUM_NAMED)


def num_correct(scores: Tensor, labels: Tensor, k: int) -> int:
    """How many labels, (B), are among the k highest of their scores, (B, classes)."""
    top = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return int((top == labels.unsqueeze(1)).sum())
