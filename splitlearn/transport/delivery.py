"""How a call arrives: the only function that a message may name, and what the server's RRef is to."""

from __future__ import annotations

import threading
from typing import Any

import torch.distributed.rpc as rpc
from torch.futures import Future

from splitlearn.transport.frontdesk import FrontDesk
from splitlearn.transport.guard import refuse
from splitlearn.transport.inbox import Inbox
from splitlearn.transport.token import is_signed

MAX_WORD = 64  # letters of a session, or of a call's kind
PROOF = "are you there"  # a call that is answered at once, whatever the server is doing


class Served:
    """What the server's RRef is to. It cannot be had from outside: who fetches the RRef gets nothing."""

    def __init__(self, inbox: Inbox, desk: FrontDesk):
        self.inbox, self.desk = inbox, desk

    def __reduce__(self):
        refuse("message", "it fetches the server's RRef")
        raise TypeError("the server is not sent to anyone")


served: rpc.RRef | None = None  # to a Served, while this process is the server


@rpc.functions.async_execution
def deliver(*call: Any) -> Future:
    """Takes a call of (client, session, number, kind, signature, body), from anyone who reaches this process's port."""
    server = served and served.local_value()
    if server and len(call) == 6:
        *what, signature, body = call
        key = server.desk.visits.key_of(*what[:2]) if is_addressed(*what) else None
        if key and is_signed(signature, key, *what):
            if what[3] != PROOF:
                return server.inbox.deliver(*what, body)
            server.desk.hears(what[0])
            return _answered("done", None)
    shown = f"{call[:1] + call[2:4]!r:.100}" if is_addressed(*call[:4]) else "it does not say whose"
    refuse("call", f"it is not signed: {shown}")
    return _answered("unsigned", "the call is not signed by a client that is signed in")


def is_addressed(client: Any = None, session: Any = None, number: Any = None, kind: Any = None) -> bool:
    """Whether this is what calls begin with, two numbers and two words.

    Nothing else is signed, or shown: a list may be in lists so often that writing it down takes for ever.
    """
    return all(type(one) is int and 0 <= one < 1 << 63 for one in (client, number)) and all(
        type(one) is str and len(one) <= MAX_WORD and one.isprintable() for one in (session, kind)
    )


def _answered(status: str, value: Any) -> Future:
    answer = Future()
    answer.set_result((status, value))
    return answer


def value_of(answer: Future) -> Any:
    """What a call is answered. Waiting for the future itself could not be interrupted by a signal."""
    answered = threading.Event()
    answer.add_done_callback(lambda _: answered.set())
    answered.wait()
    return answer.wait()
