"""When a client computes, sends and waits: the schedules drive its half of the exchange, batch after batch.

In turn (pipeline_depth=1):

    wire and server               │ batch 1 │              │ batch 2 │
    client              forward 1 │         │ back 1, forw. 2        │ back 2 …

Ahead (pipeline_depth=2): it computes the next batch while one is on the wire and at the server.

    wire and server     │ batch 1        │ batch 2         │ batch 3
    client    forward 1 │ forward 2      │ back 1, forw. 3 │ back 2, forw. 4

There, the forward pass of a batch sees the weights before the last step: they are one step older than without a
pipeline. Its backward pass uses the same ones, kept for it. The server's part is the same as ever. Where the server
wants the client's state, the batch that was computed ahead is computed again after it, so that a run that goes on from
a checkpoint is the same as the one that wrote it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from splitlearn.roles.batch import Batch, alone, begin, finish, receive, send, undo
from splitlearn.segments.parts import Older


def schedule_from(cfg: DictConfig) -> Callable[[Any], None]:
    """How a client goes through what is left of an epoch."""
    return ahead if cfg.pipeline_depth == 2 else in_turn


def in_turn(client: Any) -> None:
    """A batch at a time. What the server wants comes before the next one that is sent."""
    plan, progress, directive = client.plan, client.progress, None
    for loaded in client.data.train:
        client.trainable.optimizer.zero_grad()
        if plan.sends(progress.batch + 1):
            batch = begin(client, loaded, client.trainable.segment)
            send(client, batch)
            share, reply = finish(client, batch)
            directive = client.topology.end_batch(client, share, reply)
            client.rates = reply.rates
        else:
            alone(client, loaded)
        if plan.sends(progress.batch + 1) or progress.batch == client.num_batches:
            client.obey(directive)
            progress.epoch_step += 1


def ahead(client: Any) -> None:
    """The next batch is computed while one is on the wire."""

    def compute(loaded: Any) -> Batch | None:
        return None if loaded is None else begin(client, loaded, Older(client.trainable.segment))

    loader = iter(client.data.train)
    num_rounds = len(client.exchange.rounds)
    sent = compute(next(loader, None))
    if sent:
        send(client, sent)
    while sent:
        loaded = next(loader, None)
        following = compute(loaded)
        reply = receive(client, sent)
        # What is sent at once shortens the wait; after the last round nothing but the backward pass is left.
        is_early = following is not None and num_rounds == 1 and reply.directive is None
        if is_early:
            send(client, following)
        share, reply = finish(client, sent, reply)
        with client.stopwatch("client compute"):
            sent.parts.hand_gradients_on()
            directive = client.topology.end_batch(client, share, reply)
        if directive is not None:
            if following:
                undo(client, following)
                client.progress.batch -= 1
            client.obey(directive)
            following = compute(loaded)
        if following and not is_early:
            send(client, following)
        sent = following
        client.progress.epoch_step += 1
