"""How ranks meet."""

import os
import threading
from pathlib import Path

import pytest

from splitlearn.errors import PeerError, UserError
from splitlearn.transport import Patience, Place, ServerProxy, connect, connection, host_store, proxy, store
from splitlearn.transport.frontdesk import FrontDesk
from splitlearn.transport.interface import INTERFACE, bound_interface

TOKEN = b"secret"  # as in conftest.py


def test_a_port_that_is_taken_is_named(free_port):
    meeting = host_store("127.0.0.1", free_port)
    with pytest.raises(UserError, match=f"rpc.port={free_port}"):
        host_store("127.0.0.1", free_port)
    with pytest.raises(UserError, match=f"rpc.port={free_port}"):
        FrontDesk("127.0.0.1", free_port, "", 1, TOKEN)
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


@pytest.mark.parametrize("host", ["::1", "nowhere.invalid", "x" * 300])
def test_a_host_that_cannot_be_reached_is_named(host):
    place = Place(rank=0, num_clients=1, host=host, port=1, is_fleet=False)
    with pytest.raises(UserError, match=f"rpc.host={host} cannot be reached"), bound_interface(place):
        pass


def test_a_client_looks_for_the_desk_again_until_the_server_has_come_anew(desk, monkeypatch, free_port):
    monkeypatch.setattr(connection, "RECONNECT_EVERY_S", 0.05)
    monkeypatch.setattr(store, "num_fleets", 7)
    monkeypatch.setattr(connection, "start_agent", lambda *_: "")
    meeting = host_store("127.0.0.1", 0)
    meeting.set("splitlearn/7", f"127.0.0.1:{free_port}")  # of ranks that were killed
    threading.Timer(0.3, meeting.set, ("splitlearn/7", f"127.0.0.1:{desk.port}")).start()
    place = Place(rank=1, num_clients=2, host="127.0.0.1", port=meeting.port)
    with connection._enter(place, Patience(1, 1, 5), TOKEN) as server:
        assert server.address == f"127.0.0.1:{desk.port}" and desk.is_present(0)
    meeting.set("splitlearn/7", f"127.0.0.1:{free_port}")
    with pytest.raises(PeerError, match="no server at"), connection._enter(place, Patience(1, 1, 0.2), TOKEN):
        pass


def test_a_server_whose_rpc_cannot_be_reached_is_told_of(monkeypatch):
    def break_off(*arguments, **options):
        raise RuntimeError("connection refused")

    monkeypatch.setattr(proxy.rpc, "rpc_async", break_off)
    server = ServerProxy(
        0, "there:1", Patience(10, 10, 10), "session", b"key", reconnect=lambda deadline: ("uv://there:2", b"key")
    )
    with pytest.raises(PeerError, match="at there:1 lets client 0 in, but its RPC at uv://there:2 cannot be reached"):
        server.call("hello")


def test_the_interface_is_chosen_for_a_run_alone(desk, monkeypatch):
    monkeypatch.delenv(INTERFACE, raising=False)
    place = Place(rank=1, num_clients=2, host="127.0.0.1", port=desk.port, is_fleet=False)
    with bound_interface(place) as address:
        assert address == "127.0.0.1" and os.environ[INTERFACE] == "lo"
    assert INTERFACE not in os.environ  # or what else this process starts would listen there
    monkeypatch.setenv(INTERFACE, "eth7")
    with bound_interface(place):
        assert os.environ[INTERFACE] == "eth7"
    assert os.environ[INTERFACE] == "eth7"
