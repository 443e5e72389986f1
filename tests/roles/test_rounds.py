"""A share of the clients in each epoch, and runs that end early: whole runs in this process, and real ones."""

import shutil
import signal
import time
from collections import Counter, defaultdict

import pytest
import test_malformed
import torch
from runs import TINY, metrics, slow, summary, wait_for
from simulation import compose
from test_malformed import CPU, OPTIONS, Proxy, Thread, built_before, join  # noqa: F401  a fixture
from test_membership import Machine
from test_resume import assert_same

from splitlearn import local, saved
from splitlearn.checkpoints import Checkpoints
from splitlearn.errors import PeerError, Stopped
from splitlearn.measure.display import Display
from splitlearn.measure.recorder import Recorder
from splitlearn.privacy.observing import known_segment, observed
from splitlearn.roles import waiting
from splitlearn.roles.client import Client
from splitlearn.roles.member import Member
from splitlearn.roles.rounds import order
from splitlearn.roles.server import Server

SIX = ["num_clients=6", "membership.sample=2", "epochs=3", "data.max_train_samples=90", "data.max_test_samples=30"]
NEVER_BETTER = "early_stopping.min_delta=1"  # of an accuracy

pytestmark = pytest.mark.usefixtures("built_before")


class Calls(Proxy):
    """Notes what a client calls; `impatient` sends what may wait again after a moment, as ServerProxy does."""

    def __init__(self, server, client, noted, impatient=False):
        super().__init__(server, client)
        self.noted, self.impatient = noted, impatient

    def call(self, kind, *body):
        self.noted[self.client].append(kind)
        if self.impatient and kind == "round":
            future = self.server.inbox.deliver(self.client, self.session, self.number + 1, kind, body)
            time.sleep(0.01)
            if not future.done():
                self.noted[self.client].append("again")
        return super().call(kind, *body)

    def give_up(self):
        pass


def play(folder, cfg, impatient=False, meanwhile=lambda server, clients: None):
    """A run; gives its server, what each client called, and what each rank ended with."""
    server = Server(
        cfg, CPU, Recorder(cfg, folder, Display()), Checkpoints(folder / "checkpoints", cfg.checkpoint.keep)
    )
    noted = defaultdict(list)
    clients = [Client(cfg, i, CPU, Calls(server, i, noted, impatient)) for i in range(cfg.num_clients)]
    serving, *threads = [Thread(role.run) for role in (server, *clients)]
    for thread in threads:
        thread.start()
    while len(server.inbox.new_requests()) < len(clients):
        time.sleep(0.01)
    serving.start()
    meanwhile(server, clients)
    join(server, serving, threads, within_s=90)
    assert not any(thread.is_alive() for thread in threads)
    return server, noted, [thread.error for thread in (serving, *threads)]


# A share in each epoch


def test_who_is_drawn_depends_on_seed_and_epoch_alone():
    orders = [order(seed, epoch, 100) for seed in (0, 1) for epoch in (1, 2)]
    assert all(sorted(one) == list(range(100)) for one in orders)
    assert len(set(map(tuple, orders))) == 4 and order(0, 2, 100) == orders[1]


def test_those_that_wait_cost_no_traffic_and_the_last_evaluation_is_over_all(tmp_path, capfd):
    cfg = compose(*OPTIONS, *TINY, *SIX)
    server, noted, errors = play(tmp_path, cfg)
    assert errors == [None] * 7
    drawn = [set(order(cfg.seed, epoch, 6)[:2]) for epoch in (1, 2, 3)]
    assert all(set(line["clients"]) == drawn[line["epoch"] - 1] for line in metrics(tmp_path, "step"))
    num_drawn = Counter(client for clients in drawn for client in clients)
    for client, calls in noted.items():
        found = Counter(calls)
        assert found["step"] == num_drawn[client] * 1  # 15 samples in batches of 16
        assert found["weights"] == num_drawn[client]
        evaluated = sum(client in clients for clients in drawn[:2]) + 1
        assert found["evaluate"] == evaluated  # 5 samples each, one batch
        assert found["hello"] == found["goodbye"] == 1
    nbytes = sum(tensor.nbytes for tensor in server.client_states[0].values())
    up, down = ([line[f"weights_{way}_bytes"] for line in metrics(tmp_path, "epoch")] for way in ("up", "down"))
    assert up == [2 * nbytes] * 3
    waited = len(set(range(6)) - drawn[2])  # and evaluate with the newest at the end
    assert down == [4 * nbytes, 4 * nbytes, (4 + waited) * nbytes]
    labels = [line["labels_up_bytes"] for line in metrics(tmp_path, "epoch")]
    assert "6 clients, 2 in each epoch" in " ".join(capfd.readouterr().out.split())
    assert labels == [2 * 15] * 3


