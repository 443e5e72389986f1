"""Epochs in which clients, or the server, train alone: whole runs in this process."""

import math
import shutil
import signal
import threading
import time

import pytest
import torch
from runs import TINY, summary
from simulation import compose
from test_malformed import CPU, OPTIONS, built_before  # noqa: F401  a fixture
from test_resume import assert_same
from test_rounds import play

from splitlearn.checkpoints import Checkpoints
from splitlearn.errors import Stopped
from splitlearn.measure.display import Display
from splitlearn.measure.recorder import Recorder
from splitlearn.roles import waiting
from splitlearn.roles.client import Client
from splitlearn.roles.server import Server

ONCE = [*OPTIONS, *TINY, "exchange=send_once", "batch_size=4"]

pytestmark = pytest.mark.usefixtures("built_before")


@pytest.fixture
def one_is_slow(monkeypatch):
    """Client 1 does not train before this event is set."""
    goes_on, train_batches = threading.Event(), Client.train_batches

    def late(client):
        if client.index == 1:
            goes_on.wait(60)
        train_batches(client)

    monkeypatch.setattr(Client, "train_batches", late)
    monkeypatch.setattr(waiting, "LISTEN_EVERY_S", 0.01)
    return goes_on


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("asked", [0, 1], ids=["one that waits", "one that trains"])
def test_a_client_that_is_asked_to_end_in_a_local_epoch_ends_a_fixed_fleet_after_it(asked, one_is_slow, tmp_path):
    cfg = compose(*ONCE, "exchange.local_epochs=2", "epochs=3")

    def meanwhile(server, clients):
        until(lambda: server.progress.num_updates and 0 not in server.inbox.new_requests())  # it was taken, or trains
        until(lambda: noted_weights(server, 0))
        clients[asked].stop.request(signal.SIGTERM)
        if asked == 0:
            until(lambda: noted_weights(server, 0)[-1] is True)
        one_is_slow.set()

    def noted_weights(server, client):
        latest = server.inbox._latest[client]
        return latest.kind == "weights" and latest.is_taken and latest.body

    server, _, errors = play(tmp_path / "part", cfg, meanwhile=meanwhile)
    assert all(isinstance(error, Stopped) for error in errors), errors
    assert "with a checkpoint" in str(errors[0]) and server.progress.epoch == 2
    assert play(tmp_path / "part", cfg)[-1] == [None] * 3
    play(tmp_path / "whole", cfg)
    assert_same(tmp_path / "part", tmp_path / "whole")


def test_so_it_does_in_an_epoch_that_the_server_replays(one_is_slow, tmp_path):
    one_is_slow.set()
    cfg = compose(*ONCE, "exchange.local_epochs=1", "epochs=9", "evaluate.every=100")

    def meanwhile(server, clients):
        until(lambda: server.progress.epoch == 3 and server.progress.epoch_step)
        clients[1].stop.request(signal.SIGTERM)

    server, _, errors = play(tmp_path / "part", cfg, meanwhile=meanwhile)
    assert all(isinstance(error, Stopped) for error in errors), errors
    assert "with a checkpoint" in str(errors[0]) and server.progress.epoch in (3, 4)
    assert play(tmp_path / "part", cfg)[-1] == [None] * 3
    play(tmp_path / "whole", cfg)
    assert_same(tmp_path / "part", tmp_path / "whole")


def test_it_leaves_an_open_run_after_its_local_epoch(one_is_slow, tmp_path):
    cfg = compose(*ONCE, "exchange.local_epochs=2", "epochs=3", "membership.open=true")

    def meanwhile(server, clients):
        until(lambda: 0 in server.inbox.new_requests() and server.inbox.new_requests()[0].kind == "weights")
        clients[1].stop.request(signal.SIGTERM)
        one_is_slow.set()

    server, _, errors = play(tmp_path, cfg, meanwhile=meanwhile)
    assert errors[:2] == [None, None] and "left the run" in str(errors[2])
    assert server.roster.members[1].state_epoch == 1


