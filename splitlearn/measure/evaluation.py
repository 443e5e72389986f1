"""What an evaluation came to, and over which samples it is: in all, by client, and by class."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from splitlearn.exchange.exchange import Outcome
from splitlearn.tasks import Metric, Task

NUM_SHOWN = 3  # classes that are named as the worst, and as the best
MOST_CLASSES = 2048  # of a confusion matrix, which has the square of it


def evaluation_of(outcomes: list[tuple[int | None, Outcome]], in_all: int | None, task: Task) -> dict[str, Any]:
    """The mean of loss and metrics over test samples, over how many of whose it is, and each client's own.

    Args:
        outcomes: one a batch, with the client whose samples they are; None: the server's own.
        in_all: test samples of all clients, those that are not there included; None where that is not known.
        task: says what was measured.
    """
    clients = sorted({client for client, _ in outcomes if client is not None})
    by_client = {str(one): _means([outcome for client, outcome in outcomes if client == one], task) for one in clients}
    means = _means([outcome for _, outcome in outcomes], task)
    return {**means, "samples_in_all": in_all, "clients": clients, "by_client": by_client}


def _means(outcomes: list[Outcome], task: Task) -> dict[str, Any]:
    num_samples = sum(outcome.num_samples for outcome in outcomes)
    totals: Counter[str] = Counter()
    for outcome in outcomes:
        totals.update(outcome.sums)
    return {**task.means({name: totals[name] for name in task.evaluated}, num_samples), "samples": num_samples}


def told_apart(outcomes: Iterable[Outcome]) -> Tensor | None:
    """What each sample is, and what it was taken for: classes, (N, 2) int64; None where that is not known of all."""
    pairs = [outcome.told_apart for outcome in outcomes]
    return None if any(pair is None for pair in pairs) else torch.cat(pairs)


def confusion_of(pairs: Tensor, number: int) -> Tensor | None:
    """How many samples of each class, (row), were taken for each, (column): (classes, classes) int64.

    None of so many classes that there would be no room for it.

    Args:
        pairs: of `told_apart`.
        number: of the classes.
    """
    if number > MOST_CLASSES:
        return None
    truth, taken_for = pairs.T
    return torch.bincount(truth * number + taken_for, minlength=number**2).view(number, number)


def by_class(pairs: Tensor, names: list[str]) -> dict[str, float]:
    """The share of each class's samples that were taken for it, by its name; of classes that there are samples of.

    Args:
        pairs: of `told_apart`.
        names: of the classes.
    """
    truth, taken_for = pairs.T
    of_class, right = (one.bincount(minlength=len(names)) for one in (truth, truth[truth == taken_for]))
    shares = (right / of_class).tolist()
    return {name: share for name, share, number in zip(names, shares, of_class.tolist(), strict=True) if number}


def as_csv(confusion: Tensor, names: list[str]) -> str:
    """A row for each class, a column for what its samples were taken for."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(
        [["class", *names], *([name, *row] for name, row in zip(names, confusion.tolist(), strict=True))]
    )
    return text.getvalue()


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


def parts_in_words(summary: dict[str, Any], first: Metric) -> list[str]:
    """The range over the clients, and the worst and best classes, in lines; none where there is but one."""
    lines = []
    clients = sorted(summary["by_client"], key=lambda client: summary["by_client"][client][first.name])
    if len(clients) > 1:
        ends = [f"{first.form(summary['by_client'][one][first.name])} (client {one})" for one in clients]
        lines.append(f"{first.title} by client: {ends[0]} to {ends[-1]}")
    shares = summary.get("by_class", {})
    if len(shares) > 1:
        worst = sorted(shares, key=shares.get)
        shown = min(NUM_SHOWN, len(worst) // 2)
        ends = worst[:shown], worst[: -shown - 1 : -1]
        words = [", ".join(f"{name} {shares[name]:.2%}" for name in names) for names in ends]
        lines.append(f"{first.title} by class: worst {words[0]} · best {words[1]}")
    return lines