def test_where_no_evaluation_follows_the_mean_is_sent_to_those_alone_that_train_next(tmp_path):
    server, _, errors = play(tmp_path, compose(*OPTIONS, *TINY, *SIX, "evaluate.every=100"))
    assert errors == [None] * 7
    nbytes = sum(tensor.nbytes for tensor in server.client_states[0].values())
    assert [line["weights_down_bytes"] for line in metrics(tmp_path, "epoch")][:2] == [2 * nbytes] * 2


def test_a_client_that_asks_again_while_it_waits_loses_nothing(tmp_path):
    cfg = compose(*OPTIONS, *TINY, *SIX)
    _, _, errors = play(tmp_path / "patient", cfg)
    _, noted, more_errors = play(tmp_path / "impatient", cfg, impatient=True)
    assert errors == more_errors == [None] * 7
    assert any("again" in calls for calls in noted.values())
    assert_same(tmp_path / "impatient", tmp_path / "patient")


@pytest.mark.parametrize("is_open", [False, True], ids=["fixed", "open"])
def test_one_that_waits_is_asked_to_end(is_open, tmp_path, monkeypatch):
    """It ends the run of a fixed fleet, with a checkpoint to go on from, and leaves an open one."""
    monkeypatch.setattr(waiting, "LEAVE_AFTER_S", 0.2)
    options = [*OPTIONS, *TINY, *SIX, "epochs=40", "evaluate.every=40", "membership.step_deadline_s=60"]
    cfg = compose(*options, f"membership.open={is_open}", "membership.quorum=2")

    def meanwhile(server, clients):
        while server.progress.step < 3:
            time.sleep(0.005)
        waiting = order(cfg.seed, server.progress.epoch, 6)[-1]
        clients[waiting].stop.request(signal.SIGTERM)
        asked.append(waiting)

    asked = []
    server, _, (error, *of_clients) = play(tmp_path, cfg, meanwhile=meanwhile)
    told = of_clients[asked[0]]
    assert isinstance(told, Stopped)
    if is_open:
        assert error is None and "left the run" in str(told) and server.progress.epoch == 41
        assert [one for one in of_clients if one is not told] == [None] * 5
    else:
        assert isinstance(error, Stopped) and "with a checkpoint" in str(error)
        assert all(isinstance(one, Stopped) for one in of_clients)
        assert Checkpoints(tmp_path / "checkpoints", 1).latest()["progress"]["step"] == server.progress.step


@pytest.mark.parametrize("options", [["evaluate.on=server"], ["evaluate.every=2"]], ids=" ".join)
def test_a_run_in_turns_is_asked_to_end_while_one_that_had_its_turn_asks(options, tmp_path):
    cfg = compose(*OPTIONS, *TINY, "topology=sequential", "early_stopping.patience=3", "batch_size=4", *options)
    cfg.epochs = 2

    def meanwhile(server, clients):
        while server.progress.step < 9 or 0 not in server.inbox.new_requests():
            time.sleep(0.005)
        server.stop.request(signal.SIGINT)

    play(tmp_path / "whole", cfg)
    _, _, errors = play(tmp_path / "part", cfg, meanwhile=meanwhile)
    assert all(isinstance(error, Stopped) for error in errors) and "with a checkpoint" in str(errors[0])
    assert play(tmp_path / "part", cfg)[-1] == [None] * 3
    assert_same(tmp_path / "part", tmp_path / "whole")


def test_a_run_in_turns_is_asked_to_end_while_one_that_had_its_last_turn_says_goodbye(tmp_path):
    cfg = compose(*OPTIONS, *TINY, "topology=sequential", "evaluate.on=server", "batch_size=4", "epochs=1")

    def meanwhile(server, clients):
        while not (said := server.inbox.new_requests().get(0)) or said.kind != "goodbye":
            time.sleep(0.001)
        server.stop.request(signal.SIGINT)

    play(tmp_path / "whole", cfg)
    _, _, errors = play(tmp_path / "part", cfg, meanwhile=meanwhile)
    assert isinstance(errors[0], Stopped) and "with a checkpoint" in str(errors[0])
    assert str(errors[1]) == str(errors[0])
    assert play(tmp_path / "part", cfg)[-1] == [None] * 3
    assert_same(tmp_path / "part", tmp_path / "whole")


