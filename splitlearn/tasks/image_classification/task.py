"""Image classification: one label an image, cross-entropy, and how often the label is among the highest scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from splitlearn.tasks.image_classification import networks, pretrained, sources
from splitlearn.tasks.image_classification.fitting import check_scores, fitted
from splitlearn.tasks.image_classification.loading import loaders
from splitlearn.tasks.task import ClientData, Metric, Task

LABELS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
MAX_CLASSES = 1 << 20  # what a client may make the server build
HIGHEST = {"top1": 1, "top5": 5}  # scores that a label may be among


class ImageClassification(Task):
    """Inputs are (B, 3, size, size) float32 images, targets (B) int64 labels, outputs (B, classes) scores."""

    metrics: ClassVar = (Metric("top1", "accuracy"), Metric("top5", "top-5"))
    train_metrics: ClassVar = ("top1",)

    # Data

    def load(self, cfg: DictConfig, client: int, num_clients: int) -> ClientData:
        *datasets, num_classes = sources.build(cfg.data, cfg.seed)
        train, test = loaders(*datasets, client, num_clients, cfg)
        return ClientData(train, test, {"num_classes": num_classes}, len(train.dataset), len(test.dataset))

    def check_about(self, about: Any) -> None:
        if not isinstance(about, dict) or about.keys() != {"num_classes"}:
            raise ValueError("it does not say how many classes there are, and nothing else")
        if type(about["num_classes"]) is not int or not 1 <= about["num_classes"] <= MAX_CLASSES:
            raise ValueError(f"num_classes is not a number from 1 to {MAX_CLASSES}")

    def disagreement(self, one: dict[str, int], other: dict[str, int]) -> str | None:
        classes = [about["num_classes"] for about in (one, other)]
        return None if classes[0] == classes[1] else f"the clients' data have {classes} classes"

    def default_about(self, cfg: DictConfig) -> dict[str, int]:
        return {"num_classes": cfg.data.num_classes or 10}

    # Network

    def example(self, cfg: DictConfig) -> Tensor:
        return networks.example(cfg.data.image_size)

    def network(self, cfg: DictConfig, about: dict[str, int]) -> nn.Module:
        def build(image_size: int) -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(cfg.seed)
                return networks.from_config(cfg.arch, about["num_classes"], image_size)

        return fitted(build, cfg.data.image_size, networks.title(cfg.arch))

    def pretrain(self, cfg: DictConfig, model: nn.Module, about: dict[str, int]) -> list[str]:
        if cfg.arch.get("weights") is None:
            return []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            return pretrained.load(cfg.arch, model, about["num_classes"], cfg.data.image_size)

    def check_outputs(self, cfg: DictConfig, outputs: Tensor, about: dict[str, int]) -> None:
        check_scores(outputs, networks.title(cfg.arch), about["num_classes"])

    def cut_path(self, cfg: DictConfig, cut: str, model: nn.Module) -> str:
        return networks.resolve_cut(cut, networks.cuts_of(cfg.arch, model), model, cfg.data.image_size)

    def headline(self, cfg: DictConfig) -> tuple[str, str]:
        return networks.title(cfg.arch), cfg.data.name

    # A batch

    def pack(self, targets: Tensor) -> Tensor:
        largest = int(targets.max())
        dtype = torch.uint8 if largest < 1 << 8 else torch.int16 if largest < 1 << 15 else torch.int32
        return targets.to("cpu", dtype)

    def check_targets(self, packed: Any, about: dict[str, int], max_samples: int) -> None:
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
        return F.cross_entropy(outputs.float(), targets)

    @torch.no_grad()
    def score(self, outputs: Tensor, targets: Tensor, names: Iterable[str]) -> dict[str, float]:
        def total(name: str) -> float:
            if name == "loss":
                return F.cross_entropy(outputs.float(), targets, reduction="sum").item()
            return float(num_correct(outputs, targets, HIGHEST[name]))

        return {name: total(name) for name in names}


def num_correct(scores: Tensor, labels: Tensor, k: int) -> int:
    """How many labels, (B), are among the k highest of their scores, (B, classes)."""
    top = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return int((top == labels.unsqueeze(1)).sum())
