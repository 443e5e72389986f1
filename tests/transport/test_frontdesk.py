import os
import socket
import threading
import time
from contextlib import ExitStack

import pytest

from splitlearn.errors import PeerError, UserError
from splitlearn.transport import entry, frontdesk, guard, relay, visits
from splitlearn.transport.guard import refusals
from splitlearn.transport.strangers import AtMost

TOKEN = b"secret"  # as in conftest.py


def enter(desk, client=0, number=0, session="one", token=TOKEN):
    return entry.enter(desk.way, client, number, session, token, 1)


def eventually(condition) -> bool:
    return any(condition() or threading.Event().wait(0.02) for _ in range(100))


def test_the_front_desk_knows_who_is_there_and_gives_each_process_an_id(desk):
    first, second, again = enter(desk), enter(desk, 1), enter(desk, 1)
    assert first.address == desk.address()
    assert len({first.id, second.id, again.id}) == 3
    second.connection.close()
    again.connection.close()
    assert eventually(lambda: not desk.visits.is_present(1)) and desk.visits.is_present(0)
    back = enter(desk, 1, second.id)
    assert back.id == second.id


def test_a_sign_in_gives_both_sides_a_key_of_its_own_for_as_long_as_it_lasts(desk):
    first = enter(desk, session="a")
    assert desk.visits.key_of(0, "a") == first.key != TOKEN
    again = enter(desk, number=first.id, session="a")  # before the server has seen the old connection break
    first.connection.close()
    assert eventually(lambda: desk.visits._present[0] == 1)
    assert desk.visits.key_of(0, "a") == again.key != first.key
    assert (
        desk.visits.key_of(0, "b")
        is desk.visits.key_of(1, "a")
        is desk.visits.key_of([], "a")
        is desk.visits.key_of(0, [])
        is None
    )
    again.connection.close()
    assert eventually(lambda: desk.visits.key_of(0, "a") is None)


def test_of_strangers_the_oldest_of_the_address_that_has_most_goes():
    few, made = AtMost(4), []
    with ExitStack() as stack:
        for whose in ("honest", "flood", "flood", "flood", "flood", "another", "flood", "third"):
            near, far = map(stack.enter_context, socket.socketpair())
            stack.enter_context(few.one(near, whose))
            made.append((whose, near, far))
        assert list(few._here.values()) == ["honest", "another", "flood", "third"]
        for whose, near, far in made:
            far.settimeout(0)
            if near not in few._here:
                assert whose == "flood" and far.recv(1) == b""  # it was ended


def test_a_process_keeps_its_id_whatever_of_its_connections_broke(desk):
    first = enter(desk, session="a")
    again = enter(desk, number=first.id, session="a")  # before this end has seen the old connection break
    third = enter(desk, number=first.id, session="a")
    assert first.id == again.id == third.id
    assert eventually(lambda: desk.visits._present[0] == 1)
    assert enter(desk, 1).id != first.id  # the old connections' end does not set it free


@pytest.mark.parametrize("session", ["one", None], ids=["one process", "processes"])
def test_a_client_has_one_connection_to_the_desk_however_often_it_comes(desk, session):
    desk.visits.replaces = True  # which lets new processes in
    before, entered = threading.active_count(), []
    for number in range(20):
        known = entered[-1].id if session and entered else 0
        entered.append(enter(desk, number=known, session=session or str(number)))
    assert eventually(lambda: desk.visits._present[0] == 1 and threading.active_count() <= before + 2)
    assert all(entry.connection.recv(1) == b"" for entry in entered[:-1])
    assert desk.visits.key_of(0, session or "19") == entered[-1].key


def test_no_more_of_rpc_is_carried_for_a_client_than_it_needs(desk):
    with socket.create_server(("127.0.0.1", int(desk.address().rsplit(":", 1)[1]))) as agent:
        signed_in, carried = enter(desk, session="a"), []
        for _ in range(frontdesk.MAX_RELAYS + 2):
            near = entry.open_rpc(desk.way, 0, "a", signed_in.key, 1)
            near.sendall(relay.HEADER.pack(5) + b"hello")
            carried.append((near, agent.accept()[0]))
        assert [near.recv(1) for near, _ in carried[:2]] == [b"", b""]
        for near, far in carried[2:]:
            far.sendall(b"!")
            assert near.recv(1) == b"!"
            far.close()


def test_a_process_that_did_not_say_that_it_leaves_is_expected_for_a_while(desk, monkeypatch):
    monkeypatch.setattr(visits, "RETURN_WITHIN_S", 0.3)
    assert not desk.visits.is_expected(0)
    first, second = enter(desk, 0), enter(desk, 1)
    first.connection.close()
    second.connection.sendall(b"{}\n")
    second.connection.close()
    assert eventually(lambda: not desk.visits.is_present(0) and not desk.visits.is_present(1))
    assert desk.visits.is_expected(0) and not desk.visits.is_expected(1)
    assert eventually(lambda: not desk.visits.is_expected(0))


