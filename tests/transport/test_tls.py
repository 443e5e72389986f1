"""What is encrypted, and who is let in: by the token, and by certificates."""

import os
import re
import shutil
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import tls
from runs import LAUNCH, ROOT, TINY, run, started, wait_for
from simulation import compose
from test_resume import assert_same

sys.path.insert(0, str(ROOT / "scripts"))
sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))
import make_certificates
from processes import wait_until

from splitlearn import local
from splitlearn.compressors.payload import MAGIC
from splitlearn.errors import PeerError, UserError
from splitlearn.transport import Place, certificates, entry, frontdesk, tls_from
from splitlearn.transport.credentials import FILES, PASSWORD_VARIABLE
from splitlearn.transport.entry import Way
from splitlearn.transport.frontdesk import FrontDesk
from splitlearn.transport.guard import refusals
from splitlearn.transport.strangers import most_strangers
from splitlearn.transport.tls import DESK, RPC, Tls, tls_of_files

TOKEN = b"secret"
MAKE = [sys.executable, str(ROOT / "scripts" / "make_certificates.py")]
SETTINGS = {"enabled": "auto", "folder": None, "cert": None, "key": None, "ca": None, "server_name": "server"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Certificates of a server and two clients, as the command makes them."""
    cwd = tmp_path_factory.mktemp("made")
    status, out = run([*MAKE, "--clients", "2"], cwd)
    assert status == 0 and "server, client0, client1 made" in out and "tls.folder=certificates" in out, out
    return cwd / "certificates"


def of(folder: Path, rank: str, **other: Path) -> Tls:
    """A rank's, with its files or others."""
    files = {name: str(folder / rank / file) for name, file in FILES.items()}
    return tls_of_files(rank, **files | {name: str(path) for name, path in other.items()}, server_name="server")


def pair(client: Tls, server: Tls, purpose: str = DESK):
    """Both ends of a connection, or what each side found wrong with the other."""
    found = {}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()

    def take(name, tls, connection, *purpose):
        try:
            found[name] = tls.wrap(connection, 5, *purpose)
        except OSError as error:
            found[name] = error
            connection.close()

    thread = threading.Thread(target=take, args=("server", server, far))
    thread.start()
    take("client", client, near, purpose)
    thread.join()
    return found["client"], found["server"]


@pytest.fixture
def desk_of(request):
    """Opens a front desk with TLS of some kind, and gives a client's way to it."""

    def open_one(server: Tls | None, client: Tls | None) -> Way:
        desk = FrontDesk("127.0.0.1", 0, lambda: "127.0.0.1:1", num_clients=2, token=TOKEN, tls=server)
        request.addfinalizer(desk.close)
        return Way("127.0.0.1", desk.port, client)

    return open_one


def enter(way: Way, client: int = 0):
    return entry.enter(way, client, 0, "session", TOKEN, 1)


# A connection


def test_both_sides_send_at_once_and_all_arrives_in_order():
    near, far = pair(tls("client0"), tls("server"), RPC)
    assert (far.purpose, near.names) == (RPC, ["server"])
    texts = {side: os.urandom(3_000_017) for side in (near, far)}
    read = {side: bytearray() for side in (near, far)}

    def receive(side):
        buffer = bytearray(70_001)
        while nbytes := side.recv_into(buffer):
            read[side] += buffer[:nbytes]

    def send(side):
        side.sendall(texts[side][:1])
        side.sendall(texts[side][1:])

    threads = [threading.Thread(target=send, args=(side,)) for side in (near, far)]
    receiving = [threading.Thread(target=receive, args=(side,)) for side in (near, far)]
    for thread in (*threads, *receiving):
        thread.start()
    for thread in threads:
        thread.join(30)
    for side in (near, far):
        side.shutdown(socket.SHUT_WR)
    for thread in receiving:
        thread.join(30)
    assert read[near] == texts[far] and read[far] == texts[near]
    near.close()
    far.close()


def test_a_byte_that_is_altered_on_its_way_ends_the_connection():
    near, far = pair(tls("client0"), tls("server"))
    near.sendall(b"one")
    assert far.recv(10) == b"one"
    far._incoming.write(bytes(40))
    with pytest.raises(OSError):
        far.recv(10)


def test_tls_is_13_alone_and_without_tickets():
    near, _ = pair(tls("client0"), tls("server"))
    assert near._tls.version() == "TLSv1.3" and not near._tls.session.has_ticket


# Who is let in


def test_the_token_alone_makes_a_key_and_another_token_another(desk_of):
    assert certificates.of_token(TOKEN).certificate_pem == certificates.of_token(TOKEN).certificate_pem
    assert enter(desk_of(tls("server"), tls("client0"))).id
    before = refusals["connection"]
    with pytest.raises(
        PeerError, match=r"cannot be trusted .*: it has another token: give all the same SPLITLEARN_TOKEN"
    ):
        enter(desk_of(tls("server", b"of another run"), tls("client0")))
    assert wait_until(lambda: refusals["connection"] > before, within_s=3)


def test_one_side_without_tls_is_told_so(desk_of):
    with pytest.raises(PeerError, match=r"tls\.enabled=true on the server: set it alike"):
        enter(desk_of(tls("server"), None))
    with pytest.raises(PeerError, match=r"does not speak TLS .*: set tls.enabled alike on server and clients"):
        enter(desk_of(None, tls("client0")))


def test_a_certificate_lets_in_the_client_that_it_names(folder, desk_of):
    server = of(folder, "server")
    assert enter(desk_of(server, of(folder, "client1")), client=1).id
    with pytest.raises(PeerError, match=r"its certificate is for client1, not for client0: give client\.index or"):
        enter(desk_of(server, of(folder, "client1")), client=0)


def test_nor_does_it_open_rpc_for_another(folder, desk_of):
    server = of(folder, "server")
    way = desk_of(server, of(folder, "client0"))
    key = enter(way, 0).key
    with pytest.raises(PeerError, match="its certificate is for client1, not for client0"):
        entry.open_rpc(Way(way.host, way.port, of(folder, "client1")), 0, "session", key, 2)


@pytest.mark.parametrize("takes", ["server", "client0"])
def test_a_client_cannot_serve_nor_a_server_be_a_client(takes, folder):
    """Whatever name somebody gives: the certificate says what it is for."""
    made = {rank: of(folder, rank) for rank in ("server", "client0")}
    wrong = {name: str(folder / ("client0" if takes == "server" else "server") / FILES[name]) for name in FILES}
    rank = takes
    with pytest.raises(UserError, match=f"is for .*, and this rank is {rank}"):
        tls_of_files(rank, **wrong, server_name="server")
    own = f"{'client0' if takes == 'server' else 'server'}"
    stranger = _unchecked(rank, wrong, own)
    near, far = pair(made["client0"], stranger) if takes == "server" else pair(stranger, made["server"])
    refuser = near if takes == "server" else far
    assert isinstance(refuser, OSError) and "certificate" in refuser.verify_message


def _unchecked(rank: str, files: dict[str, str], server_name: str) -> Tls:
    """TLS of somebody who does not look at what he has."""
    from splitlearn.transport import tls as module

    authorities = Path(files["ca"]).read_text()
    server_name = "server" if rank != "server" else server_name
    return module._tls(rank, Path(files["cert"]), Path(files["key"]), authorities, None, server_name, True)


def test_another_authority_is_not_trusted(folder, tmp_path, desk_of):
    assert run([*MAKE, "--clients", "1"], tmp_path)[0] == 0
    other = tmp_path / "certificates"
    remedy = "give certificates of the same authority as tls.cert and tls.ca on all machines"
    with pytest.raises(
        PeerError, match=rf"cannot be trusted \(self-signed certificate in certificate chain\): {remedy}"
    ):
        enter(desk_of(of(folder, "server"), of(other, "client0")))
    own = of(other, "client0", ca=folder / "client0" / FILES["ca"])  # trusts the server, which does not trust it
    with pytest.raises(PeerError, match=rf"does not let client 0 in \(tlsv1 alert unknown ca\): {remedy}"):
        enter(desk_of(of(folder, "server"), own))


def test_an_expired_certificate_is_told_of_by_its_owner_and_refused_by_others(folder, tmp_path, desk_of, monkeypatch):
    by = _authority(folder)
    monkeypatch.setattr(certificates, "DRIFT", certificates.DRIFT * 3)
    old = certificates.issue(by, "client0", days=-1)
    (tmp_path / "cert.pem").write_bytes(old.certificate_pem)
    (tmp_path / "key.pem").touch(mode=0o600)
    (tmp_path / "key.pem").write_bytes(old.key_pem())
    shutil.copy(folder / "client0" / "ca.pem", tmp_path)
    with pytest.raises(UserError, match=r"tls.cert=.* expired on 20..-..-.. ..:.. UTC: make a new one"):
        of(tmp_path, ".")
    files = {name: str(tmp_path / file) for name, file in FILES.items()}
    with pytest.raises(
        PeerError, match=r"does not let client 0 in .*certificate expired\): make new ones .* --renew\)"
    ):
        enter(desk_of(of(folder, "server"), _unchecked("client0", files, "client0")))


def test_what_to_do_is_said_by_what_is_wrong_with_a_certificate(folder, desk_of):
    files = {name: str(folder / "client0" / file) for name, file in FILES.items()}
    elsewhere = tls_of_files("client0", **files, server_name="training.example")
    with pytest.raises(PeerError, match=r"not valid for 'training\.example'\): set tls\.server_name to a name that"):
        enter(desk_of(of(folder, "server"), elsewhere))
    with pytest.raises(PeerError, match=r"purpose\): have the server's tls\.cert issued with .* serverAuth"):
        enter(desk_of(_unchecked("server", files, "client0"), of(folder, "client0")))
    server = {name: str(folder / "server" / file) for name, file in FILES.items()}
    with pytest.raises(
        PeerError, match=r"does not let client 0 in .*: have this client's tls\.cert issued .* clientAuth"
    ):
        enter(desk_of(of(folder, "server"), _unchecked("client0", server, "server")))


@pytest.mark.parametrize(
    ("rank", "usage", "oid"), [("server", "serverAuth", "SERVER_AUTH"), ("client0", "clientAuth", "CLIENT_AUTH")]
)
def test_a_certificate_for_something_else_is_told_of_at_the_start(rank, usage, oid, folder, tmp_path, monkeypatch):
    oids = certificates.ExtendedKeyUsageOID
    monkeypatch.setattr(oids, oid, oids.EMAIL_PROTECTION)
    made = certificates.issue(_authority(folder), rank, 1)
    monkeypatch.undo()
    (tmp_path / "cert.pem").write_bytes(made.certificate_pem)
    with pytest.raises(UserError, match=rf"tls\.cert=.*cert\.pem has extended key usages, and {usage} is none of them"):
        of(folder, rank, cert=tmp_path / "cert.pem")


def _authority(folder: Path) -> certificates.Identity:
    return make_certificates.read(folder / "authority")


# What a user may get wrong


def test_auto_encrypts_between_machines_alone(folder):
    here, there = Place(0, 2, "127.0.0.1", 1, one_machine=True), Place(0, 2, "10.0.0.1", 1, is_fleet=False)
    assert tls_from(SETTINGS, here, TOKEN) is None and tls_from(SETTINGS, there, TOKEN)
    assert tls_from(SETTINGS, Place(0, 2, "localhost", 1, is_fleet=False), TOKEN) is None
    assert tls_from(SETTINGS | {"enabled": True}, here, TOKEN)
    assert tls_from(SETTINGS | {"enabled": False}, there, TOKEN) is None
    assert tls_from(SETTINGS | {"folder": str(folder)}, here, None).names_clients
    assert tls_from(SETTINGS | {"folder": str(folder / "server")}, here, None).names_clients


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"cert": "a.pem"}, "tls.cert is given without tls.key: it takes tls.cert, tls.key and tls.ca"),
        ({"folder": "a", "key": "b"}, "tls.folder=a and tls.key are both given: leave one out"),
        ({"folder": "nowhere"}, "tls.folder=nowhere has no certificate of server: .* scripts/make_certificates.py"),
        (
            {"folder": "x" * 300},
            r"tls.folder=x+ cannot be read \(File name too long\): give one that this user may read",
        ),
        ({"folder": "~nosuchuser/a"}, "tls.folder=~nosuchuser/a has no certificate of server"),
        ({"cert": "~nosuchuser/a", "key": "b", "ca": "c"}, r"tls.cert=~nosuchuser/a cannot be read \(No such file"),
        ({"cert": "a", "key": "b", "ca": "c"}, r"tls.cert=a cannot be read \(No such file"),
    ],
)
def test_keys_that_do_not_fit_are_named(settings, told):
    with pytest.raises(UserError, match=told):
        tls_from(SETTINGS | settings, Place(0, 2, "10.0.0.1", 1), TOKEN)


