import os
import pickle
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
from torchvision.io import decode_png, encode_png

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


@pytest.mark.parametrize("host", ["::1", "nowhere.invalid", "x" * 300])
def test_a_host_that_cannot_be_reached_is_named(host):
    place = Place(rank=0, num_clients=1, host=host, port=1, is_fleet=False)
    with pytest.raises(UserError, match=f"rpc.host={host} cannot be reached"), transport._interface(place):
        pass


def test_a_client_looks_for_the_desk_again_until_the_server_has_come_anew(desk, monkeypatch, free_port):
    monkeypatch.setattr(transport, "RECONNECT_EVERY_S", 0.05)
    monkeypatch.setattr(transport, "_num_fleets", 7)
    monkeypatch.setattr(transport, "_start_agent", lambda *_: "")
    store = transport.host_store("127.0.0.1", 0)
    store.set("splitlearn/7", f"127.0.0.1:{free_port}")  # of ranks that were killed
    threading.Timer(0.3, store.set, ("splitlearn/7", f"127.0.0.1:{desk.port}")).start()
    place = Place(rank=1, num_clients=2, host="127.0.0.1", port=store.port)
    with transport._enter(place, Patience(1, 1, 5), TOKEN) as server:
        assert server.address == f"127.0.0.1:{desk.port}" and desk.is_present(0)
    store.set("splitlearn/7", f"127.0.0.1:{free_port}")
    with pytest.raises(PeerError, match="no server at"), transport._enter(place, Patience(1, 1, 0.2), TOKEN):
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


def test_a_sign_in_gives_both_sides_a_key_of_its_own_for_as_long_as_it_lasts(desk):
    first = enter(desk, session="a")
    assert desk.key_of(0, "a") == first.key != TOKEN
    again = enter(desk, number=first.id, session="a")  # before the server has seen the old connection break
    first.connection.close()
    assert eventually(lambda: desk._present[0] == 1)
    assert desk.key_of(0, "a") == again.key != first.key
    assert desk.key_of(0, "b") is desk.key_of(1, "a") is desk.key_of([], "a") is desk.key_of(0, []) is None
    again.connection.close()
    assert eventually(lambda: desk.key_of(0, "a") is None)


def test_another_process_of_a_client_that_is_connected_is_refused(desk):
    first = enter(desk, session="a")
    with pytest.raises(PeerError, match="another process is connected as client 0: give each its own"):
        enter(desk, session="b")
    assert desk.key_of(0, "a") == first.key
    first.connection.close()
    assert eventually(lambda: not desk.is_present(0))
    assert desk.key_of(0, "b") is None and enter(desk, session="b").key == desk.key_of(0, "b")


def test_in_an_open_run_it_takes_the_place_and_the_first_does_not_come_back(desk):
    desk.replaces = True
    first, second = enter(desk, session="a"), enter(desk, session="b")
    assert desk.key_of(0, "b") == second.key and desk.key_of(0, "a") is None
    with pytest.raises(PeerError, match="another process is connected as client 0"):
        enter(desk, number=first.id, session="a")


def test_who_signs_in_slowly_does_not_stay(desk, monkeypatch):
    monkeypatch.setattr(frontdesk, "HANDSHAKE_S", 0.3)
    before = guard.refusals["connection"]
    connection = frontdesk.reach("127.0.0.1", desk.port, 1)
    started = time.monotonic()
    while guard.refusals["connection"] == before and time.monotonic() < started + 3:
        connection.sendall(b" ")
        time.sleep(0.05)
    assert time.monotonic() < started + 2


def test_a_machine_that_vanishes_is_noticed(desk):
    connection = socket.create_connection(("127.0.0.1", desk.port))
    frontdesk._keep_alive(connection, silence_s=600)
    options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
    idle_s, every_s, count = (connection.getsockopt(socket.IPPROTO_TCP, option) for option in options)
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) and idle_s + count * every_s == 600
    frontdesk._keep_alive(connection, silence_s=1e9)  # more than the system takes