@pytest.mark.parametrize("is_open", [False, True], ids=["fixed", "open"])
def test_the_server_waits_for_those_that_train_alone_for_as_long_as_it_takes(is_open, tmp_path):
    cfg = compose(*ONCE, "exchange.local_epochs=2", "epochs=4", f"membership.open={is_open}")
    roster = Server(cfg, CPU, Recorder(cfg, tmp_path, Display()), Checkpoints(tmp_path, 1)).roster
    waits = []
    for roster.progress.epoch in range(1, 5):
        roster.start_epoch()
        waits.append((roster.inbox.timeout_s, roster.deadline_s))
    given = cfg.rpc.timeout_s, cfg.membership.step_deadline_s
    without_end = math.inf, math.inf
    assert waits == [without_end, without_end, given, without_end]


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["partition=dirichlet", "partition.alpha=0.1", "last_batch=merge"], [2]),  # 9 and 55 samples: one waits
        (["topology=sequential"], [2, 4, 6]),  # of a turn's last batches, and of an epoch's end
        (["topology=sequential", "evaluate.every=2", "exchange.send_every=2"], [1, 2]),
        (["topology=sequential", "exchange=labels_up"], [2]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_a_run_that_goes_on_counts_nothing_twice_and_leaves_nothing_out(overrides, steps, tmp_path):
    options = ["exchange=local_loss", "epochs=2", "checkpoint.every_steps=1", "checkpoint.keep=1000"]
    cfg = compose(*OPTIONS, *TINY, *options, *overrides)
    play(tmp_path / "whole", cfg)
    for step in steps:
        part = shutil.copytree(tmp_path / "whole", tmp_path / str(step))
        for path in part.glob("checkpoints/*"):
            if int(path.stem.split("-")[1]) > step:
                path.unlink()
        for path in (part / "summary.json", *part.glob("*_segment*.pt")):
            path.unlink()
        assert play(part, cfg)[-1] == [None] * 3
        assert_same(part, tmp_path / "whole")
        found, expected = (summary(folder) for folder in (part, tmp_path / "whole"))
        assert found["all_bytes"] == expected["all_bytes"] and found["other_bytes"] == expected["other_bytes"]


def test_what_a_defence_adds_to_the_loss_trains_with_batches_that_are_not_sent_too(tmp_path):
    options = [*OPTIONS, *TINY, "defence=nopeek", "schedule=constant", "batch_size=8"]
    segments = {}
    for overrides in (
        ["exchange=local_loss"],
        ["exchange=local_loss", "exchange.send_every=3"],
        ["exchange=send_once", "exchange.local_epochs=1", "epochs=2"],
        ["exchange=send_once", "exchange.local_epochs=1", "epochs=2", "defence.nopeek.weight=0"],
    ):
        folder = tmp_path / " ".join(overrides)
        assert play(folder, compose(*options, *overrides))[-1] == [None] * 3
        segments[folder.name] = torch.load(folder / "client_segment.pt")
    *same, without = segments.values()
    for one in same:  # the maps that go up train nothing on the clients
        assert all(torch.equal(one[name], same[0][name]) for name in one)
    assert not all(torch.equal(without[name], same[0][name]) for name in without)


def test_local_epochs_are_weighed_by_samples_in_an_open_run_too(tmp_path):
    dirichlet = ["partition=dirichlet", "partition.alpha=0.1", "last_batch=merge"]  # 9 and 55 samples
    options = [*ONCE, *dirichlet, "exchange.local_epochs=2", "epochs=3", "topology.weighting=samples"]
    for name in ("false", "true"):
        cfg = compose(*options, f"membership.open={name}", "membership.quorum=2", "membership.step_deadline_s=60")
        assert play(tmp_path / name, cfg)[-1] == [None] * 3
    assert_same(tmp_path / "true", tmp_path / "false")
