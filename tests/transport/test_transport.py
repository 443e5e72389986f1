"""How ranks meet."""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from router import DESK, Router
from simulation import compose

from splitlearn import worker
from splitlearn.console import legible
from splitlearn.errors import Interrupted, PeerError, UserError
from splitlearn.measure.screen import Screen
from splitlearn.transport import Inbox, Patience, Place, agent, connect, connection, entry, host_store, link, store
from splitlearn.transport.frontdesk import MAX_WHY_NBYTES, FrontDesk
from splitlearn.transport.place import is_loopback
from splitlearn.transport.proxy import ServerProxy
from splitlearn.transport.relay import HEADER, NUM_CONNECTIONS, Forward, relay_to_agent

TOKEN = b"secret"  # as in conftest.py


def test_a_port_that_is_taken_is_named(free_port):
    meeting = host_store("127.0.0.1", free_port)
    with pytest.raises(UserError, match=f"rpc.port={free_port}"):
        host_store("127.0.0.1", free_port)
    with pytest.raises(UserError, match=f"rpc.port={free_port}"):
        FrontDesk("127.0.0.1", free_port, str, 1, TOKEN)
    assert meeting.port == free_port


def test_store_and_front_desk_listen_on_their_own_address_alone(desk):
    meeting = host_store("127.0.0.1", 0)
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    for port in (meeting.port, desk.port):
        addresses = [address.split(":")[0] for address in listening if address.endswith(f":{port:04X}")]
        assert "0100007F" in addresses and "00000000" not in addresses


def test_a_wait_for_the_server_is_bounded(free_port):
    for is_fleet in (True, False):
        place = Place(rank=1, num_clients=1, host="127.0.0.1", port=free_port, is_fleet=is_fleet)
        with pytest.raises(UserError, match="no server at"), connect(place, Patience(1, 1, 0.5), TOKEN):
            pass


@pytest.mark.parametrize("host", ["nowhere.invalid", "x" * 300])
def test_a_host_that_is_not_known_is_named_at_once(host):
    place = Place(rank=1, num_clients=1, host=host, port=1, is_fleet=False)
    with pytest.raises(UserError, match=f"rpc.host={host} is not known"), connect(place, Patience(1, 1, 60), TOKEN):
        pass
    with pytest.raises(UserError, match=f"cannot listen on rpc.host={host}"):
        FrontDesk(host, 1, str, 1, TOKEN)
    with pytest.raises(UserError, match=f"MASTER_ADDR={host} cannot be reached"):
        store.own_address(Place(rank=0, num_clients=1, host=host, port=1))


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_names_and_ipv6_addresses_do(host):
    desk = FrontDesk(host, 0, lambda: "127.0.0.1:1", 1, TOKEN)
    entry.enter(entry.Way(host, desk.port), 0, 0, "session", TOKEN, 1).connection.close()
    desk.close()


def test_a_client_looks_for_the_desk_again_until_the_server_has_come_anew(desk, monkeypatch, free_port):
    monkeypatch.setattr(connection, "RECONNECT_EVERY_S", 0.05)
    monkeypatch.setattr(store, "num_fleets", 7)
    monkeypatch.setattr(link.Link, "_start", lambda *_: None)
    meeting = host_store("127.0.0.1", 0)
    meeting.set("splitlearn/7", str(free_port))  # of ranks that were killed
    threading.Timer(0.3, meeting.set, ("splitlearn/7", str(desk.port))).start()
    place = Place(rank=1, num_clients=2, host="127.0.0.1", port=meeting.port)
    with connection._enter(place, Patience(1, 1, 5), TOKEN, print, desk.way.tls) as server:
        assert str(server.link.way) == f"127.0.0.1:{desk.port}" and desk.visits.is_present(0)
    meeting.set("splitlearn/7", str(free_port))
    told = f"no server at 127.0.0.1:{free_port} .* let the other port through the firewall too, which rpc.port=<number>"
    with pytest.raises(PeerError, match=told), connection._enter(place, Patience(1, 1, 0.2), TOKEN, print, None):
        pass


