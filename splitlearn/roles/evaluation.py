"""A client's test batches through the exchange; the next one is computed while one is on the wire."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import torch

from splitlearn.errors import NonFiniteError, UserError
from splitlearn.exchange.exchange import ClientHalf
from splitlearn.exchange.halves import client_half
from splitlearn.exchange.messages import Evaluate, StepReply
from splitlearn.exchange.parts import Part
from splitlearn.exchange.passage import Passage
from splitlearn.roles.waiting import in_background, result_of


def diverged(epoch: int, what: str, error: NonFiniteError) -> UserError:
    """What to raise where an evaluation comes to something that is not finite."""
    return UserError(
        f"evaluation after epoch {epoch}: {what} are not finite ({error}): training diverged; lower optimizer.lr"
    )


@torch.no_grad()
def evaluate(client: Any) -> None:
    """Takes all test batches of a client through the exchange."""
    client.trainable.segment.eval()
    client.codecs.start_evaluation()
    before = None
    for loaded in client.data.test:
        inputs, targets = client.task.to_device(loaded, client.device)
        passage = Passage(client.codecs, (), client.device, "the server", client.cfg.batch_size, in_evaluation=True)
        half = client_half(client.exchange, client.trainable.segment, passage, client.task, inputs, targets)
        try:
            message = next(half)
        except NonFiniteError as error:
            raise diverged(client.progress.epoch, "the smashed data", error) from None
        if before:
            _finish_evaluation(client, *before)
        before = half, _ask_evaluation(client, message, 0)
    if before:
        _finish_evaluation(client, *before)


def _ask_evaluation(client: Any, message: Part, number: int) -> Future:
    _, answered = client.exchange.evaluation_rounds[number]
    return in_background(client.ask, Evaluate(message.body()), StepReply, answered)


def _finish_evaluation(client: Any, half: ClientHalf, answer: Future) -> None:
    number = 0
    while True:
        reply = result_of(client, answer)
        try:
            message = half.send(reply.part)
        except StopIteration:
            return
        except NonFiniteError as error:
            raise diverged(client.progress.epoch, "the values", error) from None
        number += 1
        answer = _ask_evaluation(client, message, number)
