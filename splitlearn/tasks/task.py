"""What a task has to say to be trained through a cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from splitlearn.tasks.metric import Metric
from splitlearn.tasks.origin import Origin

NAMED_CUTS = {"shallow": 0.25, "medium": 0.5, "deep": 0.75}  # how far along the valid cuts, where an arch names none


@dataclass(frozen=True)
class ClientData:
    """What one client trains and is tested on.

    Attributes:
        train, test: give batches as `Task.to_device` takes them; `batch_sampler.start_at(epoch, batch)` says where the
            next iteration begins. For delta, `samples_of` and `num_samples` of it say which they are of how many.
        about: what the network must know of the data, and the server is told.
        num_train, num_test: samples, for training those of an epoch.
        origin: the data set that they are of; None where clients' data need not be compared.
    """

    train: DataLoader
    test: DataLoader
    about: dict[str, Any]
    num_train: int
    num_test: int
    origin: Origin | None = None

    @property
    def num_numbered(self) -> int:
        """Training samples that are told apart by numbers, of which an epoch may have fewer; 0 where they are not."""
        sampler = getattr(self.train, "batch_sampler", None)
        return sampler.num_samples if hasattr(sampler, "samples_of") else 0


class Task(ABC):
    """Data, network, loss and metrics of what is learned. Client and server each have one of their own.

        client   load ─ to_device ┬─ inputs ─ client segment ~~~ server segment ─ outputs ┬─ loss, score
                                  └─ targets ─ pack ~~~~ check_targets ─ unpack ─ targets ┘

    Attributes:
        metrics: all that `score` gives besides the loss. The first is what "better" means and what a run returns.
        train_metrics: names of those that are measured in every training step.
        confusion_metrics: what `of_confusion` gives of test samples, where the server knows what they are.
        unit: what people count when they ask how fast it is, such as images.
        revealed: what to tell the user of an exchange that sends the targets to the server; "": nothing.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    train_metrics: ClassVar[tuple[str, ...]]
    confusion_metrics: ClassVar[tuple[Metric, ...]] = ()
    unit: ClassVar[str] = "samples"
    revealed: ClassVar[str] = ""

    def check(self, cfg: DictConfig) -> None:
        """Raises UserError for what can be seen to be wrong with its options before anything is started."""

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

    def load_test(self, cfg: DictConfig) -> ClientData:
        """The server's own test data, for evaluate.on=server: what `load` gives where nothing is shared out."""
        # To `load` it is a client's, since clients have no test samples where the server has its own.
        return self.load(OmegaConf.merge(cfg, {"evaluate": {"on": "clients"}}), 0, 1)

    @abstractmethod
    def check_about(self, about: Any) -> None:
        """Looks at what a client says that its data are like, before anything is built for them.

        Raises:
            ValueError: it is nothing that `load` gives; says what is wrong.
        """

    @abstractmethod
    def disagreement(self, one: dict[str, Any], other: dict[str, Any]) -> str | None:
        """How the data of two clients, by their `about`, do not fit together, in words; None if they fit."""

    def together(self, abouts: list[dict[str, Any]]) -> dict[str, Any]:
        """What the data of all clients are like, by the `about` of each; that of the first, where they agree in all."""
        return abouts[0]

    def tested(self, about: dict[str, Any], abouts: list[dict[str, Any]]) -> dict[str, Any]:
        """What data are like, where all that is evaluated is like these: `about`, as far as that does not matter."""
        return about

    def know(self, about: dict[str, Any]) -> None:
        """The data are agreed on: called at each end, before the first batch.

        Raises:
            UserError: the task's options do not fit them.
        """

    @abstractmethod
    def default_about(self, cfg: DictConfig) -> dict[str, Any]:
        """What the data are like as far as the configuration says, where none are loaded."""

    counted: tuple[str, ...] = ()  # keys of what the data are like that only they say

    def headline(self, cfg: DictConfig) -> tuple[str, str]:
        """What people call the network and the data."""
        return cfg.arch.name, cfg.data.name

    def details(self, cfg: DictConfig, about: dict[str, Any]) -> str:
        """What people should see of the data at the start of a run, to find a mistake in them."""
        return ""

    # Network

    @abstractmethod
    def example(self, cfg: DictConfig) -> Tensor:
        """A batch of two inputs, on the CPU, as `to_device` gives them: to trace the network with."""

    @abstractmethod
    def network(self, cfg: DictConfig, about: dict[str, Any]) -> nn.Module:
        """The network for such data, on the CPU, its weights drawn from the run's seed and no other generator."""

    def pretrain(self, cfg: DictConfig, model: nn.Module, about: dict[str, int]) -> list[str]:
        """Loads pretrained weights into a network of `network`, if the configuration names any; the server alone does.

        Returns what the user should know of it.

        Raises:
            UserError: they are not there, or do not fit.
        """
        return []

    def check_outputs(self, cfg: DictConfig, outputs: Tensor, about: dict[str, int]) -> None:
        """Looks at what the network gives for the example, with data that are known.

        Raises:
            UserError: it does not go with them.
        """

    @abstractmethod
    def cut_path(self, cfg: DictConfig, cut: str, model: nn.Module) -> str:
        """The path of the module that `cut` (shallow, medium, deep, or a path already) stands for in this network."""

    def last_cut(self, model: nn.Module) -> str | None:
        """The path of the module after which cut_back=last returns to the client; None: the last that can be cut."""
        return None

    # A batch

    def longest(self, cfg: DictConfig) -> int | None:
        """Positions of the longest sample, where samples differ in length; None where all are of one shape.

        Inputs are then (B, T) int64 tokens, T those of the longest of the batch, and -1 where a sample has ended. Of a
        map with a row for each position, only the rows that a sample has cross the cut.
        """

    def lengths(self, inputs: Tensor) -> Tensor | None:
        """(B,) int64: positions of each sample, where samples differ in length; None where all are of one shape."""

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
    def check_targets(self, packed: Any, about: dict[str, Any], max_samples: int) -> None:
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

    def units(self, num_samples: int) -> int:
        """How many of what `unit` says are in so many samples."""
        return num_samples

    # What is optimised and measured

    @property
    def evaluated(self) -> tuple[str, ...]:
        """What `score` gives for test samples."""
        return ("loss", *(metric.name for metric in self.metrics))

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What training lowers, a mean over the samples of a batch: 0-d float32, whatever the dtype of the outputs."""

    @abstractmethod
    def score(self, outputs: Tensor, targets: Tensor, names: Iterable[str]) -> dict[str, float]:
        """Sums over the samples of a batch, of the metrics of these names, and of "loss" where it is one of them.

        That loss is the test samples', without what the options of the task add to the loss in training.
        """

    def means(self, sums: Mapping[str, float], num_samples: int) -> dict[str, float]:
        """Loss and metrics over so many samples, from their sums over them."""
        of_mean = {metric.name: metric.of_mean for metric in self.metrics}
        return {name: of_mean.get(name, float)(total / num_samples) for name, total in sums.items()}

    def demonstrate(self, cfg: DictConfig, model: Callable[[], nn.Module]) -> str:
        """What people should see of the trained network, which `model` gives whole, at the end; "": nothing."""
        return ""

    def told_apart(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """What each sample is, and what the outputs take it for: classes, (B, 2) int64; None where there are none."""
        return None

    def of_confusion(self, confusion: Tensor) -> dict[str, float]:
        """The values of `confusion_metrics`, by how many test samples of each class (row) were taken for each."""
        return {}

    def class_names(self, about: dict[str, Any]) -> list[str]:
        """Of the classes that `told_apart` gives, in order."""
        return []
