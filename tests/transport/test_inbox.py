import threading
import time

import pytest

from splitlearn.errors import PeerError
from splitlearn.transport import Inbox, inbox


@pytest.fixture
def make(monkeypatch):
    """make(num_clients): an inbox, quick to look around, whose clients have sessions of their own number."""
    monkeypatch.setattr(inbox, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(inbox, "RETURN_WITHIN_S", 0.1)

    def make(num_clients: int, timeout_s: float = 5) -> Inbox:
        made = Inbox(num_clients, timeout_s)
        for client in range(num_clients):
            made.deliver(client, str(client), 0, "hello", ())
        made.meet(come_within_s=1)
        return made

    return make


def deliver(box: Inbox, client: int, number: int, kind: str, *body):
    return box.deliver(client, str(client), number, kind, body)


def test_a_repeated_call_is_answered_from_memory_and_not_taken_twice(make):
    box = make(1, timeout_s=0.05)
    first = deliver(box, 0, 1, "step", "a")
    request = box.take(0, "step")
    early = deliver(box, 0, 1, "step", "a")
    request.reply("answer")
    late = deliver(box, 0, 1, "step", "a")
    assert first.wait() == early.wait() == late.wait() == ("done", "answer")
    with pytest.raises(PeerError, match="client 0 did not send its step"):
        box.take(0, "step")
    deliver(box, 0, 2, "step", "b")
    stray = deliver(box, 0, 1, "step", "a")  # was on its way for long
    assert box.take(0, "step").body == ("b",)
    assert stray.wait()[0] == "failed"


def test_a_call_that_is_sent_again_with_another_body_is_one_request(make):
    box = make(1)
    first = deliver(box, 0, 1, "weights", "stays")
    again = deliver(box, 0, 1, "weights", "wants to stop")
    request = box.take(0, "weights")
    assert request.body == ("wants to stop",)
    deliver(box, 0, 1, "weights", "wants more")  # the server waits for others
    assert request.body == ("wants more",) and not box.new_requests()
    request.reply("answer")
    assert first.wait() == again.wait() == deliver(box, 0, 1, "weights", "late").wait() == ("done", "answer")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (("no data\nfake line\x1b[31m",), "no data\\nfake line\\x1b[31m"),
        (("x" * 4000,), "x" * 4000),  # an honest one, with two long paths before what to do
        (("x" * 5000,), "x" * 4095 + "…"),
        (([["x"]],), "it does not say why"),
        (5, "it does not say why"),
        ((), "it does not say why"),
    ],
    ids=["escapes", "a sentence", "long", "lists", "a number", "nothing"],
)
def test_why_a_client_failed_is_one_line_for_the_console(make, body, told):
    box = make(1)
    box.deliver(0, "0", 1, "failed", body)
    with pytest.raises(PeerError) as caught:
        box.take(0, "step")
    assert str(caught.value) == f"client 0 stopped: {told}"


def test_requests_are_taken_in_the_order_that_the_server_asks_for(make):
    box = make(2)
    deliver(box, 1, 1, "step", "late client first")
    threading.Timer(0.05, deliver, (box, 0, 1, "step", "then the other")).start()
    assert box.take(0, "step").body == ("then the other",)
    assert box.take(1, "step").body == ("late client first",)


def test_a_failed_client_ends_the_wait_for_another(make):
    box = make(2)
    threading.Timer(0.05, deliver, (box, 1, 1, "failed", "no data")).start()
    with pytest.raises(PeerError, match="client 1 stopped: no data"):
        box.take(0, "step")


def test_the_end_of_a_run_answers_every_call_before_and_after(make):
    box = make(3)
    waiting = deliver(box, 0, 1, "step")
    failing = deliver(box, 1, 1, "failed", "no data")
    box.fail("something else")
    after = deliver(box, 2, 1, "step")
    failing_after = deliver(box, 0, 2, "failed", "no data either")
    answers = {future.wait() for future in (waiting, failing, after, failing_after)}
    assert answers == {("failed", "client 1 stopped: no data")}


def test_a_request_that_a_newer_one_takes_the_place_of_is_answered(make):
    box = make(1)
    old = deliver(box, 0, 1, "step")
    deliver(box, 0, 2, "failed", "no data")
    assert old.wait() == ("failed", "the client has sent its failed since")


def test_a_client_whose_connection_breaks_may_come_back(make):
    box = make(1)
    box.is_alive = lambda client: False
    threading.Timer(0.05, deliver, (box, 0, 1, "step", "after it")).start()
    assert box.take(0, "step").body == ("after it",)


def test_a_client_that_is_gone_is_named(make):
    box = make(2)
    box.is_alive = lambda client: client != 1
    with pytest.raises(PeerError, match="client 1 is gone"):
        box.take(1, "step")


def test_a_client_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(inbox, "LOOK_EVERY_S", 0.01)
    box = Inbox(3, timeout_s=5)
    box.is_alive = lambda client: False
    deliver(box, 1, 1, "hello")
    with pytest.raises(PeerError, match="clients 0 and 2 did not come"):
        box.meet(come_within_s=0.05)


def test_clients_that_come_one_after_the_other_have_the_time_from_the_last_on(monkeypatch):
    monkeypatch.setattr(inbox, "LOOK_EVERY_S", 0.01)
    box = Inbox(8, timeout_s=5)
    box.is_alive = lambda client: client in box.new_requests()
    for client in range(7):
        threading.Timer(0.2 * client, deliver, (box, client, 1, "hello")).start()
    started = time.monotonic()
    with pytest.raises(PeerError, match=r"^client 7 did not come within 1 s"):
        box.meet(come_within_s=0.6)
    assert time.monotonic() - started > 1.5


def test_a_sentence_names_a_few_of_many_clients(monkeypatch):
    monkeypatch.setattr(inbox, "LOOK_EVERY_S", 0.01)
    box = Inbox(100, timeout_s=5)
    box.is_alive = lambda client: False
    with pytest.raises(PeerError, match="clients 0, 1, 2, 3 and 96 others did not come"):
        box.meet(come_within_s=0.05)


def test_another_process_of_a_client_takes_the_place_of_the_first(make):
    box = make(1)
    old = box.deliver(0, "0", 1, "step", ("old",))
    new = box.deliver(0, "new", 1, "hello", ())
    assert old.wait() == ("failed", inbox.REPLACED)
    box.take(0, "hello").reply("welcome")
    assert new.wait() == ("done", "welcome")
    assert box.deliver(0, "0", 2, "step", ()).wait() == ("failed", inbox.REPLACED)


def test_a_session_that_the_server_does_not_know_has_to_join_again():
    assert Inbox(1, 5).deliver(0, "of a server before", 7, "step", ()).wait() == ("rejoin", None)
