"""Strangers who reach a run's ports get nothing, and the run goes on."""

import base64
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from runs import LAUNCH, ROOT, TINY, children, metrics, started, torchrun, wait_for
from simulation import compose
from test_resume import assert_same
from torch.distributed import TCPStore

from splitlearn import local

ATTACKER = ROOT / "tests" / "transport" / "attacker.py"
TOKEN = {"SPLITLEARN_TOKEN": "a token of the tests"}
NO_OPERATOR = "Cannot find matching operator for schema aten::"
UNSIGNED = "answered ('unsigned', 'the call is not signed by a client that is signed in')"
NO_ANSWER = "timeout (2000 ms)"
STRANGERS = {  # attacks, and what their outcomes say
    "a function by pickle": "posix.system is not allowed in a message",
    "code in an argument": "posix.system is not allowed in a message",
    "an object of a class": (NO_ANSWER, "subprocess.Popen is not allowed in a message"),  # whichever comes first
    "eval": "builtins.eval is not allowed in a message",
    "an attribute of an attribute": "attribute __globals__ is not allowed in a message",
    "an attribute that is set": "setting an attribute is not allowed in a message",
    "noise in place of a pickle": "opcode b'n' unknown",
    "an operator that reads a file": NO_OPERATOR,
    "an operator that computes": NO_OPERATOR,
    "an operator that seeds": NO_OPERATOR,
    "an unsigned call": UNSIGNED,
    "an unsigned call of 64 MB": UNSIGNED,
    "a signature of the wrong type": UNSIGNED,
    "too few arguments": UNSIGNED,
    "a client that there is not": UNSIGNED,
    "a client of the wrong type": UNSIGNED,
    "the RRefs": NO_ANSWER,
    "a method of an RRef": "torch.distributed.rpc.api._rref_typeof_on_owner is not allowed in a message",
}
CLIENTS = {
    "a call while it is new": "answered ('failed', 'the server and client 1 are configured differently",
    "a call of an earlier sign-in": UNSIGNED,
    "a call signed with the token": UNSIGNED,
    "a call as another client": UNSIGNED,
    "a process of another client that comes back": "another process is connected as client 0",
}


def listening(pid: int) -> set[int]:
    """TCP ports that a process listens on."""
    sockets = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(fd))
        except OSError:
            continue  # closed meanwhile
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(line[1].split(":")[1], 16) for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets}


@pytest.fixture
def under_torchrun(tmp_path):
    """A run of two ranks: its folder, and the ports of their RPC."""
    command = [*torchrun(2), *TINY, "epochs=100000", "hydra.run.dir=run"]
    with started(command, tmp_path, **TOKEN) as launcher:
        wait_for(tmp_path / "out.txt", "epoch      1/")
        server, client = sorted(children(launcher.pid))  # they are started in order
        port = int(re.search(r"store listens on .* port (\d+)", (tmp_path / "out.txt").read_text())[1])
        store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=5))
        desk = int(store.get("splitlearn/1"))
        yield tmp_path, [*(listening(server) - {desk}), *listening(client)]


@pytest.fixture
def open_run(tmp_path, free_port):
    """A run of a server and one client of two: both processes, its folder, and the ports of RPC and front desk."""
    options = ["num_clients=2", f"rpc.port={free_port}", *TINY, "epochs=100000", "membership.open=true"]
    with ExitStack() as stack:
        ranks = []
        for role in ("server", "client"):
            (tmp_path / role).mkdir()
            command = [*LAUNCH, f"role={role}", *options, "hydra.run.dir=../run"]
            ranks.append(stack.enter_context(started(command, tmp_path / role, **TOKEN)))
        (tmp_path / "out.txt").symlink_to("server/out.txt")
        wait_for(tmp_path / "out.txt", "epoch      1/")
        (port,) = listening(ranks[0].pid) - {free_port}
        yield *ranks, tmp_path, port, free_port


