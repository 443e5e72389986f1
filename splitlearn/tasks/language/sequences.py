"""Sequence classification: texts of different lengths, with one label each."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from splitlearn.errors import UserError
from splitlearn.seeds import torch_drawing_from
from splitlearn.segments.forward import ENDED, LONGEST, lengths_of
from splitlearn.tasks.classes import about_of, disagreement, given_classes, in_words
from splitlearn.tasks.classification import Classification
from splitlearn.tasks.language import hf, labelled, networks, tokens
from splitlearn.tasks.loading import limited, test_data
from splitlearn.tasks.task import ClientData, Metric

SHOWN = 16  # positions of the example that a network is cut with


class SequenceClassification(Classification):
    """Inputs are (B, T) int64 tokens, T those of the longest text of the batch, and -1 where a text has ended."""

    metrics: ClassVar = (Metric("top1", "accuracy"),)
    confusion_metrics: ClassVar = (Metric("f1", "F1"),)
    unit: ClassVar = "texts"
    more_about: ClassVar = {"vocab_size": "which tokens there are", "tokenizer": "of which tokenizer"}

    def check(self, cfg: DictConfig) -> None:
        if cfg.data.get("name") != labelled.NAME:
            raise UserError(
                f"data={cfg.data.get('name')} has no texts with labels: task=sequence_classification needs"
                f" data={labelled.NAME}"
            )
        if not 1 <= cfg.data.max_length <= LONGEST:
            raise UserError(f"data.max_length={cfg.data.max_length} must be a whole number, 1 to {LONGEST:,}")
        labelled.columns_of(cfg.data)
        super().check(cfg)

    # Data

    def load(self, cfg: DictConfig, client: int, num_clients: int) -> ClientData:
        tells = client == 0 or cfg.role is not None  # once on a screen
        parts = self._build(cfg, print if tells else lambda note: None)
        return self.labelled(*parts, client, num_clients, cfg)

    def load_test(self, cfg: DictConfig) -> ClientData:
        return test_data(*self._build(cfg), cfg)

    def _build(self, cfg: DictConfig, tell: Any = lambda note: None) -> tuple[Any, Any, dict[str, Any]]:
        tokenizer = tokens.tokenizer_from(cfg.data.tokenizer)
        train, test, classes = labelled.build(cfg.data, cfg.seed, tokenizer, tell)
        train = limited(train, cfg.data.max_train_samples, cfg.seed)
        test = limited(test, cfg.data.max_test_samples, cfg.seed)
        return train, test, about_of(classes) | tokens.about_of(tokenizer)

    def check_about(self, about: Any) -> None:
        super().check_about(about)
        tokens.check_about(about)

    def disagreement(self, one: dict[str, Any], other: dict[str, Any]) -> str | None:
        return tokens.disagreement(one, other) or disagreement(one, other)

    def default_about(self, cfg: DictConfig) -> dict[str, Any]:
        return about_of(given_classes(cfg.data) or range(2)) | tokens.default_about(cfg.data.tokenizer)

    def headline(self, cfg: DictConfig) -> tuple[str, str]:
        return networks.headline(cfg)

    def details(self, cfg: DictConfig, about: dict[str, Any]) -> str:
        number = about["num_classes"]
        return (
            f"{number} class{'es' * (number > 1)} ({in_words(about['classes'])}), {about['vocab_size']:,} different"
            f" tokens ({cfg.data.tokenizer}), up to {cfg.data.max_length} of a text"
        )

    # Network

    def example(self, cfg: DictConfig) -> Tensor:
        found = networks.example_of(min(SHOWN, cfg.data.max_length))
        found[1, max(1, found.shape[1] // 2) :] = ENDED
        return found

    def network(self, cfg: DictConfig, about: dict[str, Any]) -> nn.Module:
        with torch_drawing_from(cfg.seed):
            return networks.build(cfg.arch, about["vocab_size"], cfg.data.max_length, about["num_classes"])

    def pretrain(self, cfg: DictConfig, model: nn.Module, about: dict[str, Any]) -> list[str]:
        if cfg.arch.name != "hf" or not cfg.arch.model:
            return []
        with torch_drawing_from(cfg.seed):  # a head that starts afresh
            return hf.load(cfg.arch, model)

    def check_outputs(self, cfg: DictConfig, outputs: Tensor, about: dict[str, Any]) -> None:
        if tuple(outputs.shape) != (2, about["num_classes"]):
            found = "×".join(map(str, outputs.shape))
            raise UserError(f"arch {cfg.arch.name} gives a {found} tensor, where 2×{about['num_classes']} is needed")

    def cut_path(self, cfg: DictConfig, cut: str, model: nn.Module) -> str:
        example = self.example(cfg)
        return networks.cut_path(cut, model, example, self.lengths(example))

    def last_cut(self, model: nn.Module) -> str | None:
        return networks.last_cut(model)

    # A batch

    def longest(self, cfg: DictConfig) -> int | None:
        return cfg.data.max_length

    def lengths(self, inputs: Tensor) -> Tensor | None:
        return lengths_of(inputs)

    def to_device(self, batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        return inputs[:, : int(lengths_of(inputs).max())].to(device), targets.to(device)

    # What is measured

    def of_confusion(self, confusion: Tensor) -> dict[str, float]:
        """F1 of the second class, where there are two; else the mean over the classes that there are texts of."""
        right, taken, there = (one.double() for one in (confusion.diag(), confusion.sum(0), confusion.sum(1)))
        of_class = 2 * right / (taken + there).clamp(min=1)
        return {"f1": (of_class[1] if len(of_class) == 2 else of_class[there > 0].mean()).item()}
