"""Loss and metrics of an epoch's training, as sums over its samples: by the run's loss, and by the clients' own."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitlearn.exchange.exchange import Outcome
    from splitlearn.tasks import Task


class Tally:
    def __init__(self):
        self._sums: Counter[str] = Counter()  # empty where every batch was left out
        self._own: Counter[str] = Counter()  # empty where clients have no loss of their own

    def add(self, outcome: Outcome) -> None:
        """A batch's."""
        self._sums.update(outcome.sums, samples=outcome.num_samples, loss=outcome.loss * outcome.num_samples)

    def add_own(self, sums: dict[str, float]) -> None:
        """What batches of a client came to, by a loss of its own."""
        self._own.update(sums)

    @property
    def num_samples(self) -> int:
        """That were trained on, at the end that has seen more."""
        return max(self._sums["samples"], self._own["samples"])

    def means(self, task: Task) -> dict[str, float]:
        """The loss and metrics, and those by the clients' own loss with "local_" before their names."""
        own = {f"local_{name}": mean for name, mean in _means(self._own, task).items()}
        return _means(self._sums, task) | own

    def state(self) -> dict[str, Any]:
        return {"sums": dict(self._sums), "own": dict(self._own)}

    def load(self, state: dict[str, Any]) -> None:
        self._sums, self._own = Counter(state["sums"]), Counter(state["own"])


def _means(sums: Counter[str], task: Task) -> dict[str, float]:
    sums = dict(sums)
    return task.means(sums, samples) if (samples := sums.pop("samples", 0)) else {}
