"""The server: holds the server segment and trains it on what the clients send.

It runs on the main thread from top to bottom and takes each client's request from the inbox when it is due, always in
the clients' order, so that sums of floats do not depend on who was faster. In one step (Eq. 1 and 2 of the MS paper)
it answers every client with the gradient of that client's own loss, and steps with the mean over the clients.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from splitlearn import models
from splitlearn.compressors import Compressor, Identity, Payload
from splitlearn.config import compressor_from, differences, evaluates, measures_error, shared
from splitlearn.errors import NonFiniteError, UserError
from splitlearn.metrics import Recorder
from splitlearn.seeds import derive
from splitlearn.training import Trainable, autocast, average_states, nbytes_of, relative_error, state_of
from splitlearn.transport import Inbox, Request


class Server:
    """One run's server.

    Args:
        cfg: the run's configuration, with num_clients set.
        device: of the server segment.
        recorder: where measurements go.
    """

    def __init__(self, cfg: DictConfig, device: torch.device, recorder: Recorder):
        self.cfg, self.device, self.recorder = cfg, device, recorder
        self.inbox = Inbox(cfg.num_clients, cfg.rpc.timeout_s)
        self.clients = range(cfg.num_clients)
        self.is_sequential = cfg.topology.name == "sequential"
        self.uplink = compressor_from(cfg, "compressor")
        self.evaluation_uplink = self.uplink.for_evaluation() if cfg.evaluate.compressed else Identity()
        self.downlinks = [compressor_from(cfg, "downlink", "downlink", client) for client in self.clients]
        self.traffic: Counter[str] = Counter()  # bytes since the last step's record
        self.seconds: Counter[str] = Counter()  # of an epoch
        self.step_number = 0

    def run(self) -> float:
        """Trains and evaluates; returns the last top-1 test accuracy, 0 to 1."""
        self.meet_clients()
        self.recorder.start(self.num_steps)
        for epoch in range(1, self.cfg.epochs + 1):
            self.train_epoch(epoch)
            if evaluates(self.cfg, epoch):
                self.evaluate(epoch)
            self.trainable.schedule.step()
            self.recorder.end_epoch(epoch, self.traffic, self.seconds)
            self.traffic, self.seconds = Counter(), Counter()
        self.say_goodbye()
        return self.recorder.final_top1

    # Meeting and parting

    def meet_clients(self) -> None:
        """Hears what every client has, builds the network from it, and gives all the same first client segment."""
        hellos = [self.inbox.take(client, "hello") for client in self.clients]
        for client, hello in enumerate(hellos):
            difference = differences(shared(self.cfg), hello.body[0]["config"])
            if difference:
                raise UserError(f"the server and client {client} are configured differently: {difference}")
        about = [hello.body[0] for hello in hellos]
        num_classes = about[0]["num_classes"]
        if any(other["num_classes"] != num_classes for other in about):
            raise UserError(f"the clients' data have {[other['num_classes'] for other in about]} classes")
        self.num_train = [other["num_train"] for other in about]
        self.num_batches = [-(-num // self.cfg.batch_size) for num in self.num_train]
        self.num_test_batches = [-(-other["num_test"] // self.cfg.batch_size) for other in about]
        # Steps of an epoch: the longest client's in parallel, one client after the other's in sequence.
        self.num_steps = sum(self.num_batches) if self.is_sequential else max(self.num_batches)

        client_segment, segment, self.cut = models.build_segments(self.cfg, num_classes)
        self.trainable = Trainable(segment.to(self.device), self.cfg)
        self.client_states: list[Any] = [state_of(client_segment)]  # one, or without averaging each client's
        self.recorder.describe(self.cut, self.cfg, num_samples=sum(self.num_train))
        for hello in hellos:
            hello.reply({"num_classes": num_classes, "num_steps": self.num_steps, "weights": self.client_states[0]})
        torch.manual_seed(derive(self.cfg.seed, "server"))  # dropout

    def say_goodbye(self) -> None:
        for index, state in enumerate(self.client_states):
            suffix = f"_{index}" if len(self.client_states) > 1 else ""
            self.recorder.save(f"client_segment{suffix}.pt", state.get("segment", state))
        self.recorder.save("server_segment.pt", state_of(self.trainable.segment))
        self.recorder.finish()
        for client in self.clients:
            self.inbox.take(client, "goodbye").reply(self.recorder.final_top1)

    # Training

    def train_epoch(self, epoch: int) -> None:
        self.trainable.segment.train()
        if self.is_sequential:
            for client in self.clients:
                self.hand_over(client)
                for _ in range(self.num_batches[client]):
                    self.step(epoch, [client])
                self.take_back(client)
            if evaluates(self.cfg, epoch):
                for client in self.clients:
                    self.hand_over(client)  # all evaluate with the newest
        else:
            for batch in range(self.num_steps):
                self.step(epoch, [client for client in self.clients if batch < self.num_batches[client]])
            self.average_weights(epoch)

    def step(self, epoch: int, participants: list[int]) -> None:
        """One step of all segments on a batch of each participant."""
        self.step_number += 1
        self.trainable.optimizer.zero_grad()
        measured = [self.learn_from(client) for client in participants]
        if len(participants) > 1:
            for parameter in self.trainable.segment.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(len(participants))
        self.trainable.optimizer.step()
        if not self.is_sequential and self.cfg.topology.average == "step":
            self.average_gradients(participants)
        self.recorder.step(epoch, self.step_number, measured, self.trainable.learning_rate, self.traffic)

    def learn_from(self, client: int) -> dict[str, float]:
        """Adds the gradient of one client's loss to the server segment's and answers with that at the cut."""
        request = self.inbox.take(client, "step")
        started = time.perf_counter()
        wire, labels, uplink_error = request.body
        smashed, labels = self.receive(wire, labels, self.uplink, "smashed_up")
        smashed.requires_grad_()
        with autocast(self.cfg, self.device):
            logits = self.trainable.segment(smashed)
            loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        try:
            gradient = self.downlinks[client].encode(smashed.grad)
        except NonFiniteError as error:
            raise UserError(
                f"step {self.step_number}: the cut gradient for client {client} is not finite ({error}): training"
                " diverged; lower optimizer.lr"
            ) from None
        self.traffic["gradient_down"] += gradient.nbytes
        measured = {
            "num_samples": len(labels),
            "loss": loss.item(),
            "top1": num_correct(logits, labels, 1) / len(labels),
            "uplink_bytes": wire.numel(),
            "downlink_bytes": gradient.nbytes,
            "uplink_raw_bytes": smashed.nbytes,
            "uplink_formula_bits": self.uplink.formula_bits(smashed.shape, 8 * smashed.element_size()),
            "downlink_formula_bits": self.downlinks[client].formula_bits(smashed.shape, 8 * smashed.element_size()),
            "uplink_error": uplink_error,
        }
        if measures_error(self.cfg, self.step_number):
            decoded = self.downlinks[client].decode(gradient, self.device)
            measured["downlink_error"] = relative_error(decoded, smashed.grad)
        self.answer(request, started, (measured["loss"], gradient.tensor))
        return measured

    def receive(self, wire: Tensor, labels: Tensor, uplink: Compressor, kind: str) -> tuple[Tensor, Tensor]:
        self.traffic[kind] += wire.numel()
        self.traffic["labels_up"] += labels.nbytes
        payload = Payload.parse(wire)
        # The client's precision decides on the dtype; the cut on the rest, before anything is allocated.
        expected = (torch.Size((len(labels), *self.cut.shape)), payload.dtype)
        return uplink.decode(payload, self.device, expected), labels.to(self.device).long()

    def answer(self, request: Request, started: float, value: tuple) -> None:
        """Replies, with the seconds that the request waited here and that it took."""
        now = time.perf_counter()
        self.seconds["server compute"] += now - started
        request.reply((*value, started - request.arrived_at, now - started))

    # Client segments

    def average_gradients(self, participants: list[int]) -> None:
        """The mean of the participants' gradients to every client, so that all segments take the same step (Eq. 2)."""
        requests = [self.take_weights(client, "gradients") for client in self.clients]
        mean = average_states([requests[client].body[0] for client in participants])
        for request in requests:
            self.send_weights(request, mean)

    def average_weights(self, epoch: int) -> None:
        """The mean of the client segments' weights to every client, by the topology's weighting."""
        requests = [self.take_weights(client) for client in self.clients]
        states = [request.body[0] for request in requests]
        if self.cfg.topology.average != "never":
            by_samples = self.cfg.topology.weighting == "samples"
            self.client_states = [average_states(states, self.num_train if by_samples else None)]
        elif epoch == self.cfg.epochs:
            self.client_states = states
        for request in requests:
            self.send_weights(request, None if self.cfg.topology.average == "never" else self.client_states[0])

    def hand_over(self, client: int) -> None:
        self.send_weights(self.take_weights(client), self.client_states[0])

    def take_back(self, client: int) -> None:
        request = self.take_weights(client)
        self.client_states = [request.body[0]]
        self.send_weights(request, None)

    def take_weights(self, client: int, kind: str = "weights") -> Request:
        request = self.inbox.take(client, kind)
        self.traffic["weights_up"] += nbytes_of(request.body[0])
        if kind == "weights":
            self.seconds.update(request.body[1])
        return request

    def send_weights(self, request: Request, state: Any) -> None:
        self.traffic["weights_down"] += nbytes_of(state)
        request.reply(state)

    # Evaluation

    @torch.no_grad()
    def evaluate(self, epoch: int) -> None:
        """Loss, top-1 and top-5 accuracy over all clients' test samples."""
        self.trainable.segment.eval()
        totals: Counter[str] = Counter()
        for batch in range(max(self.num_test_batches)):
            for client in self.clients:
                if batch >= self.num_test_batches[client]:
                    continue
                request = self.inbox.take(client, "evaluate")
                started = time.perf_counter()
                smashed, labels = self.receive(*request.body, self.evaluation_uplink, "evaluation_up")
                with autocast(self.cfg, self.device):
                    logits = self.trainable.segment(smashed)
                totals["samples"] += len(labels)
                totals["loss"] += F.cross_entropy(logits.float(), labels, reduction="sum").item()
                totals["top1"] += num_correct(logits, labels, 1)
                totals["top5"] += num_correct(logits, labels, 5)
                self.answer(request, started, ())
        samples = totals.pop("samples")
        self.recorder.evaluation(epoch, {name: total / samples for name, total in totals.items()})


def num_correct(logits: Tensor, labels: Tensor, k: int) -> int:
    """How many labels are among the k highest of their logits, (B, classes)."""
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return int((top == labels.unsqueeze(1)).sum())
