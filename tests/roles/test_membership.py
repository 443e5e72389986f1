"""Ranks that are started on their own: clients that come and go, and a server that comes back, as real processes."""

import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from runs import LAUNCH, TINY, metrics, slow, started, wait_for
from simulation import compose
from test_resume import assert_same

from splitlearn import local

TOKEN = {"SPLITLEARN_TOKEN": "a token of the tests"}


WITH_STATE = ["compressor=klt", "compressor.refresh=20", "compressor@downlink=klt", "downlink.refresh=20"]
WITH_STATE += ["delta=uint8", "compressor@weights=uq"]
CODECS = pytest.mark.parametrize("codecs", [[], slow(WITH_STATE)], ids=["ms", "klt"])


class Machine(ExitStack):
    """Starts ranks below a folder, each with its output in <folder>/<name><n-th start>/out.txt."""

    def __init__(self, folder: Path, port: int, *options: str):
        super().__init__()
        self.folder, self.options, self.starts = folder, [*options, f"rpc.port={port}"], Counter()

    def start(self, role: str, index: int = 0, *options: str):
        name = role if role == "server" else f"client{index}"
        place = ["hydra.run.dir=../run"] if role == "server" else [f"client.index={index}"]
        self.starts[name] += 1
        folder = self.folder / f"{name}-{self.starts[name]}"
        folder.mkdir(parents=True)
        command = [*LAUNCH, *self.options, f"role={role}", *place, *options]
        process = self.enter_context(started(command, folder, **TOKEN))
        process.out = folder / "out.txt"
        return process


@pytest.mark.parametrize(
    "options",
    [
        [
            "epochs=2",
            "accumulate=2",
            "schedule=one_cycle",
            "warmup.epochs=0.5",
            "compressor@weights=uq",
        ],  # all count alike
        slow(["epochs=4", "exchange=send_once", "exchange.local_epochs=2", "membership.step_deadline_s=0.2"]),
        slow(["epochs=5", "exchange=update_by_loss", "exchange.threshold=0.2", "checkpoint.best=true"]),
    ],
    ids=" ".join,
)
def test_with_all_there_it_is_the_same_run(options, tmp_path):
    options += ["num_clients=2", "batch_size=8", "data.max_train_samples=70", "partition=dirichlet"]
    cfg = compose(*options, "checkpoint.every_steps=2", "log.tensorboard=false")
    local.run(cfg, tmp_path / "fixed")
    cfg.membership.update(open=True, quorum=2)
    local.run(cfg, tmp_path / "open")
    assert_same(tmp_path / "open", tmp_path / "fixed")


