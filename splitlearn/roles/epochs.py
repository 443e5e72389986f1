"""From one epoch of the server to the next."""

from __future__ import annotations

from typing import Any

from splitlearn.exchange.channel import claims_of


def num_steps(server: Any, accumulate: int = 1) -> int:
    """Of an epoch; of one in which nothing is sent as many as the clients take."""
    members = (server.roster.members[client] for client in server.roster.in_round())
    longest = max((-(-member.num_batches // accumulate) for member in members), default=0)
    return server.topology.num_steps(server.roster, accumulate) or max(1, longest)


def start_epoch(server: Any) -> None:
    server.roster.start_epoch()
    server.held.start_epoch()
    if server.roster.sample is not None and not server.topology.keeps_own:
        for member in server.roster.members.values():
            if member.state_epoch != server.progress.epoch:
                member.state = None  # each begins its next round with the newest


def end_epoch(server: Any) -> None:
    """Writes down what it came to, and the run as it is after it.

    Raises:
        Stopped: clients that trained alone have handed in their states to end with the run.
    """
    progress, loss = server.progress, server.recorder.tally.means(server.task).get("loss")
    epoch, phase = progress.epoch, (progress.phase, progress.reference)
    most = 2 if server.cfg.get("samples_per_epoch") else 1  # an epoch may begin with what the one before ended with
    progress.num_sending += server.roster.plan.every > 0
    server.recorder.claims = claims_of(server.channels, progress.num_sending, most)
    server.recorder.end_epoch(epoch, server.stopwatch.take())
    progress.end_epoch(*(phase if loss is None else server.exchange.next_phase(*phase, loss)))
    if server.runstate.saves_epoch(epoch) or server.is_stopping:
        server.runstate.save()
    if server.is_stopping:
        server.runstate.end_early()
