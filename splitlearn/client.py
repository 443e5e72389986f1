"""A client: holds data and the client segment, and trains it through the cut."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from splitlearn import data, models
from splitlearn.compressors import Identity, Payload
from splitlearn.config import compressor_from, evaluates, measures_error, shared
from splitlearn.errors import NonFiniteError, UserError
from splitlearn.functions import cut
from splitlearn.seeds import derive
from splitlearn.training import Trainable, autocast, gradients_of, load_state, relative_error, state_of
from splitlearn.transport import ServerProxy


class Client:
    """One of a run's clients.

    Args:
        cfg: the run's configuration, with num_clients set.
        index: which client this is, 0 to num_clients-1.
        device: of the client segment.
        server: takes this client's calls.
    """

    def __init__(self, cfg: DictConfig, index: int, device: torch.device, server: ServerProxy):
        self.cfg, self.index, self.device, self.server = cfg, index, device, server
        self.is_sequential = cfg.topology.name == "sequential"
        self.uplink = compressor_from(cfg, "compressor", "uplink", index)
        self.evaluation_uplink = self.uplink.for_evaluation() if cfg.evaluate.compressed else Identity()
        self.downlink = compressor_from(cfg, "downlink")
        self.seconds: Counter[str] = Counter()  # where time went since it was last reported
        self.epoch = self.num_steps_done = 0

    def run(self) -> float:
        """Trains and evaluates with the others; returns the run's last top-1 test accuracy, 0 to 1."""
        self.join()
        while self.epoch < self.cfg.epochs:
            self.epoch += 1
            self.train_epoch()
            if evaluates(self.cfg, self.epoch):
                self.evaluate()
            self.trainable.schedule.step()
        return self.server.call("goodbye")

    def join(self) -> None:
        """Tells the server about this client, and gets the first weights."""
        train, test, num_classes = data.build(self.cfg.data, self.cfg.seed)
        self.train_loader, self.test_loader = data.loaders(train, test, self.index, self.cfg.num_clients, self.cfg)
        welcome = self.server.call(
            "hello",
            {
                "config": shared(self.cfg),
                "num_classes": num_classes,
                "num_train": len(self.train_loader.dataset),
                "num_test": len(self.test_loader.dataset),
            },
        )
        segment, _, _ = models.build_segments(self.cfg, welcome["num_classes"])
        self.trainable = Trainable(segment.to(self.device), self.cfg)
        load_state(segment, welcome["weights"])
        self.num_steps = welcome["num_steps"]
        torch.manual_seed(derive(self.cfg.seed, "client", self.index))  # dropout and augmentation

    # Training

    def train_epoch(self) -> None:
        if self.is_sequential:
            self.trainable.load(self.exchange_weights(None))
        self.trainable.segment.train()
        averages_steps = not self.is_sequential and self.cfg.topology.average == "step"
        for batch in self.train_loader:
            self.step(*data.to_device(batch, self.device), averages_steps)
        if averages_steps:  # keep in step with clients that have more samples
            for _ in range(self.num_steps - len(self.train_loader)):
                self.take_mean_step(None)
        self.share_weights()

    def step(self, images: Tensor, labels: Tensor, averages_steps: bool) -> None:
        """One step of the client segment on one batch."""
        self.num_steps_done += 1
        started = time.perf_counter()
        elsewhere = self.seconds["codec"] + self.seconds["call"]
        with autocast(self.cfg, self.device):
            smashed = self.trainable.segment(images)
        self.trainable.optimizer.zero_grad()
        try:
            loss = cut(smashed, labels, self)
        except NonFiniteError as error:
            raise UserError(
                f"epoch {self.epoch}, step {self.num_steps_done}: the smashed data are not finite ({error}): training"
                " diverged; lower optimizer.lr"
            ) from None
        loss.backward()
        if not averages_steps:
            self.trainable.optimizer.step()
        elsewhere = self.seconds["codec"] + self.seconds["call"] - elsewhere
        self.seconds["client compute"] += time.perf_counter() - started - elsewhere
        if averages_steps:
            self.take_mean_step(gradients_of(self.trainable.segment))

    # The client's end of the cut (see functions.Link)

    def forward(self, smashed: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Sends smashed data and labels; returns the loss, and what to gate the gradient by."""
        payload = self.timed("codec", self.uplink.encode, smashed)
        self.sent = payload.shape, payload.dtype
        is_gated = self.cfg.backward == "gated"
        measures = measures_error(self.cfg, self.num_steps_done)
        decoded = self.uplink.decode(payload, smashed.device) if is_gated or measures else None
        error = relative_error(decoded, smashed) if measures else None
        loss, self.gradient_wire = self.call("step", payload.tensor, compact(labels), error)
        return smashed.new_tensor(loss, dtype=torch.float32), decoded if is_gated else None

    def backward(self) -> Tensor:
        """The cut gradient of the last forward."""
        return self.timed("codec", self.downlink.decode, Payload.parse(self.gradient_wire), self.device, self.sent)

    def call(self, kind: str, *body: Any) -> tuple:
        """A call whose answer ends with the seconds that it waited at and took the server."""
        started = time.perf_counter()
        *answer, waiting, computing = self.server.call(kind, *body)
        taken = time.perf_counter() - started
        self.seconds.update({"call": taken, "waiting": waiting, "network": taken - waiting - computing})
        return tuple(answer)

    def timed(self, what: str, function, *args) -> Any:
        started = time.perf_counter()
        result = function(*args)
        self.seconds[what] += time.perf_counter() - started
        return result

    # Client segments

    def take_mean_step(self, gradients: list[Tensor] | None) -> None:
        """Steps with the mean of the clients' gradients (Eq. 2 of the MS paper); None where this one has none."""
        mean = self.server.call("gradients", gradients)
        for parameter, gradient in zip(self.trainable.segment.parameters(), mean, strict=True):
            parameter.grad = gradient.to(self.device)
        self.trainable.optimizer.step()

    def share_weights(self) -> None:
        """At the end of an epoch: weights up, and what all evaluate and go on with down."""
        if self.is_sequential:
            self.exchange_weights(self.trainable.state())
            if evaluates(self.cfg, self.epoch):
                self.trainable.load(self.exchange_weights(None))
        elif self.cfg.topology.average == "never":
            self.exchange_weights(state_of(self.trainable.segment) if self.epoch == self.cfg.epochs else None)
        else:
            load_state(self.trainable.segment, self.exchange_weights(state_of(self.trainable.segment)))

    def exchange_weights(self, state: Any) -> Any:
        seconds, self.seconds = dict(self.seconds), Counter()
        return self.server.call("weights", state, seconds)

    # Evaluation

    @torch.no_grad()
    def evaluate(self) -> None:
        self.trainable.segment.eval()
        for batch in self.test_loader:
            images, labels = data.to_device(batch, self.device)
            with autocast(self.cfg, self.device):
                smashed = self.trainable.segment(images)
            self.server.call("evaluate", self.evaluation_uplink.encode(smashed).tensor, compact(labels))


def compact(labels: Tensor) -> Tensor:
    """Labels in the smallest integer type that holds them, on the CPU."""
    largest = int(labels.max())
    dtype = torch.uint8 if largest < 1 << 8 else torch.int16 if largest < 1 << 15 else torch.int32
    return labels.to("cpu", dtype)
