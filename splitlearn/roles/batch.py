"""One batch of a client: its half of the exchange, from the forward pass to the end of the backward pass.

`begin` computes until there is something to send, `send` sends it, `receive` takes the answer, and `finish` takes the
batch through the rounds that are left. When each of them happens is the schedule's business (schedule.py).
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from splitlearn.config import measures_error
from splitlearn.errors import NonFiniteError, UserError
from splitlearn.exchange.codecs import Mark
from splitlearn.exchange.exchange import ClientHalf, Outcome
from splitlearn.exchange.halves import client_half
from splitlearn.exchange.messages import Step, StepReply
from splitlearn.exchange.parts import Part
from splitlearn.exchange.passage import Passage
from splitlearn.privacy.observing import INPUTS
from splitlearn.roles.progress import share_of
from splitlearn.roles.waiting import Overdue, in_background, result_of
from splitlearn.seeds import derive, start_from
from splitlearn.segments.parts import Older, Parts
from splitlearn.segments.trainable import are_finite, buffers_of, load_buffers


@dataclass
class Batch:
    """A batch between its forward and its backward pass.

    Attributes:
        half: the client's, of the exchange.
        passage: its way over the channels.
        parts: that it is computed with.
        num_samples: in it.
        given: what it is of, where that is kept beside what the server sees; None else.
        buffers: before the forward pass, where it may be undone; None else.
        mark: of what the codecs knew then.
        share: of the samples of an optimizer step (see Trainable.share).
        message: to send; None where the batch is left out, because it is not finite.
        answer: to it.
        number: of the message and its answer in the rounds of the exchange, from 0.
    """

    half: ClientHalf
    passage: Passage
    parts: Parts | Older
    num_samples: int
    given: dict[str, Any] | None
    buffers: list[Tensor] | None
    mark: Mark
    share: float
    message: Part | None = None
    answer: Future | None = None
    number: int = 0


def begin(client: Any, loaded: Any, parts: Parts | Older) -> Batch:
    """The forward pass, until there is something to send."""
    cfg, progress, plan = client.cfg, client.progress, client.plan
    with client.stopwatch("client compute"):
        inputs, targets = _take(client, loaded)
        may_be_undone = cfg.nonfinite == "skip" or cfg.membership.open or isinstance(parts, Older)
        step = (progress.epoch - 1) * plan.num_sent(client.num_batches) + plan.num_sent(progress.batch)
        samples = client.data.train.batch_sampler.samples_of(progress.batch) if client.codecs.latest else None
        passage = _passage(client, inputs, measures_error=measures_error(cfg, step), samples=samples)
        half = client_half(client.exchange, parts, passage, client.task, inputs, targets)
        buffers = buffers_of(client.trainable.segment) if may_be_undone else None
        num_samples, share = client.task.num_samples(targets), share_of(progress.batch, client.data.num_train, cfg)
        given, mark = _given(client, inputs, targets), client.codecs.mark()
        batch = Batch(half, passage, parts, num_samples, given, buffers, mark, share)
        _advance(client, batch, None)
    return batch


def _passage(client: Any, inputs: Any, **options: Any) -> Passage:
    return Passage(
        client.codecs,
        (client.index, client.progress.epoch, client.progress.batch),
        client.device,
        "the server",
        client.agreement.max_samples,
        is_trained=client.plan.is_trained,
        inputs=inputs,
        stopwatch=client.stopwatch,
        **options,
    )


def _given(client: Any, inputs: Any, targets: Any) -> dict[str, Any] | None:
    epoch, num_sent = client.progress.epoch, client.plan.num_sent(client.progress.batch - 1)
    if not client.observer.folder or not client.observer.keeps(client.exchange, epoch, client.num_batches, num_sent):
        return None
    place = client.index, epoch, num_sent
    return {"place": place, "inputs": inputs.cpu(), "targets": client.task.pack(targets)}


def alone(client: Any, loaded: Any) -> None:
    """A batch that is not sent: trains on the client's own loss, with the rates of the last answer."""
    plan, progress = client.plan, client.progress
    if plan.is_alone:
        client.rates = client.clock.at(plan.part, progress.epoch, progress.batch)
    with client.stopwatch("client compute"):
        inputs, targets = _take(client, loaded)
        buffers = buffers_of(client.trainable.segment) if client.cfg.nonfinite == "skip" else None
        batch = client.trainable.segment, _passage(client, inputs), client.task, inputs, targets
        try:
            client.learned(client.exchange.alone(*batch))
        except NonFiniteError as error:
            _refuse(client, error)
            return load_buffers(client.trainable.segment, buffers)
        if not _can_step(client):
            return load_buffers(client.trainable.segment, buffers)
        client.trainable.collect(1.0)
        client.trainable.step(client.rates)


