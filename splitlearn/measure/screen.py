"""What a client's own console shows, where it has one: where it stands with the server, and a line an epoch."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from splitlearn.console import Console
from splitlearn.measure.display import epoch_line

if TYPE_CHECKING:
    from splitlearn.exchange.parts import Part
    from splitlearn.tasks import Task


class Screen:
    """
    Args:
        name: put before each line, where several clients share the console.
        is_shown: else nothing is printed, since the server's console is this one and tells all.
    """

    def __init__(self, name: str = "", is_shown: bool = True):
        self._console, self._prefix = Console(highlight=False, quiet=not is_shown), f"{name}: " if name else ""
        self.start()

    def tell(self, text: str) -> None:
        """A line, from any thread."""
        self._console.print(f"{self._prefix}{text}", markup=False, soft_wrap=True)

    # What an epoch comes to

    def crossed(self, way: str, part: Part) -> None:
        """A message of an exchange went up, or came down."""
        self._bytes[way] += part.payload_bytes()

    def trained(self, part: Part, num_samples: int) -> None:
        """A message of a batch that takes part: one of an exchange's tells the loss, and may tell metrics."""
        if (loss := getattr(part, "loss", None)) is not None:
            self._sums.update(getattr(part, "sums", {}), samples=num_samples)
            self._sums["loss"] += loss * num_samples

    def epoch(self, epoch: int, num_epochs: int, task: Task) -> None:
        """The epoch's line."""
        line: dict[str, Any] = {"seconds": time.perf_counter() - self._started_at}
        if samples := self._sums.pop("samples", 0):
            line.update(task.means(self._sums, samples))
        self.tell(epoch_line(epoch, num_epochs, line, task, self._bytes["up"], self._bytes["down"]))
        self.start()

    def start(self) -> None:
        """An epoch begins."""
        self._bytes: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()
        self._started_at = time.perf_counter()
