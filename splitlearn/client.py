"""A client: holds data and the client segment, and trains it through the cut."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from splitlearn import data, models
from splitlearn.compressors import Identity, Payload
from splitlearn.config import compressor_from, evaluates, measures_error, shared
from splitlearn.errors import NonFiniteError, PeerError, Rejoin, Stopped, UserError
from splitlearn.functions import cut
from splitlearn.seeds import derive
from splitlearn.stopping import StopRequest
from splitlearn.training import (
    Trainable,
    buffers_of,
    gradients_of,
    load_buffers,
    load_state,
    relative_error,
    smash,
    state_of,
)
from splitlearn.transport import ServerProxy

LEFT = "left the run: the same command comes back to it"
LOOK_EVERY_S = 0.5  # how often a wait for an answer looks whether this client was asked to end
LEAVE_AFTER_S = 4.0  # how long it waits on then, and after that until its state is handed in


class SkippedStep(Exception):
    """Loss or gradient of a step is not finite, and the configuration says to go on without it."""


class Overdue(Exception):
    """This client was asked to end, and an answer that waits for others does not come."""


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
        self.uplink = compressor_from(cfg, "compressor")
        self.evaluation_uplink = self.uplink.for_evaluation() if cfg.evaluate.compressed else Identity()
        self.downlink = compressor_from(cfg, "downlink")
        self.seconds: Counter[str] = Counter()  # where time went since it was last reported
        self.is_in = False  # has joined
        self.stop = StopRequest()

    def run(self) -> float:
        """Trains and evaluates with the others; returns the run's last top-1 test accuracy, 0 to 1."""
        self.load_data()
        with self.stop:
            while True:
                try:
                    self.join()
                    self.train()
                    return self.server.call("goodbye")
                except Rejoin:
                    if self.wants_to_stop():
                        raise Stopped(LEFT, self.stop.asked_by) from None
                except Overdue as overdue:
                    raise Stopped(self.leave(*overdue.args), self.stop.asked_by) from None
                except PeerError as error:
                    if not self.wants_to_stop():
                        raise
                    raise Stopped(str(error), self.stop.asked_by) from None  # the others ended meanwhile

    def load_data(self) -> None:
        train, test, self.num_classes = data.build(self.cfg.data, self.cfg.seed)
        self.train_loader, self.test_loader = data.loaders(train, test, self.index, self.cfg.num_clients, self.cfg)

    def join(self) -> None:
        """Tells the server about this client, and gets the first weights, or the state to go on from."""
        self.is_in = False
        welcome = self.wait_for(
            self.server.call,
            "hello",
            {
                "config": shared(self.cfg),
                "num_classes": self.num_classes,
                "num_train": len(self.train_loader.dataset),
                "num_test": len(self.test_loader.dataset),
            },
        )
        segment, _, _ = models.build_segments(self.cfg, welcome["num_classes"])
        self.trainable = Trainable(segment.to(self.device), self.cfg)
        self.trainable.load(welcome["state"])
        self.num_steps = welcome["num_steps"]  # of all clients, in an epoch
        self.epoch, self.step_number = welcome["epoch"], welcome["step"]  # the current one; steps of it that are done
        self.batch = welcome["batch"]  # this client's batches of the epoch that are done
        self.trainable.skip_epochs(self.epoch - 1)
        self.is_in = True

    # Training

    def train(self) -> None:
        """What is left of the run."""
        while self.epoch <= self.cfg.epochs:
            self.train_epoch()
            if evaluates(self.cfg, self.epoch):
                self.evaluate()
            self.trainable.schedule.step()
            self.epoch, self.batch, self.step_number = self.epoch + 1, 0, 0

    def train_epoch(self) -> None:
        if not self.is_sequential:
            self.train_batches()
        elif self.batch < len(self.train_loader):
            if self.batch == 0:
                self.trainable.load(self.exchange_weights(None))
            self.train_batches()
            self.exchange_weights(self.trainable.state())
        self.share_weights()

    def train_batches(self) -> None:
        """What is left of the epoch."""
        self.trainable.segment.train()
        averages_steps = not self.is_sequential and self.cfg.topology.average == "step"
        self.train_loader.batch_sampler.start_at(self.epoch, self.batch)
        for batch in self.train_loader:
            self.obey(self.step(*data.to_device(batch, self.device), averages_steps))
            self.step_number += 1
        if averages_steps:  # keep in step with clients that have more samples
            for _ in range(self.step_number, self.num_steps):
                self.obey(self.take_mean_step(None))

    def step(self, images: Tensor, labels: Tensor, averages_steps: bool) -> str | None:
        """One step of the client segment on one batch; returns what the server wants next (see obey)."""
        started = time.perf_counter()
        elsewhere = self.seconds["codec"] + self.seconds["call"]
        self.begin_batch()
        may_be_undone = self.cfg.nonfinite == "skip" or self.cfg.membership.open
        buffers = buffers_of(self.trainable.segment) if may_be_undone else None
        self.trainable.optimizer.zero_grad()
        smashed = smash(self.trainable.segment, images, self.cfg)
        try:
            cut(smashed, labels, self).backward()
            takes_part = True
        except SkippedStep:
            takes_part = False
            load_buffers(self.trainable.segment, buffers)
        except Overdue:
            load_buffers(self.trainable.segment, buffers)
            raise
        if takes_part and not averages_steps:
            self.trainable.optimizer.step()
        elsewhere = self.seconds["codec"] + self.seconds["call"] - elsewhere
        self.seconds["client compute"] += time.perf_counter() - started - elsewhere
        if averages_steps:
            return self.take_mean_step(gradients_of(self.trainable.segment) if takes_part else None)
        return self.directive

    def begin_batch(self) -> None:
        """What is random in the next batch is drawn from streams of its own."""
        self.batch += 1
        stream = self.index, self.epoch, self.batch
        torch.manual_seed(derive(self.cfg.seed, "client", *stream))  # dropout
        self.uplink.seed(derive(self.cfg.seed, "uplink", *stream))

    def obey(self, directive: str | None) -> None:
        """Hands in this client's state where the server asks for it: to "save" it, before a "stop", or to "leave"."""
        if directive is not None:
            self.server.call("state", self.trainable.state(), False)
        if directive in ("stop", "leave"):
            raise Stopped("stopped with the run" if directive == "stop" else LEFT, self.stop.asked_by or signal.SIGTERM)

    def wait_for(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a call gives that may have to wait for other clients (see `result`)."""
        return self.result(in_background(function, *args)) if self.may_leave() else function(*args)

    def result(self, answer: Future) -> Any:
        """
        Raises:
            Overdue: this client was asked to end, and the run can go on without it.
        """
        waited_s = 0.0
        while waited_s < LEAVE_AFTER_S or not self.may_leave():
            if answer in wait([answer], LOOK_EVERY_S).done:
                return answer.result()
            waited_s += LOOK_EVERY_S if self.wants_to_stop() else 0
        raise Overdue(answer)

    def may_leave(self) -> bool:
        return self.cfg.membership.open or not self.is_in

    def leave(self, answer: Future) -> str:
        """Takes back the call whose answer is overdue, by handing in the state, if the server is there to take it.

        Returns what to tell the user.
        """
        if self.is_in:
            wait([answer, in_background(self.server.call, "state", self.trainable.state(), True)], LEAVE_AFTER_S)
        self.server.give_up()
        return LEFT if self.is_in else "stopped before it joined the run"

    # The client's end of the cut (see functions.Link)

    def forward(self, smashed: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Sends smashed data and labels; returns the loss, and what to gate the gradient by."""
        try:
            payload = self.encode(smashed)
        except NonFiniteError:
            *_, self.directive = self.wait_for(self.call, "step", None, None, None, self.wants_to_stop())
            raise SkippedStep from None
        self.sent = payload.shape, payload.dtype
        decoded, error = self.look_back(payload, smashed)
        loss, self.gradient_wire, self.directive = self.wait_for(
            self.call, "step", payload.tensor, compact(labels), error, self.wants_to_stop()
        )
        if self.gradient_wire is None:
            raise SkippedStep
        return smashed.new_tensor(loss, dtype=torch.float32), decoded

    def encode(self, smashed: Tensor) -> Payload:
        """
        Raises:
            NonFiniteError: with nonfinite=skip.
            UserError: else.
        """
        try:
            return self.timed("codec", self.uplink.encode, smashed)
        except NonFiniteError as error:
            if self.cfg.nonfinite == "skip":
                raise
            raise UserError(
                f"epoch {self.epoch}, batch {self.batch}: the smashed data are not finite ({error}): training"
                " diverged; lower optimizer.lr, or leave such batches out with nonfinite=skip"
            ) from None

    def look_back(self, payload: Payload, smashed: Tensor) -> tuple[Tensor | None, float | None]:
        """What to gate the gradient by, and the compression error; None each where it is not wanted."""
        is_gated, measures = self.cfg.backward == "gated", measures_error(self.cfg, self.batch)
        decoded = self.uplink.decode(payload, smashed.device) if is_gated or measures else None
        return decoded if is_gated else None, relative_error(decoded, smashed) if measures else None

    def wants_to_stop(self) -> bool:
        return self.stop.asked_by is not None

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

    def take_mean_step(self, gradients: list[Tensor] | None) -> str | None:
        """Steps with the mean of the clients' gradients (Eq. 2 of the MS paper); None where this one has none.

        Returns what the server wants next (see obey).
        """
        mean, directive = self.server.call("gradients", gradients)
        if mean is not None:
            for parameter, gradient in zip(self.trainable.segment.parameters(), mean, strict=True):
                parameter.grad = gradient.to(self.device)
            self.trainable.optimizer.step()
        return directive

    def share_weights(self) -> None:
        """At the end of an epoch: weights up, and what all evaluate and go on with down."""
        if self.is_sequential:
            if evaluates(self.cfg, self.epoch):
                self.trainable.load(self.exchange_weights(None))
            return
        if self.cfg.topology.average == "never":
            self.exchange_weights(state_of(self.trainable.segment) if self.epoch == self.cfg.epochs else None)
        else:
            load_state(self.trainable.segment, self.exchange_weights(state_of(self.trainable.segment)))
        self.obey(self.directive)

    def exchange_weights(self, state: Any) -> Any:
        seconds, self.seconds = dict(self.seconds), Counter()
        while True:
            weights, self.directive, is_answer = self.wait_for(self.server.call, "weights", state, seconds)
            if is_answer:
                return weights
            self.obey(self.directive)  # others are not as far, and this client's state is wanted meanwhile

    # Evaluation

    @torch.no_grad()
    def evaluate(self) -> None:
        self.trainable.segment.eval()
        sent = None
        for batch in self.test_loader:
            images, labels = data.to_device(batch, self.device)
            smashed = smash(self.trainable.segment, images, self.cfg)
            try:
                payload = self.evaluation_uplink.encode(smashed)
            except NonFiniteError as error:
                raise UserError(
                    f"evaluation after epoch {self.epoch}: the smashed data are not finite ({error}): training"
                    " diverged; lower optimizer.lr"
                ) from None
            if sent:
                self.result(sent)
            sent = in_background(self.server.call, "evaluate", payload.tensor, compact(labels))
        if sent:
            self.result(sent)


def in_background(function: Callable[..., Any], *args: Any) -> Future:
    """Calls a function in a thread that does not keep the process alive; the future has its result or exception."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def compact(labels: Tensor) -> Tensor:
    """Labels in the smallest integer type that holds them, on the CPU."""
    largest = int(labels.max())
    dtype = torch.uint8 if largest < 1 << 8 else torch.int16 if largest < 1 << 15 else torch.int32
    return labels.to("cpu", dtype)
