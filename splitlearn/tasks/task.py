"""What a task has to say to be trained through a cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

NAMED_CUTS = {"shallow": 0.25, "medium": 0.5, "deep": 0.75}  # how far along the valid cuts, where an arch names none


@dataclass(frozen=True)
class Metric:
    """Something that is measured besides the loss, as a mean over the samples.

    Attributes:
        name: in files and in `Task.score`, such as "top1".
        title: for people, such as "accuracy".
        higher_is_better: which way is better.
        is_share: from 0 to 1, and shown as a percentage.
    """

    name: str
    title: str
    higher_is_better: bool = True
    is_share: bool = True

    def form(self, value: float) -> str:
        """A value for people."""
        return f"{value:.2%}" if self.is_share else f"{value:.4f}"

    def is_better(self, one: float, other: float) -> bool:
        return one > other if self.higher_is_better else one < other


@dataclass(frozen=True)
class ClientData:
    """What one client trains and is tested on.

    Attributes:
        train, test: give batches as `Task.to_device` takes them; `batch_sampler.start_at(epoch, batch)` says where the
            next iteration begins.
        about: what the network must know of the data, and the server is told.
        num_train, num_test: samples.
    """

    train: DataLoader
    test: DataLoader
    about: dict[str, int]
    num_train: int
    num_test: int


class Task(ABC):
    """Data, network, loss and metrics of what is learned. It has no state: client and server each have their own.

        client   load ─ to_device ┬─ inputs ─ client segment ~~~ server segment ─ outputs ┬─ loss, score
                                  └─ targets ─ pack ~~~~ check_targets ─ unpack ─ targets ┘

    Attributes:
        metrics: all that `score` gives besides the loss. The first is what "better" means and what a run returns.
        train_metrics: names of those that are measured in every training step.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    train_metrics: ClassVar[tuple[str, ...]]

    # Data

    @abstractmethod
    def load(self, cfg: DictConfig, client: int, num_clients: int) -> ClientData:
        """One client's part of the data.

        Args:
            cfg: the run's configuration.
            client: which, 0 to num_clients-1.
            num_clients: that the data are shared out over.

        Raises:
            UserError: the data cannot be read, or not be shared out like this.
        """

    @abstractmethod
    def check_about(self, about: Any) -> None:
        """Looks at what a client says that its data are like, before anything is built for them.

        Raises:
            ValueError: it is nothing that `load` gives; says what is wrong.
        """

    @abstractmethod
    def disagreement(self, one: dict[str, int], other: dict[str, int]) -> str | None:
        """How the data of two clients, by their `about`, do not fit together, in words; None if they fit."""

    @abstractmethod
    def default_about(self, cfg: DictConfig) -> dict[str, int]:
        """What the data are like as far as the configuration says, where none are loaded."""

    def headline(self, cfg: DictConfig) -> tuple[str, str]:
        """What people call the network and the data."""
        return cfg.arch.name, cfg.data.name

    # Network

    @abstractmethod
    def example(self, cfg: DictConfig) -> Tensor:
        """A batch of two inputs, on the CPU, as `to_device` gives them: to trace the network with."""

    @abstractmethod
    def network(self, cfg: DictConfig, about: dict[str, int]) -> nn.Module:
        """The network for such data, on the CPU, its weights drawn from the run's seed and no other generator."""

    def pretrain(self, cfg: DictConfig, model: nn.Module, about: dict[str, int]) -> list[str]:
        """Loads pretrained weights into a network of `network`, if the configuration names any; the server alone does.

        Returns what the user should know of it.

        Raises:
            UserError: they are not there, or do not fit.
        """
        return []

    def check_outputs(self, cfg: DictConfig, outputs: Tensor, about: dict[str, int]) -> None:  # noqa: B027
        """Looks at what the network gives for the example, with data that are known.

        Raises:
            UserError: it does not go with them.
        """

    @abstractmethod
    def cut_path(self, cfg: DictConfig, cut: str, model: nn.Module) -> str:
        """The path of the module that `cut` (shallow, medium, deep, or a path already) stands for in this network."""

    # A batch

    def to_device(self, batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a batch as the loader gives it, on the device; the samples are the first dimension."""
        inputs, targets = batch
        return inputs.to(device), targets.to(device)

    @abstractmethod
    def pack(self, targets: Tensor) -> Tensor:
        """Targets as they are sent: in the smallest integer dtype that holds them, on the CPU."""

    def unpack(self, packed: Tensor, device: torch.device) -> Tensor:
        """What was packed, as int64 on the device."""
        return packed.to(device).long()

    @abstractmethod
    def check_targets(self, packed: Any, about: dict[str, int], max_samples: int) -> None:
        """Looks at what a client sent as its packed targets.

        Args:
            packed: whatever it sent.
            about: the data, as agreed.
            max_samples: that a batch may have.

        Raises:
            ValueError: it is nothing that `pack` gives for such data; says what is wrong.
        """

    def num_samples(self, targets: Tensor) -> int:
        """How many samples these targets, packed or not, are of."""
        return len(targets)

    # What is optimised and measured

    @property
    def evaluated(self) -> tuple[str, ...]:
        """What `score` gives for test samples."""
        return ("loss", *(metric.name for metric in self.metrics))

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over the samples of a batch: 0-d float32, whatever the dtype of the outputs."""

    @abstractmethod
    def score(self, outputs: Tensor, targets: Tensor, names: Iterable[str]) -> dict[str, float]:
        """Sums over the samples of a batch, of the metrics of these names, and of "loss" where it is one of them."""