def test_files_that_cannot_be_used_are_named(folder, tmp_path, monkeypatch):
    noise = tmp_path / "noise.pem"
    noise.touch(mode=0o600)
    noise.write_bytes(os.urandom(100))
    for name in FILES:
        with pytest.raises(UserError, match=f"tls.{name}={noise} holds no"):
            of(folder, "client0", **{name: noise})
    with pytest.raises(UserError, match=r"is not the key of tls\.cert="):
        of(folder, "client0", key=folder / "client1" / FILES["key"])
    shutil.copy(folder / "client0" / FILES["key"], tmp_path / "open.pem")
    (tmp_path / "open.pem").chmod(0o644)
    with pytest.raises(UserError, match=r"tls.key=.*open.pem is not private \(mode 644\): chmod 600 it"):
        of(folder, "client0", key=tmp_path / "open.pem")
    identity = certificates.issue(_authority(folder), "client0", 1)
    locked, cert = tmp_path / "locked.pem", tmp_path / "cert.pem"
    locked.touch(mode=0o600)
    locked.write_bytes(identity.key_pem(b"a password"))
    cert.write_bytes(identity.certificate_pem)
    with pytest.raises(UserError, match=f"locked.pem is encrypted: give its password in {PASSWORD_VARIABLE}"):
        of(folder, "client0", key=locked, cert=cert)
    monkeypatch.setenv(PASSWORD_VARIABLE, "another")
    with pytest.raises(UserError, match=f"does not open with the password in {PASSWORD_VARIABLE}"):
        of(folder, "client0", key=locked, cert=cert)
    monkeypatch.setenv(PASSWORD_VARIABLE, "a password")
    assert of(folder, "client0", key=locked, cert=cert)


