"""How a bottleneck gets its start before the first step, from the maps of each client's first batches: both ends.

The client runs its first part on them in training mode, as the first steps will, and puts its buffers back. It adds up
mean and covariance of the maps' channels, and sends these and not the maps. The server adds up those of all clients, in
their order. A bottleneck at the second cut (u_shaped) lies on the server: for that one the clients send what crosses
the first cut, uncompressed. A run that goes on from a checkpoint has its start in its weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from itertools import islice
from operator import add
from typing import Any

import torch
from torch import Tensor

from splitlearn.errors import UserError
from splitlearn.exchange.firstmaps import Fitted, Maps, Moments
from splitlearn.exchange.message import Message
from splitlearn.seeds import derive, start_from
from splitlearn.segments import bottleneck
from splitlearn.segments.cutpoint import CutPoint
from splitlearn.segments.parts import Parts
from splitlearn.segments.trainable import are_finite, buffers_of, load_buffers, nbytes_of
from splitlearn.transport.inbox import LOOK_EVERY_S


@contextmanager
def _tried(segment: Parts) -> Iterator[None]:
    """The segment in training mode, without gradients, and afterwards with the buffers of before."""
    buffers = buffers_of(segment.train())
    with torch.no_grad():
        yield
    load_buffers(segment, buffers)


# A client's end


def help_fit(client: Any, cuts: list[CutPoint], wanted: list[int]) -> None:
    """Tells the server of this client's first batches, for the bottlenecks at the `wanted` of the cuts.

    Raises:
        UserError: the maps are not finite.
    """
    segment = client.trainable.segment
    for number in wanted:
        message = _moments(client, cuts[0]) if number == 0 else Maps([maps.cpu().float() for maps in _maps(client)])
        if not are_finite([message.mean, message.triangle] if number == 0 else message.maps):
            raise UserError("the maps of the first batches are not finite: look for NaN in the data")
        fitted = client.ask_patiently(message, Fitted)
        segment.load_state_dict(segment.state_dict() | fitted.state)


def _moments(client: Any, cut: CutPoint) -> Moments:
    with bottleneck.measured(client.trainable.segment.parts[0], cut) as total:
        for _ in _maps(client):
            pass
    return Moments(*total.packed())


def _maps(client: Any) -> Iterator[Tensor]:
    """What the client's first part gives to the first cut, of each of its first batches."""
    cfg, loader = client.cfg, client.data.train
    loader.batch_sampler.start_at(1)
    with _tried(client.trainable.segment):
        for number, loaded in enumerate(islice(loader, cfg.bottleneck_batches), start=1):
            inputs, _ = client.task.to_device(loaded, client.device)
            start_from(derive(cfg.seed, "first maps", client.index, number))  # dropout
            yield client.trainable.segment[0](inputs)


# The server's end


def fit(server: Any, cuts: list[CutPoint]) -> None:
    """Gives the bottlenecks that have none yet their start, on both sides of the cut."""
    for number in list(server.unfitted):
        cut = cuts[number]
        taken = _take(server, *((Moments, cut.channels[1]) if number == 0 else (Maps, cuts[0].shape)))
        found = [
            message.unpacked() if number == 0 else _moments_of(server, cut, client, message.maps)
            for client, (_, message) in taken.items()
        ]
        found = [one for one in found if are_finite([one.mean, one.scatter])]  # the first step says what is wrong
        state, share = bottleneck.fitted(cut, reduce(add, found, bottleneck.Moments.zero(cut.channels[1])))
        segment = server.trainable.segment
        own = segment.state_dict()
        segment.load_state_dict(own | {name: value for name, value in state.items() if name in own})
        of_clients = {name: value for name, value in state.items() if name not in own}
        server.client_states = [server.client_states[0] | of_clients]
        server.unfitted.remove(number)
        for request, message in taken.values():
            server.recorder.ledger.book("bottleneck_up", nbytes_of(message.body()))
            server.recorder.ledger.book("bottleneck_down", nbytes_of(of_clients))
            request.reply(Fitted(of_clients).body())
        if state:
            kept, of = cut.channels
            server.recorder.display.tell(
                f"bottleneck after {cut.path}: starts with {kept} of {of} principal components, which keep {share:.1%}"
                " of the variance of the first maps"
            )


def _moments_of(server: Any, cut: CutPoint, client: int, maps: list[Tensor]) -> bottleneck.Moments:
    """Of a client's maps at the second cut, by what crosses the first."""
    segment = server.trainable.segment
    with bottleneck.measured(segment.parts[0], cut) as total, _tried(segment):
        for number, one in enumerate(maps, start=1):
            start_from(derive(server.cfg.seed, "first maps", "server", client, number))  # dropout
            segment(one.to(server.device))
    return total


def _take(server: Any, kind: type[Message], context: Any) -> dict[int, tuple[Any, Any]]:
    """A message from each client that is there; in an open run from a quorum, of those that are not too late."""
    roster, deadline, taken = server.roster, time.monotonic() + server.roster.deadline_s, {}
    while not taken:
        while roster.is_open and not _are_ready(roster, kind, time.monotonic() > deadline):
            with roster.inbox.changed:
                roster.inbox.changed.wait(LOOK_EVERY_S)
        for client in roster.due(roster.here(), kind, "is too late with its first maps", waits=False):
            with roster.excusing(client):
                taken[client] = roster.take(client, kind, context)
    return taken


def _are_ready(roster: Any, kind: type[Message], is_late: bool) -> bool:
    roster.sort_out()
    here = roster.here()
    ready = [client for client, request in roster.look().items() if client in here and request.kind == kind.kind]
    return len(ready) >= roster.quorum and (is_late or len(ready) == len(here))