def test_rpc_listens_on_the_loopback_alone_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv(agent.INTERFACE, "eth7")
    address = agent.start_agent("server", 0, Patience(1, 1, 1))
    agent.stop_agent()
    assert address.startswith("uv://127.0.0.1:") and os.environ[agent.INTERFACE] == "eth7"


THIEF = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listens", flush=True)
print(listener.accept()[0].recv(100), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell whose a port is")
def test_a_port_of_rpcs_that_another_process_has_taken_is_not_trusted():
    told = []
    own = connection.ServersAgent(Patience(1, 1, 1), told.append)
    own._served = object()  # as after serve()
    address = own.address()
    assert own.address() == address and agent.is_listening(address) and not told
    port = address.rsplit(":", 1)[1]
    socket.create_connection(("127.0.0.1", int(port))).close()  # after which RPC does not listen any more
    while agent.is_listening(address):
        time.sleep(0.01)
    with subprocess.Popen([sys.executable, "-S", "-c", THIEF, port], stdout=subprocess.PIPE, text=True) as thief:
        assert thief.stdout.readline() == "listens\n"
        assert not agent.is_listening(address)
        near, far = socket.socketpair()
        near.sendall(HEADER.pack(5) + b"hello")
        with pytest.raises(ConnectionRefusedError, match=f"RPC does not listen at {address}"):
            relay_to_agent(far, address, agent.is_listening)  # as where it was taken since address() has looked
        assert thief.stdout.readline() == "b''\n"  # he was told nothing
        assert own.address() != address and "starting it anew" in told[-1]
    own._served = None
    own.close()
    near.close()
    far.close()


@pytest.mark.parametrize("closes_in", ["sign-in", "start"])
def test_a_client_that_leaves_while_it_connects_anew_leaves_nothing_open(closes_in, monkeypatch):
    place = Place(rank=1, num_clients=1, host="127.0.0.1", port=1, is_fleet=False, one_machine=True)
    made = link.Link(place, entry.Way("127.0.0.1", 1), Patience(60, 30, 5), TOKEN, print)
    near, far = socket.socketpair()
    agents = []  # that run

    def enter(*_):
        if closes_in == "sign-in":
            made.close()
        return entry.Entry("127.0.0.1:1", 3, b"key", near)

    def start(*_):
        if closes_in == "start":
            made.close()
        agents.append(1)

    monkeypatch.setattr(link, "RECONNECT_EVERY_S", 0.01)
    monkeypatch.setattr(link, "enter", enter)
    monkeypatch.setattr(link, "start_agent", start)
    monkeypatch.setattr(link, "stop_agent", agents.clear)
    monkeypatch.setattr(link, "has_agent", lambda: bool(agents))
    monkeypatch.setattr(link, "keep_alive", lambda *_: None)  # which this kind of socket has not
    monkeypatch.setattr(made, "answers", lambda _: True)
    with pytest.raises(PeerError, match="this client has left"):
        made.renew(0, time.monotonic() + 60)
    assert not agents and far.recv(10) in (b"", b"{}\n")
    near.close()
    far.close()


def test_a_forward_takes_no_more_connections_than_rpc_opens():
    dialled = []

    def dial():
        dialled.append(1)
        raise OSError("there is no server")

    forward = Forward(dial, "127.0.0.1:1")
    address = forward.address.removeprefix("uv://").rsplit(":", 1)
    for _ in range(NUM_CONNECTIONS - 1):
        socket.create_connection(address).close()
    with pytest.raises(ConnectionError):
        for _ in range(100):
            socket.create_connection(address, timeout=1).close()
            time.sleep(0.02)
    assert len(dialled) == NUM_CONNECTIONS - 1 and forward.trouble == "there is no server"
    forward.close()  # once more does no harm


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_what_only_this_machine_reaches(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["127.example.org", "127.0.0.1.example.org", "10.0.0.1", "", "0.0.0.0", "::"])
def test_what_other_machines_may_reach(host):
    assert not is_loopback(host)


def test_a_process_may_get_another_id_from_a_server_that_was_started_anew():
    for number in (3, 5):
        agent.start_agent("client0", number, Patience(1, 1, 1), "uv://127.0.0.1:1")
        agent.stop_agent()


def test_a_way_that_lets_only_one_connection_pass_is_told_of_in_time_on_both_sides(free_port):
    told = []
    desk = FrontDesk("127.0.0.1", 0, lambda: f"127.0.0.1:{free_port}", 1, TOKEN, tell=told.append)
    router = Router(desk.port, lets_in=lambda kind: kind == DESK)
    place = Place(rank=1, num_clients=1, host="127.0.0.1", port=router.port, is_fleet=False)
    started = time.monotonic()
    sentence = "client 0 is signed in at .*, but its calls do not come through .*: let 4 connections"
    with pytest.raises(PeerError, match=sentence), connect(place, Patience(600, 30, 1), TOKEN):
        pass
    assert time.monotonic() < started + 5
    while not told and time.monotonic() < started + 10:
        time.sleep(0.02)
    desk.close()
    assert "client 0 signed in from 127.0.0.1" in told[-1] and "none of its calls arrived" in told[-1]
    box = Inbox(1, timeout_s=60)
    box.is_alive, box.troubles, box.where = desk.visits.is_present, desk.troubles, "10.0.0.1:29500"
    with pytest.raises(
        PeerError, match=r"client 0 did not come .*none of its calls arrived\).* let them reach 10.0.0.1:29500"
    ):
        box.meet(0.1)


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            r"is no server of splitlearn .*HTTP/1.1 400.*: set rpc.host and rpc.port",
        ),
        (b'{"error": "unknown"}\n', "is no server of splitlearn"),
        (b"", "ends the connection of client 0"),
        (None, "takes the connection of client 0 and says nothing: the server is stopped, or another program"),
    ],
    ids=["http", "json", "closes", "mute"],
)
def test_another_program_at_the_port_is_told_of_in_time(says, told):
    listener = socket.create_server(("127.0.0.1", 0))
    held = []

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
            if says is not None:
                connection.recv(100)
                connection.sendall(says)
                connection.close()

    threading.Thread(target=serve, daemon=True).start()
    place = Place(rank=1, num_clients=1, host="127.0.0.1", port=listener.getsockname()[1], is_fleet=False)
    started = time.monotonic()
    with pytest.raises(PeerError, match=told), connect(place, Patience(600, 30, 1), TOKEN):
        pass
    assert time.monotonic() < started + 5
    listener.close()