@pytest.mark.slow
def test_the_command_adds_clients_and_overwrites_nothing(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "certificates")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.pem")}
    status, out = run([*MAKE, "--clients", "3"], tmp_path)
    assert status == 0 and "client2 made" in out and "client1" not in out
    assert all(path.read_bytes() == text for path, text in before.items())
    keys = [*tmp_path.rglob("key.pem")]
    assert len(keys) == 5 and {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    assert pair(of(tmp_path / "certificates", "client2"), of(folder, "server"))[1].names == ["client2"]
    status, out = run([*MAKE, "--clients", "3", "--renew"], tmp_path)
    assert status == 0 and "server, client0, client1, client2 made" in out
    (tmp_path / "certificates" / "authority" / "key.pem").unlink()
    status, out = run([*MAKE, "--clients", "4"], tmp_path)
    assert status == 1 and "authority/key.pem is missing: bring it back" in out and "Traceback" not in out


def test_no_certificate_is_to_outlive_its_authority(tmp_path):
    made = tmp_path / "certificates"
    assert make_certificates.make(made, 1, 1, False) == ["server", "client0"]
    with pytest.raises(ValueError, match=r"its authority's own certificate ends in 9 days, .*: give fewer --days, or"):
        make_certificates.make(made, 1, 365, True)
    assert make_certificates.make(made, 1, 365, False) == [] and make_certificates.make(made, 2, 5, False) == [
        "client1"
    ]


def test_an_authority_that_is_out_of_date_is_told_of(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(certificates, "DRIFT", timedelta(days=9))
    path = tmp_path / "ca.pem"
    path.write_bytes(certificates.authority(-1).certificate_pem)
    with pytest.raises(UserError, match=r"tls.ca=.*ca.pem expired on .* UTC: make all certificates anew, or"):
        of(folder, "client0", ca=path)
    path.write_bytes(path.read_bytes() + certificates.authority(1).certificate_pem)  # one of several does
    assert of(folder, "client0", ca=path)


# Strangers


def test_strangers_who_say_nothing_keep_nobody_out(desk_of):
    way = desk_of(tls("server"), tls("client0"))
    silent = [socket.create_connection((way.host, way.port)) for _ in range(most_strangers(2) + 10)]
    begun = [connection.send(b"\x16\x03") for connection in silent[::2]]
    assert len(begun) and enter(way).id
    assert wait_until(lambda: sum(_has_ended(connection) for connection in silent) >= 10, within_s=3)
    for connection in silent:
        connection.close()


def test_a_slow_handshake_has_an_end(desk_of, monkeypatch):
    monkeypatch.setattr(frontdesk, "HANDSHAKE_S", 0.5)
    way = desk_of(tls("server"), tls("client0"))
    slow, began = socket.create_connection((way.host, way.port)), time.monotonic()
    hello = _client_hello()
    for byte in hello:  # one by one
        with suppress(OSError):
            slow.send(bytes([byte]))
        time.sleep(0.05)
        if _has_ended(slow):
            break
    assert _has_ended(slow) and time.monotonic() < began + 3


def _client_hello() -> bytes:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with pytest.raises(TimeoutError):
        tls("client0").wrap(near, 0.1)
    return far.recv(1 << 16)


def _has_ended(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True


# Whole runs


def test_nothing_that_is_sent_can_be_read_on_the_way_and_the_run_is_the_same(folder, tmp_path, free_port):
    """A client with a certificate through a wire that is listened to, and one without TLS, to see that one hears."""
    heard = {}
    for name, options in (("tls", [f"tls.folder={folder}"]), ("plain", [])):
        wire = Wire(free_port)
        heard[name] = wire.heard
        ranks = {}
        for rank in ("server", "client0"):
            (tmp_path / name / rank).mkdir(parents=True)
            place = ["role=server", f"rpc.port={free_port}", "hydra.run.dir=../run"]
            if rank != "server":
                place = ["role=client", f"rpc.port={wire.port}"]
            command = [*LAUNCH, *TINY, "num_clients=1", *options, *place]
            ranks[rank] = started(command, tmp_path / name / rank, SPLITLEARN_TOKEN="a token of the tests")
        with ranks["server"] as server, ranks["client0"] as client:
            status = [rank.wait(120) for rank in (server, client)]
        out = "".join((tmp_path / name / rank / "out.txt").read_text() for rank in ranks)
        assert status == [0, 0] and "Traceback" not in out, out
        assert (", encrypted:" in out) == (name == "tls")
        wire.close()
    assert b"".join(heard["plain"]).count(MAGIC) >= 8
    encrypted = b"".join(heard["tls"])
    assert MAGIC not in encrypted and b"deliver" not in encrypted and len(encrypted) > 1e6
    assert_same(tmp_path / "tls" / "run", tmp_path / "plain" / "run")
    secrets = [(folder / rank / "key.pem").read_text().split("\n")[1].encode() for rank in ("server", "client0")]
    secrets.append(b"a token of the tests")
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or not any(secret in path.read_bytes() for secret in secrets), path


class Wire:
    """Carries connections to the server's port, and keeps what goes over them."""

    def __init__(self, port: int):
        self._to, self.heard = port, []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._to))
                except OSError:
                    near.close()  # the server is not there yet
                    continue
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while part := source.recv(1 << 16):
                self.heard.append(part)
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)