@pytest.mark.parametrize("options", [{"token": b"wrong"}, {"client": 2}, {"client": -1}])
def test_the_front_desk_lets_nobody_else_in(desk, options, caplog):
    before = guard.refusals["connection"]
    with pytest.raises(UserError, match=r"does not let client .* in"):
        enter(desk, **options)
    assert eventually(lambda: "refused connection" in caplog.text) and guard.refusals["connection"] > before
    assert TOKEN.decode() not in caplog.text
    assert not desk.is_present(0)


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
    before = guard.refusals["connection"]
    connection = frontdesk.reach("127.0.0.1", desk.port, 1)
    connection.sendall(noise)
    connection.close()
    assert eventually(lambda: guard.refusals["connection"] > before)
    assert enter(desk).id


# Messages


def test_no_operator_is_left_to_messages_and_torch_goes_on():
    with guard.closed([]):
        left = {schema.name for schema in torch._C._jit_get_all_schemas()}
        assert left <= {"aten::matrix_H", "aten::numpy_T", "aten::mT", "aten::mH"}  # which only look at a tensor
        image = torch.randint(256, (3, 8, 8), dtype=torch.uint8)
        assert torch.equal(decode_png(encode_png(image)), image)  # by torch.ops.image
        layer = torch.nn.Linear(2, 2)
        layer(torch.ones(1, 2)).sum().backward()
        torch.optim.Adam(layer.parameters()).step()
        compiled = torch.compile(torch.relu, backend="eager")
        assert torch.equal(compiled(torch.tensor([-1.0, 1.0])), torch.tensor([0.0, 1.0]))


def test_a_torch_that_keeps_them_elsewhere_is_told_of_and_those_for_files_refuse(monkeypatch, caplog, tmp_path):
    def missing(*_):
        raise OSError

    monkeypatch.setattr(guard.ctypes, "CDLL", missing)
    monkeypatch.setattr(torch._C, "_jit_get_schemas_for_operator", lambda name: [name])
    monkeypatch.setattr(guard, "_library", [])  # what it replaces comes back with its end
    (tmp_path / "secret").write_bytes(b"secret!!")
    with guard.closed([]):
        assert "let only your machines reach it, or use torch 2.11 to 2.15" in caplog.text
        with pytest.raises(RuntimeError, match="aten::from_file is not allowed here"):
            torch.from_file(str(tmp_path / "secret"), False, 2)


@pytest.mark.parametrize(
    "message, told",
    [
        (pickle.dumps(os.system), "posix.system is not allowed"),
        (pickle.dumps(threading.Thread), "threading.Thread is not allowed"),
        (b"\x80\x02csplitlearn.transport\n_deliver\n(N}X\x01\x00\x00\x00xNs\x74b.", "setting an attribute is not"),
        (b"noise", "opcode b'n' unknown"),
        (b"", "exhausted"),
    ],
    ids=["function", "class", "attribute", "noise", "nothing"],
)
def test_a_message_that_asks_for_more_is_refused_and_told_of_once(message, told, caplog):
    with guard.closed([transport._deliver]), pytest.raises((pickle.UnpicklingError, ValueError), match=told):
        guard.internal.deserialize(message, [])
    assert caplog.text.count("refused message") == 1 and told in caplog.text


# Tokens


@pytest.mark.parametrize("token", ["", "fifteen letters"])
def test_a_short_token_is_refused(token, monkeypatch, tmp_path):
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(token)
    with pytest.raises(UserError, match=rf"rpc.token_file={path} has {len(token)} bytes and could be guessed"):
        guard.read_token(str(path))
    if token:
        monkeypatch.setenv(guard.TOKEN_VARIABLE, token)
        with pytest.raises(UserError, match="SPLITLEARN_TOKEN has 15 bytes"):
            guard.read_token(str(path))


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
