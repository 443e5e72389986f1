"""The server: holds the server segment and trains it on what the clients send.

It runs on the main thread from top to bottom and takes each client's request from the inbox when it is due, always in
the clients' order, so that sums of floats do not depend on who was faster. In one step (Eq. 1 and 2 of the MS paper)
it answers every client with the gradient of that client's own loss, and steps with the mean over the clients.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from splitlearn import models
from splitlearn.agreement import Agreement
from splitlearn.checkpoints import Checkpoints
from splitlearn.compressors import Compressor, Identity, Payload
from splitlearn.config import compressor_from, differences, evaluates, measures_error, shared
from splitlearn.errors import NonFiniteError, PayloadError, PeerError, Stopped, UserError
from splitlearn.metrics import Recorder
from splitlearn.seeds import derive
from splitlearn.stopping import StopRequest
from splitlearn.training import (
    Trainable,
    Trial,
    autocast,
    average_states,
    nbytes_of,
    relative_error,
    state_of,
)
from splitlearn.transport import Inbox, Request


class Server:
    """One run's server.

    Args:
        cfg: the run's configuration, with num_clients set.
        device: of the server segment.
        recorder: where measurements go.
        checkpoints: where the run's state goes, and comes from where a run goes on.
    """

    def __init__(self, cfg: DictConfig, device: torch.device, recorder: Recorder, checkpoints: Checkpoints):
        self.cfg, self.device, self.recorder, self.checkpoints = cfg, device, recorder, checkpoints
        self.inbox = Inbox(cfg.num_clients, cfg.rpc.timeout_s)
        self.agreement = Agreement(cfg)
        self.clients = range(cfg.num_clients)
        self.is_sequential = cfg.topology.name == "sequential"
        self.uplink = compressor_from(cfg, "compressor")
        self.evaluation_uplink = self.uplink.for_evaluation() if cfg.evaluate.compressed else Identity()
        self.downlink = compressor_from(cfg, "downlink")
        self.traffic: Counter[str] = Counter()  # bytes of an epoch, by what they are
        self.seconds: Counter[str] = Counter()  # of an epoch
        self.epoch = 1  # the current one
        self.epoch_step = 0  # steps of it that are done
        self.step_number = 0  # of the run
        self.num_classes: int | None = None  # as the clients' data have
        self.undoes_nonfinite = cfg.nonfinite == "skip"  # what a batch has done that is not finite
        self.stop = StopRequest()

    def run(self) -> float:
        """Trains and evaluates; returns the last top-1 test accuracy, 0 to 1.

        Raises:
            Stopped: it was asked to, and has a checkpoint to go on from.
        """
        self.meet_clients(self.find_checkpoint())
        self.recorder.start(self.num_steps)
        with self.stop:
            while self.epoch <= self.cfg.epochs:
                self.train_epoch()
                if evaluates(self.cfg, self.epoch):
                    self.evaluate()
                self.trainable.schedule.step()
                self.recorder.end_epoch(self.epoch, self.traffic, self.seconds)
                self.traffic, self.seconds = Counter(), Counter()
                self.epoch, self.epoch_step = self.epoch + 1, 0
                if self.saves_epoch(self.epoch - 1):
                    self.save(self.epoch_states)
            self.checkpoints.wait()
            self.say_goodbye()
        return self.recorder.final_top1

    # Meeting and parting

    def meet_clients(self, checkpoint: dict[str, Any] | None) -> None:
        """Hears what every client has, builds the network from it, and gives all the same first client segment."""
        hellos = self.inbox.meet(self.cfg.rpc.connect_timeout_s)
        for client, hello in enumerate(hellos):
            self.agreement.check(client, "hello", hello.body)
            difference = differences(shared(self.cfg), hello.body[0]["config"], "server", "client")
            if difference:
                raise UserError(f"the server and client {client} are configured differently: {difference}")
        about = [hello.body[0] for hello in hellos]
        num_classes = about[0]["num_classes"]
        if any(other["num_classes"] != num_classes for other in about):
            raise UserError(f"the clients' data have {[other['num_classes'] for other in about]} classes")
        self.num_train = [other["num_train"] for other in about]
        self.num_batches = [self.num_batches_of(num) for num in self.num_train]
        self.num_test_batches = [self.num_batches_of(other["num_test"]) for other in about]
        # Steps of an epoch: the longest client's in parallel, one client after the other's in sequence.
        self.num_steps = sum(self.num_batches) if self.is_sequential else max(self.num_batches)

        self.build(num_classes)
        first_states = self.client_states * self.cfg.num_clients
        if checkpoint:
            self.restore(checkpoint)
            first_states = self.restore_clients(checkpoint["clients"])
        self.recorder.describe(self.cut, num_classes, num_samples=sum(self.num_train))
        if checkpoint:
            self.recorder.resumed(self.epoch)
        for client, hello in enumerate(hellos):
            hello.reply(
                {
                    "num_classes": num_classes,
                    "num_steps": self.num_steps,
                    "epoch": self.epoch,
                    "step": self.epoch_step,
                    "batch": self.batches_done(client),
                    "state": first_states[client],
                }
            )

    def build(self, num_classes: int) -> None:
        """Builds the network and cuts it."""
        client_segment, segment, self.cut = models.build_segments(self.cfg, num_classes)
        self.num_classes = num_classes
        self.agreement.know(client_segment, self.cut, num_classes)
        self.trainable = Trainable(segment.to(self.device), self.cfg)
        # As averaged or handed on last: one, or without averaging each client's.
        self.client_states: list[Any] = [state_of(client_segment)]

    def num_batches_of(self, num_samples: int) -> int:
        return -(-num_samples // self.cfg.batch_size)

    def batches_done(self, client: int) -> int:
        """How many batches of the epoch a client has trained on."""
        before = sum(self.num_batches[:client]) if self.is_sequential else 0
        return min(max(self.epoch_step - before, 0), self.num_batches[client])

    def say_goodbye(self) -> None:
        self.finish()
        for client in self.clients:
            self.take(client, "goodbye").reply(self.recorder.final_top1)

    def take(self, client: int, kind: str, holds: str | None = None) -> Request:
        """The client's next request, which must be of this kind and hold what was agreed (see Agreement.check)."""
        request = self.inbox.take(client, kind)
        self.agreement.check(client, kind, request.body, holds)
        return request

    def finish(self) -> None:
        """Writes the weights and the summary."""
        for index, state in enumerate(self.client_states):
            suffix = f"_{index}" if len(self.client_states) > 1 else ""
            self.recorder.save(f"client_segment{suffix}.pt", state.get("segment", state))
        self.recorder.save("server_segment.pt", state_of(self.trainable.segment))
        self.recorder.finish()

    # Checkpoints

    def find_checkpoint(self) -> dict[str, Any] | None:
        """The state of the run in this folder, to go on from, if it is wanted and there is one; opens the recorder."""
        checkpoint = None if self.cfg.resume == "never" else self.checkpoints.latest()
        if checkpoint is None:
            self.checkpoints.clear()
        elif difference := differences(checkpoint["config"], shared(self.cfg), "then", "now"):
            raise UserError(
                f"{self.recorder.folder} holds a run that was configured differently: {difference}; go on as it was,"
                " choose another folder with hydra.run.dir, or start over in it with resume=never"
            )
        self.recorder.open(checkpoint and checkpoint["recorder"])
        return checkpoint

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Takes over a checkpoint's place in the run and server segment."""
        self.epoch, self.epoch_step, self.step_number = (checkpoint[key] for key in ("epoch", "epoch_step", "step"))
        self.traffic, self.seconds = Counter(checkpoint["traffic"]), Counter(checkpoint["seconds"])
        self.trainable.load(checkpoint["server"])
        self.trainable.skip_epochs(self.epoch - 1)

    def restore_clients(self, states: list[Any]) -> list[Any]:
        """Takes over a checkpoint's client states; returns each client's."""
        self.client_states = states if self.cfg.topology.get("average") == "never" else states[:1]
        return states if len(states) > 1 else states * self.cfg.num_clients

    def saves_epoch(self, epoch: int) -> bool:
        every = self.cfg.checkpoint
        if epoch == self.cfg.epochs:
            return bool(every.every_epochs or every.every_steps)
        return bool(every.every_epochs) and epoch % every.every_epochs == 0

    def directive(self) -> str | None:
        """What is asked of the clients after the current step: their state, to "save" it or before a "stop"."""
        if self.stop.asked_by is not None:
            return "stop"
        every = self.cfg.checkpoint.every_steps
        return "save" if every and self.step_number % every == 0 else None

    def hear_states(self, told: Iterable[int], directive: str) -> list[Any]:
        """The clients' states, or in sequence that of the one whose turn it is, after `told` were told to send them.

        The others wait at the end of their epoch, and are told there.
        """
        others = [client for client in self.clients if client not in told]
        if self.is_sequential and directive == "save":
            others = []
        for client in others:
            self.inbox.take(client, "weights").reply((None, directive, False))
        states = []
        for client in sorted([*told, *others]):
            request = self.take(client, "state")
            states.append(request.body[0])
            request.reply()
        return [states[told[0]] if others else states[0]] if self.is_sequential else states

    def save(self, states: list[Any]) -> None:
        """Writes a checkpoint of the run as it is now, with the clients' states: one for all, or each one's."""
        self.checkpoints.save(
            self.step_number,
            {
                "config": shared(self.cfg),
                "epoch": self.epoch,
                "epoch_step": self.epoch_step,
                "step": self.step_number,
                "num_classes": self.num_classes,
                "server": self.trainable.state(),
                "clients": states,
                "traffic": dict(self.traffic),
                "seconds": dict(self.seconds),
                "recorder": self.recorder.state(),
            },
        )

    def end_early(self) -> NoReturn:
        """Ends a run that was asked to end and is saved."""
        self.checkpoints.wait()
        raise Stopped(
            f"stopped in epoch {self.epoch} after step {self.step_number}, with a checkpoint: go on with"
            f" resume={self.recorder.folder}",
            self.stop.asked_by,
        )

    # Training

    def train_epoch(self) -> None:
        """What is left of the epoch."""
        self.trainable.segment.train()
        if self.is_sequential:
            for client in self.clients:
                first = self.batches_done(client)
                if first == self.num_batches[client]:
                    continue
                if first == 0:
                    self.hand_over(client)
                for _ in range(first, self.num_batches[client]):
                    self.step([client])
                self.take_back(client)
            self.epoch_states = self.client_states
            if evaluates(self.cfg, self.epoch):
                for client in self.clients:
                    self.hand_over(client)  # all evaluate with the newest
        else:
            for batch in range(self.epoch_step, self.num_steps):
                self.step([client for client in self.clients if batch < self.num_batches[client]])
            self.average_weights()

    def step(self, participants: list[int]) -> None:
        """One step of all segments on a batch of each participant."""
        self.step_number += 1
        self.epoch_step += 1
        directive = self.directive()
        averages_steps = not self.is_sequential and self.cfg.topology.average == "step"
        self.trainable.optimizer.zero_grad()
        measured = [self.learn_from(client, None if averages_steps else directive) for client in participants]
        measured = [one for one in measured if one is not None]
        if len(measured) > 1:
            for parameter in self.trainable.segment.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(len(measured))
        if measured:
            self.trainable.optimizer.step()
        if averages_steps:
            self.average_gradients(directive)
        self.recorder.step(self.epoch, self.step_number, measured, self.trainable.learning_rate)
        if directive:
            states = self.hear_states(self.clients if averages_steps else participants, directive)
            self.save(states)
            if self.is_sequential:
                self.client_states = states
        if directive == "stop":
            self.end_early()

    def learn_from(self, client: int, directive: str | None) -> dict[str, float] | None:
        """Adds the gradient of one client's loss to the server segment's and answers with that at the cut.

        Returns what was measured; None if the client's part is left out, because it is not finite.
        """
        request = self.take(client, "step")
        started = time.perf_counter()
        wire, labels, uplink_error, wants_to_stop = request.body
        if wants_to_stop:
            self.let_go(client)
        if wire is None:
            return self.skip(request, started, directive)
        smashed, labels = self.receive(client, wire, labels, self.uplink, "smashed_up")
        smashed.requires_grad_()
        torch.manual_seed(derive(self.cfg.seed, "server", self.step_number, client))  # dropout
        trial = Trial(self.trainable.segment) if self.undoes_nonfinite else None
        try:
            with autocast(self.cfg, self.device):
                logits = self.trainable.segment(smashed)
                loss = F.cross_entropy(logits.float(), labels)
            if trial and not loss.isfinite():
                raise NonFiniteError(f"its loss is {loss.item()}")
            loss.backward()
            self.downlink.seed(derive(self.cfg.seed, "downlink", client, self.step_number))
            gradient = self.downlink.encode(smashed.grad)
            if trial:
                trial.keep()
        except NonFiniteError as error:
            if trial:
                trial.undo()
            if self.cfg.nonfinite == "skip":
                return self.skip(request, started, directive)
            raise self.diverged(client, error) from None
        self.traffic["gradient_down"] += gradient.nbytes
        measured = {
            "client": client,
            "num_samples": len(labels),
            "loss": loss.item(),
            "top1": num_correct(logits, labels, 1) / len(labels),
            "uplink_bytes": wire.numel(),
            "downlink_bytes": gradient.nbytes,
            "uplink_raw_bytes": smashed.nbytes,
            "uplink_formula_bits": self.uplink.formula_bits(smashed.shape, 8 * smashed.element_size()),
            "downlink_formula_bits": self.downlink.formula_bits(smashed.shape, 8 * smashed.element_size()),
            "uplink_error": uplink_error,
        }
        if measures_error(self.cfg, self.step_number):
            decoded = self.downlink.decode(gradient, self.device)
            measured["downlink_error"] = relative_error(decoded, smashed.grad)
        self.answer(request, started, (measured["loss"], gradient.tensor, directive))
        return measured

    def diverged(self, client: int, error: NonFiniteError) -> UserError:
        return UserError(
            f"step {self.step_number}: the cut gradient for client {client} is not finite ({error}): training"
            " diverged; lower optimizer.lr, or leave out batches whose loss is not finite with nonfinite=skip"
        )

    def let_go(self, client: int) -> None:
        """A client was asked to end."""
        self.stop.request()  # nobody goes on without it

    def skip(self, request: Request, started: float, directive: str | None) -> None:
        self.recorder.skipped()
        self.answer(request, started, (None, None, directive))

    def receive(
        self, client: int, wire: Tensor, labels: Tensor, uplink: Compressor, kind: str
    ) -> tuple[Tensor, Tensor]:
        """Decodes what a client sent. There are at most batch_size labels, which limits what is allocated."""
        self.traffic[kind] += wire.numel()
        self.traffic["labels_up"] += labels.nbytes
        try:
            payload = Payload.parse(wire)
            expected = torch.Size((len(labels), *self.cut.shape)), self.agreement.dtype_of(payload)
            smashed = uplink.decode(payload, self.device, expected)
        except PayloadError as error:
            raise PeerError(f"client {client} sent a payload that {error}") from None
        return smashed, labels.to(self.device).long()

    def answer(self, request: Request, started: float, value: tuple) -> None:
        """Replies, with the seconds that the request waited here and that it took."""
        now = time.perf_counter()
        self.seconds["server compute"] += now - started
        request.reply((*value, started - request.arrived_at, now - started))

    # Client segments

    def average_gradients(self, directive: str | None) -> None:
        """The mean of the participants' gradients to every client, so that all segments take the same step (Eq. 2)."""
        requests = [self.take(client, "gradients") for client in self.clients]
        self.traffic["weights_up"] += nbytes_of([request.body for request in requests])
        gradients = [request.body[0] for request in requests if request.body[0] is not None]
        mean = average_states(gradients) if gradients else None
        for request in requests:
            self.send_weights(request, mean, directive)

    def average_weights(self) -> None:
        """The mean of the client segments' weights to every client, by the topology's weighting."""
        average = self.cfg.topology.average
        sends = average != "never" or self.epoch == self.cfg.epochs
        requests = [self.take_weights(client, "segment" if sends else None) for client in self.clients]
        states = [request.body[0] for request in requests]
        if average != "never":
            by_samples = self.cfg.topology.weighting == "samples"
            self.client_states = [average_states(states, self.num_train if by_samples else None)]
        elif self.epoch == self.cfg.epochs:
            self.client_states = states
        directive = "save" if self.saves_epoch(self.epoch) else None
        for request in requests:
            self.send_weights(request, None if average == "never" else self.client_states[0], directive, True)
        if directive:
            self.epoch_states = self.hear_states(self.clients, directive)

    def hand_over(self, client: int) -> None:
        self.send_weights(self.take_weights(client), self.client_states[0], None, True)

    def take_back(self, client: int) -> None:
        request = self.take_weights(client, "trainable")
        self.client_states = [request.body[0]]
        self.send_weights(request, None, None, True)

    def take_weights(self, client: int, holds: str | None = None) -> Request:
        request = self.take(client, "weights", holds)
        self.traffic["weights_up"] += nbytes_of(request.body[0])
        self.seconds.update(request.body[1])
        return request

    def send_weights(self, request: Request, state: Any, *about: Any) -> None:
        self.traffic["weights_down"] += nbytes_of(state)
        request.reply((state, *about))

    # Evaluation

    @torch.no_grad()
    def evaluate(self) -> None:
        """Loss, top-1 and top-5 accuracy over all clients' test samples."""
        self.trainable.segment.eval()
        totals: Counter[str] = Counter()
        for batch in range(max(self.num_test_batches)):
            for client in self.clients:
                if batch >= self.num_test_batches[client]:
                    continue
                self.score(client, totals)
        self.conclude(totals)

    def score(self, client: int, totals: Counter[str]) -> None:
        """Adds what comes out for a client's next test batch."""
        request = self.take(client, "evaluate")
        started = time.perf_counter()
        smashed, labels = self.receive(client, *request.body, self.evaluation_uplink, "evaluation_up")
        with autocast(self.cfg, self.device):
            logits = self.trainable.segment(smashed)
        totals["samples"] += len(labels)
        totals["loss"] += F.cross_entropy(logits.float(), labels, reduction="sum").item()
        totals["top1"] += num_correct(logits, labels, 1)
        totals["top5"] += num_correct(logits, labels, 5)
        self.answer(request, started, ())

    def conclude(self, totals: Counter[str]) -> None:
        samples = totals.pop("samples")
        self.recorder.evaluation(self.epoch, {name: total / samples for name, total in totals.items()})


def num_correct(logits: Tensor, labels: Tensor, k: int) -> int:
    """How many labels are among the k highest of their logits, (B, classes)."""
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return int((top == labels.unsqueeze(1)).sum())