def test_rpc_is_carried_for_who_is_signed_in_alone(desk):
    with socket.create_server(("127.0.0.1", int(desk.address().rsplit(":", 1)[1]))) as agent:
        signed_in = enter(desk, session="a")
        for client, session, key in ((0, "b", signed_in.key), (1, "a", signed_in.key), (0, "a", TOKEN), ([], {}, b"")):
            with pytest.raises(PeerError, match="this client is not signed in"):
                entry.open_rpc(desk.way, client, session, key, 1)
        near = entry.open_rpc(desk.way, 0, "a", signed_in.key, 1)
        agent.settimeout(0.2)
        with pytest.raises(TimeoutError):  # RPC would not listen any more after a connection that says nothing
            agent.accept()
        agent.settimeout(None)
        first = relay.HEADER.pack(5) + b"hello"
        near.sendall(first[:3])
        near.sendall(first[3:])
        far, _ = agent.accept()
        assert far.recv(100) == first
        large = os.urandom(1 << 20)
        threading.Thread(target=near.sendall, args=(large,), daemon=True).start()
        received = b""
        while len(received) < len(large):
            received += far.recv(1 << 16)
        assert received == large
        far.sendall(b"back")
        assert near.recv(10) == b"back"
        far.close()
        assert near.recv(10) == b""  # the end of one side is the other's


def test_another_process_of_a_client_that_is_connected_is_refused(desk):
    first = enter(desk, session="a")
    with pytest.raises(PeerError, match="another process is connected as client 0: give each its own"):
        enter(desk, session="b")
    assert desk.visits.key_of(0, "a") == first.key
    first.connection.close()
    assert eventually(lambda: not desk.visits.is_present(0))
    assert desk.visits.key_of(0, "b") is None and enter(desk, session="b").key == desk.visits.key_of(0, "b")


def test_in_an_open_run_it_takes_the_place_and_the_first_does_not_come_back(desk):
    desk.visits.replaces = True
    first, second = enter(desk, session="a"), enter(desk, session="b")
    assert desk.visits.key_of(0, "b") == second.key and desk.visits.key_of(0, "a") is None
    with pytest.raises(PeerError, match="another process is connected as client 0"):
        enter(desk, number=first.id, session="a")


def test_who_signs_in_slowly_does_not_stay(desk, monkeypatch):
    monkeypatch.setattr(frontdesk, "HANDSHAKE_S", 0.3)
    before = refusals["connection"]
    connection = entry.reach("127.0.0.1", desk.port, 1)
    started = time.monotonic()
    while refusals["connection"] == before and time.monotonic() < started + 3:
        connection.sendall(b" ")
        time.sleep(0.05)
    assert time.monotonic() < started + 2


def test_a_machine_that_vanishes_is_noticed(desk):
    connection = socket.create_connection(("127.0.0.1", desk.port))
    relay.keep_alive(connection, silence_s=600)
    options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
    idle_s, every_s, count = (connection.getsockopt(socket.IPPROTO_TCP, option) for option in options)
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) and idle_s + count * every_s == 600
    assert idle_s <= 60  # a router forgets a connection that nothing comes over
    relay.keep_alive(connection, silence_s=1e9)  # more than the system takes


@pytest.mark.parametrize("options", [{"token": b"wrong"}, {"client": 2}, {"client": -1}])
def test_the_front_desk_lets_nobody_else_in(desk, options, caplog):
    guard._lines.clear()  # those of other tests, after which it would be silent
    before = refusals["connection"]
    with pytest.raises(UserError, match=r"does not let client .* in"):
        enter(desk, **options)
    assert eventually(lambda: "refused connection" in caplog.text) and refusals["connection"] > before
    assert TOKEN.decode() not in caplog.text
    assert ("it has another token, or was stopped" in caplog.text) == ("token" in options)
    assert not desk.visits.is_present(0)


@pytest.mark.parametrize(
    "noise",
    [
        b"",
        b"\n",
        b"{}\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"x" * 5000,
        b"[" * 1020 + b"\n",
        b'{"nonce": {}, "client": []}\n',
        b'{"nonce": "", "client": 1e999, "id": 0, "session": ""}\n',
    ],
    ids=range(8),
)
def test_noise_at_the_front_desk_is_refused(desk, noise):
    before = refusals["connection"]
    connection = entry.reach("127.0.0.1", desk.port, 1)
    connection.sendall(noise)
    connection.close()
    assert eventually(lambda: refusals["connection"] > before)
    assert enter(desk).id


def test_a_client_is_gone_again_whatever_fails_in_its_welcome(desk, monkeypatch):
    def fails(*_):
        raise RuntimeError("RPC cannot be started")

    monkeypatch.setattr(desk._server, "handle_error", lambda *_: None)  # which would print it
    address, changes = desk.address, []
    desk.address, desk.on_change = fails, lambda: changes.append(1)
    with pytest.raises(PeerError, match="ends the connection"):
        enter(desk)
    assert eventually(lambda: not desk.visits.is_present(0) and changes)
    desk.address = address
    assert enter(desk, session="another process").id


def test_a_console_that_cannot_be_written_to_keeps_nobody_out(desk):
    def full(_):
        raise OSError(28, "No space left on device")

    changes = []
    desk.tell, desk.on_change = full, lambda: changes.append(1)
    enter(desk).connection.close()  # before any of its calls arrived, which is told
    assert eventually(lambda: not desk.visits.is_present(0) and changes)
    first = enter(desk)
    desk.hears(0)
    again = enter(desk, number=first.id)  # which is told too
    first.connection.close()
    again.connection.close()
    assert eventually(lambda: not desk.visits.is_present(0)) and enter(desk, session="two").id