def test_a_network_that_answers_nothing_is_told_of_in_time():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as stack:
        for _ in range(2):  # what a full queue does not take is dropped, as a firewall does
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        started = time.monotonic()
        with pytest.raises(PeerError, match=r"no server at .* \(no answer: a firewall may drop it\)"):
            entry.reach(*listener.getsockname(), 0.5)
        assert time.monotonic() < started + 5


@pytest.mark.parametrize("why", ["interrupted", "grüße " * 200, 'two\n"lines"\0' * 200, "語" * 3000])
def test_the_server_says_that_it_has_ended_and_why(desk, why):
    place = Place(rank=1, num_clients=2, host="127.0.0.1", port=desk.port, is_fleet=False)
    made = link.Link(place, desk.way, Patience(60, 30, 5), TOKEN, print)
    made._sign_in(1, 5)
    desk.close(why)
    with pytest.raises(PeerError, match="has ended: ") as caught:
        made.renew(0, time.monotonic() + 5)
    made.close()
    said = str(caught.value).partition("has ended: ")[2]
    assert legible(why.strip(), 1 << 20).startswith(said)  # on one line
    assert len(said.encode()) >= min(len(why.strip().encode()), MAX_WHY_NBYTES - 3)


def test_a_client_that_is_interrupted_does_not_wait_for_a_server_that_is_gone(desk, monkeypatch, tmp_path):
    class Client:
        def __init__(self, *_):
            pass

        def run(self):
            raise Interrupted(2)

    monkeypatch.setattr(worker, "Client", Client)
    place = Place(rank=1, num_clients=2, host="127.0.0.1", port=desk.port, is_fleet=False)
    made = link.Link(place, desk.way, Patience(20, 5, 5), TOKEN, print)
    made._sign_in(1, 5)
    desk.close()
    started = time.monotonic()
    with pytest.raises(Interrupted):
        worker._be_client(compose(), place, tmp_path, ServerProxy(made), Screen(is_shown=False))
    assert time.monotonic() < started + 5
    made.close()
