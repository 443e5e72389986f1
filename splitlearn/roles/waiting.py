"""Waiting for others: what it tells the user, and calls whose answer a client may not want to wait for to the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

from splitlearn.exchange.message import Message
from splitlearn.exchange.messages import State

TELL_EVERY_S = 5.0
LISTEN_EVERY_S = 0.5  # how often a wait for an answer looks whether this client was asked to end
LEAVE_AFTER_S = 4.0  # how long it waits on then, and after that until its state is handed in
LEFT = "left the run: the same command comes back to it"


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


def result_of(client: Any, answer: Future) -> Any:
    """What came of a call of a client.

    Raises:
        Overdue: this client was asked to end, and the run can go on without it.
    """
    waited_s = 0.0
    while waited_s < LEAVE_AFTER_S or not client.may_leave():
        if answer in wait([answer], LISTEN_EVERY_S).done:
            return answer.result()
        waited_s += LISTEN_EVERY_S if client.wants_to_stop() else 0
    raise Overdue(answer)


def leave(client: Any, answer: Future) -> str:
    """Takes back the call whose answer is overdue, by handing in the state, if the server is there to take it.

    Returns what to tell the user.
    """
    if client.is_in:
        state = State(client.state(), True)
        wait([answer, in_background(client.server.call, State.kind, *state.body())], LEAVE_AFTER_S)
    client.server.give_up()
    return LEFT if client.is_in else "stopped before it joined the run"


def ask_and_tell(client: Any, message_of: Callable[[bool], Message], reply: type[Message]) -> Any:
    """Asks for what may take as long as others train; where this client is asked to end meanwhile, the server is told.

    Args:
        client: who asks.
        message_of: what it sends, by whether it is asked to end.
        reply: what comes back.

    Raises:
        Overdue: it was asked to end, and the run can go on without it.
    """
    is_told = client.wants_to_stop()
    answer = in_background(client.ask, message_of(is_told), reply)
    if client.may_leave():
        return result_of(client, answer)
    while answer not in wait([answer], LISTEN_EVERY_S).done:
        if client.wants_to_stop() and not is_told:
            is_told = True
            answer = in_background(partial(client.ask, message_of(True), reply, anew=True))
    return answer.result()


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
