"""Ending a run on request: SIGINT (Ctrl-C), SIGTERM, or SIGHUP, of a terminal that closes, asks for it.

The run ends where it loses nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Container
from contextlib import suppress

from splitlearn.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AT_ONCE_S = 0.2  # what comes within it is the same request, as of `timeout`, which signals a process and then its group
tidy_up: list[Callable[[], None]] = []  # before this process ends at once


def end_at_once(in_silence: Container[int] = ()) -> None:
    """From now on one of SIGNALS ends this process with one line, as long as there is nothing to lose.

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
    """Within its `with`, the first of SIGNALS sets `asked_by`, and a later Ctrl-C raises Interrupted.

    Another SIGTERM asks for nothing new: whoever ends a group of processes sends each one, and a launcher its ranks.

    Args:
        then: called at the first.

    Attributes:
        asked_by: number of the signal that asked for the end; None as long as none did.
    """

    asked_by: int | None = None

    def __init__(self, then: Callable[[], None] = lambda: None):
        self._then = then

    def request(self, number: int = signal.SIGTERM) -> None:
        if self.asked_by is None:
            self.asked_by, self._asked_at = number, time.monotonic()

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
        if self.asked_by is None:
            self.request(number)
            self._then()
        elif number == signal.SIGINT and time.monotonic() - self._asked_at > AT_ONCE_S:
            raise Interrupted(number)
