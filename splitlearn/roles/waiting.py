"""Calls whose answer a client may not want to wait for to the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

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