def attack(run: Path, port: int, expected: dict[str, str | tuple[str, ...]], *desk: int) -> None:
    """Each attack on this port ends as expected, leaves no file, and reads none."""
    folder = run / f"attacker-{port}"
    folder.mkdir()
    out = subprocess.run(
        [sys.executable, str(ATTACKER), f"uv://127.0.0.1:{port}", str(folder), *map(str, desk)],
        env={**os.environ, **(TOKEN if desk else {}), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    ).stdout
    outcomes = dict(line.split(" | ") for line in out.splitlines() if " | " in line)
    assert outcomes.keys() == expected.keys(), out
    for name, told in expected.items():
        outcome = outcomes[name]
        told = (told,) if isinstance(told, str) else told
        assert any(one in outcome for one in told), (name, outcome)
        assert outcome.count("answered") == told[0].count("answered"), (name, outcome)
    assert [path.name for path in folder.iterdir()] == ["secret"]
    assert "secret!!" not in out


def goes_on(run: Path) -> None:
    after = len(metrics(run / "run", "step"))
    wait_for(run / "run" / "metrics.jsonl", f'"step": {after + 20},')


def test_ranks_under_torchrun_refuse_every_attack_and_go_on(under_torchrun):
    run, ports = under_torchrun
    assert len(ports) == 2
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda port: attack(run, port, STRANGERS), ports))
    goes_on(run)
    lines = (run / "out.txt").read_text()
    for told in ("posix.system", "subprocess.Popen", "builtins.eval", "_rref_typeof", "attribute __globals__"):
        assert sum("refused message" in line and told in line for line in lines.splitlines()) >= 2, told
    assert lines.count("refused message: setting an attribute") == 2
    assert lines.count("refused call: it is not signed") == 12


@pytest.mark.slow
def test_an_open_run_refuses_what_no_client_may_do_too(open_run):
    server, client, run, port, desk = open_run
    attack(run, port, STRANGERS | CLIENTS, desk)
    goes_on(run)
    assert client.poll() is None
    server.terminate()
    assert server.wait(30) == client.wait(30) == 128 + signal.SIGTERM
    lines = (run / "out.txt").read_text()
    assert lines.count("refused call: it is not signed") == 9
    assert "does not sign in (another process is connected as client 0" in lines


@pytest.mark.slow
def test_ports_of_rpc_that_strangers_have_closed_are_opened_anew(tmp_path, free_port):
    """Somebody on the server's machine connects to RPC and says nothing, which closes it; then a client comes."""
    options = ["num_clients=2", f"rpc.port={free_port}", *TINY, "epochs=12", "evaluate.every=12"]
    with ExitStack() as stack:
        ranks = []
        for place in (["server"], ["client", "client.index=0"], ["client", "client.index=1"]):
            name = place[0] + place[-1][-1]
            (tmp_path / name).mkdir()
            command = [*LAUNCH, f"role={place[0]}", *place[1:], *options, "hydra.run.dir=../run"]
            ranks.append(stack.enter_context(started(command, tmp_path / name, **TOKEN)))
            if place[-1] == "client.index=0":
                wait_for(tmp_path / "client0" / "out.txt", "waiting for the other clients")
                (port,) = listening(ranks[0].pid) - {free_port}
                socket.create_connection(("127.0.0.1", port)).close()
        assert [rank.wait(90) for rank in ranks] == [0, 0, 0], (tmp_path / "serverr" / "out.txt").read_text()
    out = (tmp_path / "serverr" / "out.txt").read_text()
    assert f"RPC does not listen at 127.0.0.1:{port} any more: starting it anew" in out and "Traceback" not in out
    local.run(compose(*[option for option in options if "rpc" not in option]), tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_what_strangers_write_into_torchruns_static_store_runs_nothing(tmp_path):
    """With --standalone the same runs as the user: torchrun unpickles what it finds there."""
    command = [*torchrun(3), *TINY, "epochs=40", "evaluate.every=40", "hydra.run.dir=run"]
    port = command[command.index("--master-port") + 1]
    owned = tmp_path / "owned"
    with started(command, tmp_path, **TOKEN) as launcher:
        wait_for(tmp_path / "out.txt", "epoch  1/")
        assert f"store listens on every interface of this machine, port {port}: who reaches it" in (
            tmp_path / "out.txt"
        ).read_text().replace("\n", " ")
        store = TCPStore("127.0.0.1", int(port), is_master=False, timeout=timedelta(seconds=5))
        code = base64.b64encode(pickle.dumps(Touch(owned)))
        for key in [*store.list_keys(), "torch.rendezvous.none", "splitlearn/1", "none/splitlearn/1"]:
            store.set(key, code)
        assert launcher.wait(120) == 0
    assert not owned.exists()


class Touch:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)
