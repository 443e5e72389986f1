"""A client that computes its next batch while one is on the wire and at the server (pipeline_depth=2).

    wire and server     │ batch 1        │ batch 2         │ batch 3
    client    forward 1 │ forward 2      │ back 1, forw. 3 │ back 2, forw. 4

The forward pass of a batch sees the client segment's weights before the last step: they are one step older than without
a pipeline. Its backward pass uses the same ones, kept for it. The server's part is the same as ever.

Where the server wants the client's state, the batch that was computed ahead is computed again after it, so that a run
that goes on from a checkpoint is the same as the one that wrote it.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from splitlearn import data
from splitlearn.client import Client, Overdue, compact, in_background
from splitlearn.compressors import Payload
from splitlearn.functions import cut
from splitlearn.training import buffers_of, load_buffers, smash


@dataclass
class Batch:
    """A batch between its forward and its backward pass: the client's end of the cut (see functions.Link).

    Attributes:
        images, labels: on the client's device.
        buffers: before the forward pass.
        weights: of the forward pass, copied.
        smashed: with its graph.
        payload: of it.
        decoded, error: see Client.look_back.
        answer: of the server: loss, cut gradient as sent, and directive.
        gradient: decoded.
    """

    images: Tensor
    labels: Tensor
    buffers: list[Tensor]
    weights: dict[str, Tensor]
    smashed: Tensor
    payload: Payload
    decoded: Tensor | None
    error: float | None
    answer: Future | None = None
    gradient: Tensor | None = None

    def forward(self, smashed: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        return smashed.new_tensor(self.answer.result()[0], dtype=torch.float32), self.decoded

    def backward(self) -> Tensor:
        return self.gradient


class PipelinedClient(Client):
    """One of a run's clients. Arguments as Client's."""

    def train_batches(self) -> None:
        self.trainable.segment.train()
        self.train_loader.batch_sampler.start_at(self.epoch, self.batch)
        loader = iter(self.train_loader)
        ahead = self.compute(next(loader, None))
        sent = self.send(ahead)
        while sent:
            following = next(loader, None)
            ahead = self.compute(following)
            try:
                *_, directive = self.result(sent.answer)
            except Overdue:
                load_buffers(self.trainable.segment, sent.buffers)
                raise
            if directive is None:
                sent, answered = self.send(ahead), sent
                self.learn(answered)
            else:
                self.learn(sent)
                if ahead:
                    load_buffers(self.trainable.segment, ahead.buffers)
                    self.batch -= 1
                self.obey(directive)
                sent = self.send(self.compute(following))
            self.step_number += 1

    def compute(self, loaded: list[Tensor] | None) -> Batch | None:
        """The forward pass; None after the last batch."""
        if loaded is None:
            return None
        started, codec = time.perf_counter(), self.seconds["codec"]
        images, labels = data.to_device(loaded, self.device)
        self.begin_batch()
        segment = self.trainable.segment
        buffers = buffers_of(segment)
        weights = {name: weight.detach().clone().requires_grad_() for name, weight in segment.named_parameters()}
        smashed = smash(lambda batch: functional_call(segment, weights, (batch,)), images, self.cfg)
        with torch.no_grad():
            payload = self.encode(smashed)
            decoded, error = self.look_back(payload, smashed)
        self.seconds["client compute"] += time.perf_counter() - started - (self.seconds["codec"] - codec)
        return Batch(images, labels, buffers, weights, smashed, payload, decoded, error)

    def send(self, batch: Batch | None) -> Batch | None:
        if batch:
            body = batch.payload.tensor, compact(batch.labels), batch.error, self.wants_to_stop()
            batch.answer = in_background(self.call, "step", *body)
        return batch

    def learn(self, batch: Batch) -> None:
        """The backward pass, with the weights of the forward pass, and a step of the newest ones."""
        _, wire, _ = batch.answer.result()
        shape = batch.payload.shape, batch.payload.dtype
        batch.gradient = self.timed("codec", self.downlink.decode, Payload.parse(wire), self.device, shape)
        decoded_at = time.perf_counter()
        cut(batch.smashed, batch.labels, batch).backward()
        for name, weight in self.trainable.segment.named_parameters():
            weight.grad = batch.weights[name].grad
        self.trainable.optimizer.step()
        self.seconds["client compute"] += time.perf_counter() - decoded_at
