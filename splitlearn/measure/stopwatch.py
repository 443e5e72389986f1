"""Where time goes: `with stopwatch("codec"):`, of one thread, each moment booked under the innermost phase alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds by phase.

    Attributes:
        seconds: of each phase, without those of phases within it.
    """

    def __init__(self):
        self.seconds: Counter[str] = Counter()
        self._phases: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._turn()
        self._phases.append(phase)
        try:
            yield
        finally:
            self._turn()
            self._phases.pop()

    def take(self) -> dict[str, float]:
        """The seconds so far; they start from nothing after."""
        self._turn()
        seconds, self.seconds = dict(self.seconds), Counter()
        return seconds

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._phases:
            self.seconds[self._phases[-1]] += now - self._since
        self._since = now
