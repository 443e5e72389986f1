"""What an evaluation came to, and over which samples it is."""

from __future__ import annotations

from collections import Counter
from typing import Any

from splitlearn.exchange.exchange import Outcome
from splitlearn.tasks import Task


def evaluation_of(outcomes: list[tuple[int | None, Outcome]], in_all: int | None, task: Task) -> dict[str, Any]:
    """The mean of loss and metrics over test samples, and over how many of whose it is.

    Args:
        outcomes: one a batch, with the client whose samples they are; None: the server's own.
        in_all: test samples of all clients, those that are not there included; None where that is not known.
        task: says what was measured.
    """
    num_samples = sum(outcome.num_samples for _, outcome in outcomes)
    totals: Counter[str] = Counter()
    for _, outcome in outcomes:
        totals.update(outcome.sums)
    means = {name: totals[name] / num_samples for name in task.evaluated}
    clients = sorted({client for client, _ in outcomes if client is not None})
    return {**means, "samples": num_samples, "samples_in_all": in_all, "clients": clients}


def over_in_words(tested: dict[str, Any], num_clients: int) -> str:
    """Over what an evaluation is, such as "over 45 of 360 test samples, 1 of 8 clients"."""
    samples, in_all, clients = tested["samples"], tested["samples_in_all"], len(tested["clients"])
    if not clients:
        return f"over {samples:,} test samples of the server"
    of = "" if in_all in (None, samples) else f" of {in_all:,}"
    whose = (
        f"{clients} client{'s' * (clients > 1)}" if clients == num_clients else f"{clients} of {num_clients} clients"
    )
    return f"over {samples:,}{of} test samples, {whose}"
