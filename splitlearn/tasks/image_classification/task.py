"""Image classification: one label an image, cross-entropy, and how often the label is among the highest scores."""

from __future__ import annotations

from typing import Any, ClassVar

from omegaconf import DictConfig
from torch import Tensor, nn

from splitlearn.errors import UserError
from splitlearn.seeds import torch_drawing_from
from splitlearn.tasks.classes import about_of, given_classes, in_words
from splitlearn.tasks.classification import Classification
from splitlearn.tasks.image_classification import networks, pretrained, sources
from splitlearn.tasks.image_classification.fitting import check_scores, fitted
from splitlearn.tasks.image_classification.transforms import moments_of
from splitlearn.tasks.loading import test_data
from splitlearn.tasks.task import ClientData


class ImageClassification(Classification):
    """Inputs are (B, 3, size, size) float32 images."""

    unit: ClassVar = "images"

    def check(self, cfg: DictConfig) -> None:
        if "image_size" not in cfg.data:
            task = "sequence_classification" if "label_column" in cfg.data else "causal_lm"
            raise UserError(f"data={cfg.data.name} has no images: task={task} learns from it")
        moments_of(cfg.data)
        super().check(cfg)

    # Data

    def load(self, cfg: DictConfig, client: int, num_clients: int) -> ClientData:
        tells = client == 0 or cfg.role is not None  # once on a screen
        train, test, classes = sources.build(cfg.data, cfg.seed, print if tells else lambda note: None)
        return self.labelled(train, test, about_of(classes), client, num_clients, cfg)

    def load_test(self, cfg: DictConfig) -> ClientData:
        train, test, classes = sources.build(cfg.data, cfg.seed)
        return test_data(train, test, about_of(classes), cfg)

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
            with torch_drawing_from(cfg.seed):
                return networks.from_config(cfg.arch, about["num_classes"], image_size)

        return fitted(build, cfg.data.image_size, networks.title(cfg.arch))

    def pretrain(self, cfg: DictConfig, model: nn.Module, about: dict[str, Any]) -> list[str]:
        if cfg.arch.get("weights") is None:
            return []
        with torch_drawing_from(cfg.seed):
            return pretrained.load(cfg.arch, model, about["num_classes"], cfg.data.image_size)

    def check_outputs(self, cfg: DictConfig, outputs: Tensor, about: dict[str, Any]) -> None:
        check_scores(outputs, networks.title(cfg.arch), about["num_classes"])

    def cut_path(self, cfg: DictConfig, cut: str, model: nn.Module) -> str:
        return networks.resolve_cut(cut, networks.cuts_of(cfg.arch, model), model, cfg.data.image_size)