def test_in_a_run_in_turns_no_segment_is_kept_as_that_of_all_clients(tmp_path):
    cfg = compose(*OPTIONS, *TINY, "topology=sequential", "observe.batches=3", "epochs=1")
    assert play(tmp_path, cfg)[-1] == [None] * 3
    assert {one["client"] for one in observed(tmp_path)} == {0, 1} and known_segment(tmp_path, 1) is None


def roster_of(cfg, folder, here):
    """An open run's roster, in an epoch that begins with these clients."""
    server = Server(cfg, CPU, Recorder(cfg, folder, Display()), Checkpoints(folder, 1))
    server.roster.members.update({client: Member(is_in=True, num_batches=3) for client in here})
    server.roster.start_epoch()
    return server.roster


def test_in_an_open_run_those_are_drawn_that_are_there(tmp_path):
    cfg = compose("num_clients=10", "membership.sample=3", "membership.open=true", "membership.quorum=2")
    first = order(cfg.seed, 1, 10)
    roster = roster_of(cfg, tmp_path, first[4:9])
    assert set(roster.in_round()) == set(first[4:7]) and set(roster.waiting()) == set(first[7:9])
    assert not roster.has_room()
    roster.see_off(first[4], "is gone")
    assert roster.has_room() and set(roster.in_round()) == set(first[5:7])
    roster.draw(roster.quorum)
    assert set(roster.in_round()) == set(first[5:7])  # a round that has lost one goes on
    roster.see_off(first[5], "is gone")
    roster.draw(roster.quorum)
    assert set(roster.in_round()) == {first[6], first[7]}  # and has a quorum where it can


def test_a_round_that_begins_with_few_has_room(tmp_path):
    cfg = compose("num_clients=10", "membership.sample=3", "membership.open=true")
    roster = roster_of(cfg, tmp_path, [4])
    assert roster.in_round() == [4] and roster.has_room()
    roster.inbox.is_alive = lambda client: client != 5  # whose process has just ended
    roster.members.update({client: Member(is_in=True) for client in (5, 6)})
    roster.draw(3)
    assert roster.in_round() == [4, 6]


def test_what_a_checkpoint_keeps_of_a_round_is_as_it_was_then(tmp_path):
    cfg = compose("num_clients=10", "membership.sample=3", "membership.open=true")
    roster = roster_of(cfg, tmp_path, [4, 5])
    saved = roster.progress.saved()
    assert saved == vars(roster.progress)
    roster.progress.drawn.append(6)
    assert set(saved["drawn"]) == {4, 5}


# Runs that end early


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["membership.sample=1"],
        slow(["topology.average=never"]),
        slow(["topology=sequential"]),
        ["membership.open=true", "membership.step_deadline_s=60", "checkpoint.every_epochs=null"],
    ],
    ids=" ".join,
)
def test_a_run_ends_where_it_gets_no_better(overrides, tmp_path, capfd):
    cfg = compose(*OPTIONS, *TINY, NEVER_BETTER, "epochs=9", "early_stopping.patience=2", *overrides)
    server, _, errors = play(tmp_path, cfg)
    assert errors == [None] * 3 and server.is_over
    found = summary(tmp_path)
    assert found["epochs"] == 3 and found["best_weights"] is None
    assert found["stopped_early"].startswith("stopped early after epoch 3: in 2 evaluations no accuracy was better")
    assert [line["epoch"] for line in metrics(tmp_path, "evaluation")] == [1, 2, 3]
    assert len(list(tmp_path.glob("client_segment*.pt"))) == (2 if "topology.average=never" in overrides else 1)
    out = capfd.readouterr().out
    assert "after 3 epochs" in out and found["stopped_early"] in " ".join(out.split())
    assert saved.finished_result(tmp_path, cfg) == found["test_top1"]

    if cfg.checkpoint.every_epochs:  # it was killed before it wrote the summary
        again = shutil.copytree(tmp_path, tmp_path / "again")
        for path in (again / "summary.json", *again.glob("*_segment*.pt")):
            path.unlink()
        server, noted, errors = play(again, cfg)
        assert errors == [None] * 3 and server.progress.step == found["steps"]
        assert all(set(calls) == {"hello", "round", "goodbye"} for calls in noted.values())
        assert_same(again, tmp_path)
        assert summary(again)["stopped_early"] == found["stopped_early"]
        assert (again / "confusion.csv").read_text() == (tmp_path / "confusion.csv").read_text()


