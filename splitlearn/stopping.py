"""Ending a run on request: SIGINT (Ctrl-C) or SIGTERM asks for it, and the run ends where it loses nothing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Container
from contextlib import suppress

from splitlearn.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
tidy_up: list[Callable[[], None]] = []  # before this process ends at once


def end_at_once(in_silence: Container[int] = ()) -> None:
    """From now on SIGINT or SIGTERM ends this process with one line, as long as there is nothing to lose.

    Not by KeyboardInterrupt, which is lost or printed with a traceback in the middle of an import.

    Args:
        in_silence: the signals that end it without the line.
    """

    def end(number: int, _) -> None:
        for step in tidy_up:
            with suppress(Exception):
                step()
        if number not in in_silence:
            with suppress(OSError):
                os.write(2, b"\ninterrupted\n")
        os._exit(128 + number)

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


class StopRequest:
    """Within its `with`, the first SIGINT or SIGTERM sets `asked_by`, and a second one raises Interrupted.

    Args:
        then: called at the first.

    Attributes:
        asked_by: number of the signal that asked for the end; None as long as none did.
    """

    asked_by: int | None = None

    def __init__(self, then: Callable[[], None] = lambda: None):
        self._then = then

    def request(self, number: int = signal.SIGTERM) -> None:
        self.asked_by = self.asked_by or number

    def __enter__(self) -> StopRequest:
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # only there signals can be handled
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _) -> None:
        if self.asked_by is not None:
            raise Interrupted(number)
        self.request(number)
        self._then()
