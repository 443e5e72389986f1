"""Where time goes: `with stopwatch("codec"):`, of one thread, each moment booked under the innermost phase alone."""

from __future__ import annotations

import time
from collections import Counter, deque
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


class Speed:
    """How many of something there are in a second, over the last ones."""

    def __init__(self, over: int = 30):
        self._seen: deque[tuple[float, int]] = deque(maxlen=over)

    def add(self, number: int) -> None:
        """So many more are done now."""
        self._seen.append((time.perf_counter(), number))

    def now(self) -> float:
        """0 where nothing is known yet."""
        if len(self._seen) < 2:
            return 0.0
        (first, before), (last, _) = self._seen[0], self._seen[-1]
        return (sum(number for _, number in self._seen) - before) / max(last - first, 1e-9)