def test_what_counts_as_better(tmp_path):
    cfg = compose(*OPTIONS, "early_stopping.patience=2", "early_stopping.min_delta=0.1", "epochs=100")
    server = Server(cfg, CPU, Recorder(cfg, tmp_path, Display()), Checkpoints(tmp_path, 1))
    ends = []
    for result in (0.5, 0.55, 0.65, 0.7, 0.74, 0.9):
        server.recorder.last_evaluation = {"top1": result}
        server.verdict.hear()
        ends.append(server.is_over)
    # 0.65 is 0.15 more than 0.5; 0.7 and 0.74 are less than 0.1 more than that
    assert ends == [False, False, False, False, True, True]


def test_the_last_epoch_ends_nothing_early(tmp_path):
    cfg = compose(*OPTIONS, *TINY, NEVER_BETTER, "epochs=2", "early_stopping.patience=1")
    play(tmp_path, cfg)
    assert summary(tmp_path)["stopped_early"] is None and summary(tmp_path)["epochs"] == 2


def test_without_need_nobody_asks(tmp_path):
    _, noted, _ = play(tmp_path, compose(*OPTIONS, *TINY))
    assert all("round" not in calls for calls in noted.values())


@pytest.mark.parametrize("is_open", [False, True], ids=["fixed", "open"])
@pytest.mark.parametrize("options", [["early_stopping.patience=9"], ["membership.sample=1"]], ids=" ".join)
def test_a_malformed_question_ends_a_run_or_the_client(options, is_open, tmp_path):
    cfg = compose(*OPTIONS, *TINY, *options, f"membership.open={is_open}", "membership.step_deadline_s=60", "seed=4")
    assert order(cfg.seed, 1, 2) == [1, 0]  # so that client 1 is asked first
    _, error, told = test_malformed.play(tmp_path, cfg, test_malformed.instead("round", lambda body: (5,)))
    assert isinstance(told, PeerError) and "client 1 sent a malformed round: " in str(told)
    assert error is None if is_open else str(error) == str(told)


# The best


@pytest.mark.parametrize(
    "overrides", [[], slow(["topology.average=never"]), slow(["topology=sequential"])], ids=" ".join
)
def test_the_weights_of_the_best_evaluation_are_kept(overrides, tmp_path):
    options = [*OPTIONS, *TINY, "schedule=constant", "checkpoint.best=true", "optimizer.lr=0.3", *overrides]
    play(tmp_path / "whole", compose(*options, "epochs=5"))
    accuracies = [line["top1"] for line in metrics(tmp_path / "whole", "evaluation")]
    best = 1 + accuracies.index(max(accuracies))
    assert best < 5, accuracies
    found = summary(tmp_path / "whole")
    assert found["best_epoch"] == found["best_weights"]["epoch"] == best
    assert found["best_weights"]["top1"] == max(accuracies)
    play(tmp_path / "short", compose(*options, f"epochs={best}"))
    for path in (tmp_path / "short").glob("[cs]*_segment*.pt"):
        one, other = torch.load(path), torch.load(tmp_path / "whole" / f"best_{path.name}")
        assert all(torch.equal(one[name], other[name]) for name in one)
    run = saved.load(tmp_path / "whole", best=True)
    assert run.step == found["best_weights"]["step"] < saved.load(tmp_path / "whole").step


def test_the_best_weights_of_both_ends_are_replaced_together_or_not_at_all(tmp_path):
    cfg = compose(*OPTIONS, "checkpoint.best=true")
    verdict = Server(cfg, CPU, Recorder(cfg, tmp_path, Display()), Checkpoints(tmp_path, 1)).verdict
    names = "best_client_segment.pt", "best_server_segment.pt"
    verdict._write({name: {"epoch": 1} for name in names})
    (tmp_path / names[1]).with_suffix(".unfinished").mkdir()  # where there is no room for it
    with pytest.raises(OSError):
        verdict._write({name: {"epoch": 2} for name in names})
    assert [torch.load(tmp_path / name) for name in names] == 2 * [{"epoch": 1}]


# Real runs


@pytest.mark.slow
def test_a_round_may_take_longer_than_a_call(free_port, tmp_path):
    """The one client that trains is stopped again and again, each time for less than a call may take."""
    options = [*TINY, "num_clients=3", "membership.sample=1", "batch_size=1", "epochs=20", "evaluate.every=20"]
    with Machine(tmp_path, free_port, *options, "rpc.timeout_s=20") as machine:
        server, *clients = machine.start("server"), *(machine.start("client", index) for index in range(3))
        wait_for(server.out, "epoch  1/20")
        while (steps := metrics(tmp_path / "run", "step"))[-1]["epoch"] == steps[-2]["epoch"]:
            time.sleep(0.01)  # until a round begins
        training = clients[steps[-1]["clients"][0]]
        for _ in range(3):
            training.send_signal(signal.SIGSTOP)
            time.sleep(9)
            done = len(metrics(tmp_path / "run", "step"))
            training.send_signal(signal.SIGCONT)
            while len(metrics(tmp_path / "run", "step")) == done:
                time.sleep(0.01)
        assert [process.wait(120) for process in (server, *clients)] == [0] * 4, server.out.read_text()
    assert max(line["seconds"] for line in metrics(tmp_path / "run", "epoch")) > 20


