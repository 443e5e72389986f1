import threading
from pathlib import Path

import pytest

from splitlearn import transport
from splitlearn.errors import PeerError, UserError
from splitlearn.transport import Inbox, Place


def test_a_repeated_call_is_answered_from_memory_and_not_taken_twice(monkeypatch):
    monkeypatch.setattr(transport, "PING_EVERY_S", 0.01)
    monkeypatch.setattr(transport, "_is_alive", lambda name: True)
    inbox = Inbox(num_clients=1, timeout_s=0.05)
    first = inbox.deliver(0, 1, "step", ("a",))
    request = inbox.take(0, "step")
    early = inbox.deliver(0, 1, "step", ("a",))
    request.reply("answer")
    late = inbox.deliver(0, 1, "step", ("a",))
    assert first.wait() == early.wait() == late.wait() == ("done", "answer")
    with pytest.raises(PeerError, match="client 0 did not send its step"):
        inbox.take(0, "step")
    inbox.deliver(0, 2, "step", ("b",))
    assert inbox.take(0, "step").body == ("b",)


def test_requests_are_taken_in_the_order_that_the_server_asks_for(monkeypatch):
    inbox = Inbox(num_clients=2, timeout_s=5)
    inbox.deliver(1, 1, "step", ("late client first",))
    threading.Timer(0.05, inbox.deliver, (0, 1, "step", ("then the other",))).start()
    assert inbox.take(0, "step").body == ("then the other",)
    assert inbox.take(1, "step").body == ("late client first",)


def test_a_failed_client_ends_the_wait_for_another():
    inbox = Inbox(num_clients=2, timeout_s=5)
    threading.Timer(0.05, inbox.deliver, (1, 1, "failed", ("no data",))).start()
    with pytest.raises(PeerError, match="client 1 stopped: no data"):
        inbox.take(0, "step")


def test_the_end_of_a_run_answers_every_call_before_and_after():
    inbox = Inbox(num_clients=3, timeout_s=5)
    waiting = inbox.deliver(0, 1, "step", ())
    failing = inbox.deliver(1, 1, "failed", ("no data",))
    inbox.fail("something else")
    after = inbox.deliver(2, 1, "step", ())
    failing_after = inbox.deliver(0, 2, "failed", ("no data either",))
    answers = {future.wait() for future in (waiting, failing, after, failing_after)}
    assert answers == {("failed", "client 1 stopped: no data")}


def test_a_client_that_is_gone_is_named(monkeypatch):
    monkeypatch.setattr(transport, "PING_EVERY_S", 0.01)
    monkeypatch.setattr(transport, "_is_alive", lambda name: name != "client1")
    inbox = Inbox(num_clients=2, timeout_s=5)
    with pytest.raises(PeerError, match="client 1 is gone"):
        inbox.take(1, "step")


def test_a_port_that_is_taken_is_named(free_port):
    store = transport.host_store("127.0.0.1", free_port)
    with pytest.raises(UserError, match=f"rpc.port={free_port}"):
        transport.host_store("127.0.0.1", free_port)
    assert store.port == free_port


def test_the_store_listens_on_its_own_address_alone():
    store = transport.host_store("127.0.0.1", 0)
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    addresses = [address.split(":")[0] for address in listening if address.endswith(f":{store.port:04X}")]
    assert "0100007F" in addresses and "00000000" not in addresses


def test_a_wait_for_the_server_is_bounded(free_port):
    place = Place(rank=1, num_clients=1, host="127.0.0.1", port=free_port)
    with pytest.raises(UserError, match="no server at"), transport.connect(place, 1, 0.5):
        pass
