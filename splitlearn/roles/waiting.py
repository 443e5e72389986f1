"""Waiting for others: what it tells the user, and calls whose answer a client may not want to wait for to the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

TELL_EVERY_S = 5.0
LISTEN_EVERY_S = 0.5  # how often a wait for an answer looks whether this client was asked to end


class Overdue(Exception):
    """This client was asked to end, and an answer that waits for others does not come."""


def in_background(function: Callable[..., Any], *args: Any) -> Future:
    """Calls a function in a thread that does not keep the process alive; the future has its result or exception."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class Repeated:
    """Shows a line about a wait when it has changed, and not more often than the eye can follow.

    Args:
        tell: shows the user a line.
        first_s: how long a wait is not worth a line.
    """

    def __init__(self, tell: Callable[[str], None], first_s: float):
        self._tell, self._due_at = tell, time.monotonic() + first_s
        self._text: str | None = None

    def __call__(self, text: str) -> None:
        if text != self._text and time.monotonic() >= self._due_at:
            self._text, self._due_at = text, time.monotonic() + TELL_EVERY_S
            self._tell(text)
