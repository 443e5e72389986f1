"""How long a client waits for an answer."""

import threading
import time
from itertools import chain, repeat

import pytest

from splitlearn.errors import PeerError
from splitlearn.transport import Patience, ServerProxy, proxy

CALL_S = 0.4


class Link:
    """Of a server that is there, as long as it says so."""

    client, session, key, renewals, way = 0, "session", b"key", 0, "here"

    def __init__(self):
        self.is_there = True

    def answers(self, within_s: float) -> bool:
        return self.is_there

    def renew(self, renewals: int, deadline: float) -> None:
        raise PeerError("it is gone")

    def tell(self, text: str) -> None:
        pass


@pytest.fixture
def make(monkeypatch):
    """make(answers): a proxy whose calls have these answers, None being none within its time, and what it has sent."""

    def make(answers):
        sent, answers = [], iter(answers)

        def rpc_async(to, function, args, timeout):
            sent.append(args)
            if (answer := next(answers)) is None:
                time.sleep(timeout)
                raise RuntimeError("timeout")
            return answer

        monkeypatch.setattr(proxy.rpc, "rpc_async", rpc_async)
        monkeypatch.setattr(proxy, "value_of", lambda answer: answer)
        return ServerProxy(Link()), sent

    monkeypatch.setattr(Link, "patience", Patience(CALL_S, CALL_S / 8, 1), raising=False)
    return make


def test_what_waits_for_others_waits_for_as_long_as_the_server_is_there(make):
    calls, sent = make([None] * 12 + [("done", "at last")])
    started = time.monotonic()
    assert calls.call("weights", "body") == "at last"
    assert time.monotonic() - started > 2 * CALL_S
    assert {(args[2], args[-1]) for args in sent} == {(1, ("body",))}  # a single call


def test_other_calls_end_with_their_time(make):
    calls, _ = make(repeat(None))
    with pytest.raises(PeerError, match=r"did not answer within .* \(rpc.timeout_s\)"):
        calls.call("step", "body")


def test_so_does_one_that_waits_for_others_where_the_server_is_gone(make):
    calls, _ = make(repeat(None))
    calls.link.is_there = False
    with pytest.raises(PeerError, match="it is gone"):
        calls.call("weights", "body")


def test_of_two_bodies_of_a_call_the_newer_is_sent_on(make):
    calls, sent = make(chain([None] * 6, repeat(("done", "both"))))
    (newer := threading.Timer(CALL_S / 4, calls.call_anew, ("weights", "newer"))).start()
    assert calls.call("weights", "older") == "both"
    newer.join()
    assert {args[2] for args in sent} == {1}
    bodies = [args[-1][0] for args in sent]
    assert bodies[0] == "older" and bodies == sorted(bodies, reverse=True)


@pytest.mark.parametrize(
    ("why", "told"),
    [("no room\x1b[31m\nfake line", "no room\\x1b[31m\\nfake line"), (5, "the server does not say why")],
)
def test_why_the_server_refuses_is_one_line_for_the_console(why, told, make):
    calls, _ = make([("failed", why)])
    with pytest.raises(PeerError) as caught:
        calls.call("step", "body")
    assert str(caught.value) == told and caught.value.is_told