@pytest.mark.slow
def test_a_fixed_fleet_ends_with_a_client_that_waits_and_goes_on(free_port, tmp_path):
    options = [*TINY, "num_clients=3", "membership.sample=1", "batch_size=2", "epochs=20", "evaluate.every=20"]
    local.run(compose(*options), tmp_path / "whole")
    with Machine(tmp_path / "part", free_port, *options) as machine:
        server, *clients = machine.start("server"), *(machine.start("client", index) for index in range(3))
        wait_for(server.out, "epoch  2/20")
        waiting = clients[order(0, metrics(tmp_path / "part" / "run", "step")[-1]["epoch"], 3)[-1]]
        waiting.terminate()
        assert [process.wait(60) for process in (server, *clients)] == [128 + signal.SIGTERM] * 4
        ranks = [machine.start("server"), *(machine.start("client", index) for index in range(3))]
        assert [process.wait(120) for process in ranks] == [0] * 4
        assert not any("Traceback" in path.read_text() for path in tmp_path.rglob("out.txt"))
    assert_same(tmp_path / "part" / "run", tmp_path / "whole")


@pytest.mark.slow
def test_clients_of_an_open_run_come_and_go_whether_they_wait_or_not(free_port, tmp_path):
    options = [*TINY, "num_clients=4", "membership.sample=2", "membership.open=true", "batch_size=2", "epochs=1000"]
    with Machine(tmp_path, free_port, *options, "membership.step_deadline_s=2", "evaluate.every=1000") as machine:
        server = machine.start("server")
        clients = [machine.start("client", index) for index in range(4)]
        wait_for(server.out, "(4 of 4 are there)")
        wait_for(tmp_path / "run" / "metrics.jsonl", '"step"')

        def epochs_go_on(number: int = 3) -> set[int]:
            """Who takes part in the epochs after the current one."""
            now = metrics(tmp_path / "run", "step")[-1]["epoch"]
            width = len("1000")
            wait_for(server.out, f"epoch {now + number:{width}}/1000")
            steps = metrics(tmp_path / "run", "step")
            return {client for line in steps if now < line["epoch"] <= now + number for client in line["clients"]}

        assert len(epochs_go_on(10)) >= 3
        clients[3].kill()
        clients[3].wait()
        epochs_go_on(1)
        assert 3 not in epochs_go_on(10)
        clients[2].terminate()
        assert clients[2].wait(30) == 128 + signal.SIGTERM
        assert "left the run" in clients[2].out.read_text()
        assert epochs_go_on(10) == {0, 1}
        for index in (2, 3):
            clients[index] = machine.start("client", index)
            wait_for(server.out, f"client {index} joined", times=2)
        assert epochs_go_on(20) == {0, 1, 2, 3}

        server.kill()
        server = machine.start("server")
        wait_for(server.out, "(4 of 4 are there)")
        epochs_go_on()
        server.terminate()
        assert [process.wait(60) for process in (server, *clients)] == [128 + signal.SIGTERM] * 5
        assert not any("Traceback" in path.read_text() for path in tmp_path.glob("*/out.txt"))
    done = Counter((line["epoch"], client) for line in metrics(tmp_path / "run", "step") for client in line["clients"])
    assert max(done.values()) <= 8  # of 16 samples: none of a client's batches was used twice


@pytest.mark.slow
def test_forty_clients(tmp_path):
    options = ["num_clients=40", "membership.sample=4", "epochs=3", "batch_size=8", "data.max_train_samples=640"]
    local.run(compose(*options, "data.max_test_samples=80", "log.tensorboard=false"), tmp_path)
    drawn = {epoch: set(order(0, epoch, 40)[:4]) for epoch in (1, 2, 3)}
    assert all(set(line["clients"]) == drawn[line["epoch"]] for line in metrics(tmp_path, "step"))
    labels = [line["labels_up_bytes"] for line in metrics(tmp_path, "epoch")]
    assert labels == [4 * 16] * 3