@pytest.mark.slow
@CODECS
def test_clients_crash_fall_silent_leave_and_come_back_while_the_others_go_on(codecs, free_port, tmp_path):
    options = [*TINY, *codecs, "num_clients=3", "batch_size=2", "epochs=1000", "checkpoint.every_steps=7"]
    options += ["membership.open=true", "membership.step_deadline_s=1"]
    with Machine(tmp_path, free_port, *options) as machine:
        server = machine.start("server")
        clients = [machine.start("client", index) for index in range(3)]
        wait_for(server.out, "(3 of 3 are there)")

        clients[2].kill()
        wait_for(server.out, "client 2 is gone (2 of 3 are there)")
        clients[1].send_signal(signal.SIGSTOP)
        wait_for(server.out, "client 1 sent nothing for 1 s (1 of 3 are there)")
        wait_for(server.out, f"epoch {metrics(tmp_path / 'run', 'step')[-1]['epoch'] + 2:4}/1000")  # one alone
        clients[0].send_signal(signal.SIGTERM)
        assert clients[0].wait(30) == 128 + signal.SIGTERM
        assert "left the run: the same command comes back to it" in clients[0].out.read_text()
        wait_for(server.out, "client 0 left (0 of 3 are there)")

        stranger = machine.start("client", 0, "compressor.bits=3")
        assert stranger.wait(60) == 1
        assert f"compressor.bits (server {0.65 if codecs else 2}, client 3" in stranger.out.read_text()
        clients[1].send_signal(signal.SIGCONT)
        # Client 0 may have ended the epoch alone, before it left; the batch of client 1 is too late then.
        wait_for(server.out, "client 1 is back (1 of 3 are there)", "client 1 joined (1 of 3 are there)")
        for index in (0, 2):
            clients[index] = machine.start("client", index)
        wait_for(server.out, "(3 of 3 are there)", times=2)

        server.kill()
        server = machine.start("server")
        wait_for(server.out, "going on in epoch")
        wait_for(server.out, "(3 of 3 are there)")
        wait_for(server.out, f"epoch {metrics(tmp_path / 'run', 'step')[-1]['epoch'] + 2:4}/1000")
        server.send_signal(signal.SIGTERM)
        assert [process.wait(60) for process in (server, *clients)] == [128 + signal.SIGTERM] * 4
        assert "with a checkpoint: go on with resume=" in server.out.read_text()
        assert not any("Traceback" in path.read_text() for path in tmp_path.glob("*/out.txt"))

    steps = metrics(tmp_path / "run", "step")
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    done = Counter((line["epoch"], client) for line in steps for client in line["clients"])
    assert max(done.values()) == 11  # of 22 samples: none of a client's batches was used twice
    assert {len([client for client in range(3) if done[epoch, client]]) for epoch, _ in done} >= {1, 3}


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2])
def test_a_client_that_waits_for_a_quorum_leaves_when_asked(depth, free_port, tmp_path):
    options = [*TINY, "num_clients=2", "epochs=1000", "membership.open=true", "membership.quorum=2"]
    with Machine(tmp_path, free_port, *options, f"pipeline_depth={depth}") as machine:
        server = machine.start("server")
        for times, number in enumerate((signal.SIGTERM, signal.SIGINT), start=1):
            waiting = machine.start("client", 0)
            wait_for(server.out, "(1 of 2 are there)", times=times)
            time.sleep(1)  # until it has sent its step
            waiting.send_signal(number)
            assert waiting.wait(10) == 128 + number
            assert "left the run: the same command comes back to it" in waiting.out.read_text()
            assert "Traceback" not in waiting.out.read_text()
        wait_for(server.out, "client 0 left (0 of 2 are there)", times=2)

        waiting = machine.start("client", 0)
        wait_for(server.out, "(1 of 2 are there)", times=3)
        time.sleep(1)
        server.send_signal(signal.SIGSTOP)
        waiting.terminate()
        assert waiting.wait(12) == 128 + signal.SIGTERM and "Traceback" not in waiting.out.read_text()
        server.send_signal(signal.SIGCONT)
        for index in range(2):
            machine.start("client", index)
        wait_for(server.out, "epoch    1/1000")
        assert [line["clients"] for line in metrics(tmp_path / "run", "step")][:2] == [[0, 1], [0, 1]]
        server.terminate()
        assert server.wait(30) == 128 + signal.SIGTERM and "Traceback" not in server.out.read_text()


@CODECS
def test_a_killed_server_comes_back_and_its_clients_lose_nothing(codecs, free_port, tmp_path):
    options = [*TINY, *codecs, "num_clients=2", "epochs=12", "checkpoint.every_steps=1"]
    local.run(compose(*options), tmp_path / "whole")
    with Machine(tmp_path / "killed", free_port, *options) as machine:
        server, *clients = [machine.start("server"), machine.start("client", 0), machine.start("client", 1)]
        wait_for(server.out, "epoch  3/12")
        server.kill()
        server = machine.start("server")
        assert [rank.wait(90) for rank in (server, *clients)] == [0, 0, 0]
        assert "going on in epoch" in server.out.read_text()
    assert_same(tmp_path / "killed" / "run", tmp_path / "whole")