def test_a_run_on_one_machine_can_be_encrypted_too(tmp_path):
    cfg = compose(*TINY, "num_clients=2")
    local.run(cfg, tmp_path / "plain")
    cfg.tls.enabled = True
    local.run(cfg, tmp_path / "tls")
    assert_same(tmp_path / "tls", tmp_path / "plain")


@pytest.mark.slow
def test_a_wrong_token_is_one_sentence_on_both_sides(tmp_path, free_port):
    for name in ("server", "client"):
        (tmp_path / name).mkdir()
    options = [*LAUNCH, *TINY, "num_clients=1", f"rpc.port={free_port}", "tls.enabled=true"]
    server = [*options, "role=server", "rpc.connect_timeout_s=8"]
    # The client waits for the server, not the other way round: a process takes long to start on a machine at work.
    with started([*options, "role=client"], tmp_path / "client", SPLITLEARN_TOKEN="u" * 16) as client:
        wait_for(tmp_path / "client" / "out.txt", "waiting for the server at")
        status, out = run(server, tmp_path / "server", SPLITLEARN_TOKEN="t" * 16)
        assert status == 1 and "client 0 did not come" in out, out
        assert re.search("refused connection: .* does not sign in", out), out
        assert client.wait(60) == 1
    out = (tmp_path / "client" / "out.txt").read_text()
    assert "cannot be trusted" in out and "another token" in out and "Traceback" not in out, out