def _take(client: Any, loaded: Any) -> tuple[Any, Any]:
    """The next batch's inputs and targets on the device, and the stream of its dropout."""
    client.progress.batch += 1
    start_from(derive(client.cfg.seed, "client", client.index, client.progress.epoch, client.progress.batch))
    return client.task.to_device(loaded, client.device)


def send(client: Any, batch: Batch) -> None:
    """Sends the batch's next message; `receive` takes the answer."""
    if batch.message:
        client.screen.crossed("up", batch.message)
    part = batch.message and batch.message.body()
    step = Step(part, batch.passage.take_errors(), client.wants_to_stop())
    _, answered = client.exchange.rounds[batch.number]
    if client.may_leave() or isinstance(batch.parts, Older):
        batch.answer = in_background(client.ask_timed, step, StepReply, answered)
    else:
        batch.answer = Future()
        batch.answer.set_result(client.ask_timed(step, StepReply, answered))


def receive(client: Any, batch: Batch) -> StepReply:
    """
    Raises:
        Overdue: this client was asked to end, and the answer does not come; the batch is undone.
    """
    try:
        reply, taken_s = result_of(client, batch.answer)
    except Overdue:
        undo(client, batch)
        raise
    client.stopwatch.seconds.update(
        {"waiting": reply.waiting_s, "network": taken_s - reply.waiting_s - reply.computing_s}
    )
    return reply


def undo(client: Any, batch: Batch) -> None:
    """A batch that was not sent, or whose answer does not come, was not."""
    load_buffers(client.trainable.segment, batch.buffers)
    client.codecs.go_back(batch.mark)
    batch.half.close()


def finish(client: Any, batch: Batch, reply: StepReply | None = None) -> tuple[float, StepReply]:
    """Takes a batch that was sent through its rounds, to the end of its backward pass.

    Args:
        client: whose it is.
        batch: to finish.
        reply: to what was sent, if it is here already.

    Returns:
        Its share of the optimizer's step, 0 where it is left out, and the last reply.
    """
    while True:
        reply = reply or receive(client, batch)
        if reply.part is None or batch.message is None:
            load_buffers(client.trainable.segment, batch.buffers)
            batch.half.close()
            return 0.0, reply
        client.screen.crossed("down", reply.part)
        for part in (batch.message, reply.part):
            client.screen.trained(part, batch.num_samples)
        with client.stopwatch("client compute"):
            is_over = _advance(client, batch, reply.part)
        if is_over:
            if batch.given:
                client.observer.write(*batch.given.pop("place"), batch.given, INPUTS)
            if batch.message is not None and _can_step(client):
                return batch.share, reply
            load_buffers(client.trainable.segment, batch.buffers)
            return 0.0, reply
        batch.number, reply = batch.number + 1, None
        send(client, batch)


def _advance(client: Any, batch: Batch, answer: Part | None) -> bool:
    """Goes on with the client's half until it has a message, or is over; returns whether it is."""
    try:
        batch.message = batch.half.send(answer)
    except StopIteration as end:
        if isinstance(end.value, Outcome):
            client.learned(end.value)
        return True
    except NonFiniteError as error:
        _refuse(client, error)
        batch.message = None  # which the server is told, if it waits for more
        return answer is not None and batch.number + 1 == len(client.exchange.rounds)
    return False


def _can_step(client: Any) -> bool:
    """Whether what a backward pass has left is fit for the optimizer: with nonfinite=skip, it is looked at."""
    return client.cfg.nonfinite != "skip" or are_finite(one.grad for one in client.trainable.segment.parameters())


def _refuse(client: Any, error: NonFiniteError) -> None:
    """Raises UserError, if such a batch is not to be left out."""
    if client.cfg.nonfinite != "skip":
        raise UserError(
            f"epoch {client.progress.epoch}, batch {client.progress.batch}: smashed data or loss are not finite"
            f" ({error}): training diverged; lower optimizer.lr, or leave such batches out with nonfinite=skip"
        ) from None
