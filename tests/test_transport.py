import os
import threading
from pathlib import Path

import pytest

from splitlearn import frontdesk, guard, inbox, transport
from splitlearn.errors import PeerError, UserError
from splitlearn.inbox import Inbox
from splitlearn.transport import Patience, Place

TOKEN = b"secret"


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
    with pytest.raises(PeerError, match="client 0 and client 2 did not come"):
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


# Meeting


def test_a_port_that_is_taken_is_named(free_port):
    store = transport.host_store("127.0.0.1", free_port)
    with pytest.raises(UserError, match=f"rpc.port={free_port}"):
        transport.host_store("127.0.0.1", free_port)
    with pytest.raises(UserError, match=f"rpc.port={free_port}"):
        frontdesk.FrontDesk("127.0.0.1", free_port, "", 1, TOKEN)
    assert store.port == free_port


@pytest.fixture
def desk(free_port):
    desk = frontdesk.FrontDesk("127.0.0.1", 0, f"uv://127.0.0.1:{free_port}", num_clients=2, token=TOKEN)
    yield desk
    desk.close()


def test_store_and_front_desk_listen_on_their_own_address_alone(desk):
    store = transport.host_store("127.0.0.1", 0)
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    for port in (store.port, desk.port):
        addresses = [address.split(":")[0] for address in listening if address.endswith(f":{port:04X}")]
        assert "0100007F" in addresses and "00000000" not in addresses


def test_a_wait_for_the_server_is_bounded(free_port):
    for is_fleet in (True, False):
        place = Place(rank=1, num_clients=1, host="127.0.0.1", port=free_port, is_fleet=is_fleet)
        with pytest.raises(UserError, match="no server at"), transport.connect(place, Patience(1, 1, 0.5), TOKEN):
            pass


def test_a_server_whose_rpc_cannot_be_reached_is_told_of(monkeypatch):
    def break_off(*arguments, **options):
        raise RuntimeError("connection refused")

    monkeypatch.setattr(transport.rpc, "rpc_async", break_off)
    server = transport.ServerProxy(
        0, "there:1", Patience(10, 10, 10), "session", b"key", reconnect=lambda deadline: ("uv://there:2", b"key")
    )
    with pytest.raises(PeerError, match="at there:1 lets client 0 in, but its RPC at uv://there:2 cannot be reached"):
        server.call("hello")


def test_the_interface_is_chosen_for_a_run_alone(desk, monkeypatch):
    monkeypatch.delenv(transport.INTERFACE, raising=False)
    place = Place(rank=1, num_clients=2, host="127.0.0.1", port=desk.port, is_fleet=False)
    with transport._interface(place) as address:
        assert address == "127.0.0.1" and os.environ[transport.INTERFACE] == "lo"
    assert transport.INTERFACE not in os.environ  # or what else this process starts would listen there
    monkeypatch.setenv(transport.INTERFACE, "eth7")
    with transport._interface(place):
        assert os.environ[transport.INTERFACE] == "eth7"
    assert os.environ[transport.INTERFACE] == "eth7"


def enter(desk, client=0, number=0, session="one", token=TOKEN):
    return frontdesk.enter("127.0.0.1", desk.port, client, number, session, token, 1)


def eventually(condition) -> bool:
    return any(condition() or threading.Event().wait(0.02) for _ in range(100))


def test_the_front_desk_knows_who_is_there_and_gives_each_process_an_id(desk):
    first, second, again = enter(desk), enter(desk, 1), enter(desk, 1)
    assert first.address == desk.address
    assert len({first.id, second.id, again.id}) == 3
    second.connection.close()
    again.connection.close()
    assert eventually(lambda: not desk.is_present(1)) and desk.is_present(0)
    back = enter(desk, 1, second.id)
    assert back.id == second.id


@pytest.mark.parametrize("options", [{"token": b"wrong"}, {"client": 2}, {"client": -1}])
def test_the_front_desk_lets_nobody_else_in(desk, options, caplog):
    before = guard.refusals["connection"]
    with pytest.raises(UserError, match=r"does not let client .* in"):
        enter(desk, **options)
    assert eventually(lambda: "refused connection" in caplog.text) and guard.refusals["connection"] > before
    assert TOKEN.decode() not in caplog.text
    assert not desk.is_present(0)


@pytest.mark.parametrize(
    "noise", [b"", b"\n", b"{}\n", b"GET / HTTP/1.0\r\n\r\n", b"x" * 5000, b'{"nonce": {}, "client": []}\n']
)
def test_noise_at_the_front_desk_is_refused(desk, noise):
    before = guard.refusals["connection"]
    connection = frontdesk.reach("127.0.0.1", desk.port, 1)
    connection.sendall(noise)
    connection.close()
    assert eventually(lambda: guard.refusals["connection"] > before)
    assert enter(desk).id


# Tokens


def test_a_token_is_made_once_and_is_private(tmp_path):
    path = tmp_path / "config" / "token"
    made = guard.read_token(str(path))
    assert len(made) == 64 and guard.read_token(str(path)) == made
    assert path.stat().st_mode & 0o777 == 0o600
    assert [other.name for other in path.parent.iterdir()] == ["token"]


def test_a_token_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "token"
    path.write_text("public")
    path.chmod(0o644)
    with pytest.raises(UserError, match=r"rpc.token_file=.* is not private: chmod 600"):
        guard.read_token(str(path))


def test_the_environments_token_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv(guard.TOKEN_VARIABLE, "from the environment")
    assert guard.read_token(str(tmp_path / "token")) == b"from the environment"
    assert not list(tmp_path.iterdir())


def test_a_signature_is_of_one_call_and_one_token():
    signature = guard.sign(TOKEN, 0, "session", 1, "step")
    assert guard.is_signed(signature, TOKEN, 0, "session", 1, "step")
    others = [(TOKEN, 1, "session", 1, "step"), (TOKEN, 0, "session", 2, "step"), (b"other", 0, "session", 1, "step")]
    assert not any(guard.is_signed(signature, *other) for other in others)
    assert not any(guard.is_signed(no_signature, TOKEN, 0) for no_signature in (None, 7, "", b"", [], "é"))
