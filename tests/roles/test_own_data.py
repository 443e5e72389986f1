"""Clients with data of their own, and with data that do not go together: whole runs in one process, and one real."""

import copy
import shutil
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from runs import metrics, slow, summary
from simulation import compose
from test_malformed import CPU, Proxy, Thread, join
from test_membership import Machine
from test_resume import assert_same

from splitlearn import checks, local, saved
from splitlearn.checkpoints import Checkpoints
from splitlearn.errors import UserError
from splitlearn.exchange import network
from splitlearn.measure.display import Display
from splitlearn.measure.recorder import Recorder
from splitlearn.measure.samples import samples_in_words
from splitlearn.roles.client import Client
from splitlearn.roles.server import Server

OPTIONS = ["data=image_folder", "epochs=1", "batch_size=4", "data.image_size=16", "log.tensorboard=false"]


@pytest.fixture
def owned(tmp_path):
    """owned("c1", a=5, b=3): folder <c1> with so many images of each class for training, and half for test."""

    def make(name, **classes):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        for part in ("train", "test"):
            for cls, number in classes.items():
                folder = tmp_path / name / part / cls
                folder.mkdir(parents=True)
                for i in range(number if part == "train" else number // 2):
                    Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        return tmp_path / name

    return make


@pytest.fixture
def play(tmp_path, monkeypatch):
    """play([root of client 0, …], "key=value", …): the server, its error, and the clients' errors."""
    built, build = {}, network.build

    def run(roots, *overrides, server_root="null"):
        num_clients = f"num_clients={len(roots)}"
        configs = [
            compose(*OPTIONS, num_clients, f"role={role}", f"data.root={root}", *overrides)
            for role, root in (("server", server_root), *(("client", root) for root in roots))
        ]
        for number in (2, 3):  # before there are several threads, of which torch.fx cannot trace in more than one
            built[number] = build(configs[0], {"num_classes": number})
        monkeypatch.setattr(network, "build", lambda cfg, about, **_: copy.deepcopy(built[about["num_classes"]]))
        folder = tmp_path / "run"
        server = Server(
            configs[0], CPU, Recorder(configs[0], folder, Display()), Checkpoints(folder / "checkpoints", 1)
        )
        serving = Thread(server.run)
        clients = [Thread(Client(cfg, index, CPU, Proxy(server, index)).run) for index, cfg in enumerate(configs[1:])]
        serving.start()
        for client in clients:
            client.start()
        join(server, serving, clients)
        return server, serving.error, [client.error for client in clients]

    return run


def test_samples_of_an_epoch_are_those_to_train_on_and_not_all_that_a_data_set_has():
    origin = {"partition": "iid", "num_train": 64, "num_test": 16}
    members = {client: SimpleNamespace(num_train=4, num_test=8, origin=origin) for client in range(2)}
    assert samples_in_words(members, 2, None, True) == "8 samples to train on in each epoch, 16 to test on"
    assert samples_in_words(members, 2, None) == "8 samples to train on, 16 to test on"
    assert samples_in_words(members, 3, None, True) == "64 samples to train on, 16 to test on"  # one is still to come


def test_each_client_trains_and_is_tested_on_all_of_its_own(owned, play, tmp_path, capfd):
    server, error, errors = play([owned("c0", a=6, b=4), owned("c1", a=8, b=12)])
    assert error is None and errors == [None, None]
    assert {client: (member.num_train, member.num_test) for client, member in server.roster.members.items()} == {
        0: (10, 5),
        1: (20, 10),
    }
    out = capfd.readouterr().out
    assert "30 samples to train on, 15 to test on; client 0 brought 10 and 5, client 1 brought 20 and 10" in out
    assert "data: 2 classes (a, b), images of 16×16" in out
    assert "over 15 test samples, 2 clients after 1 epoch" in out
    steps = metrics(tmp_path / "run", "step")
    assert [step["clients"] for step in steps] == [[0, 1]] * 3 + [[1]] * 2  # 3 and 5 batches of 4
    assert summary(tmp_path / "run")["tested"] == {"samples": 15, "samples_in_all": 15, "clients": [0, 1]}
    assert summary(tmp_path / "run")["classes"] == ["a", "b"]


def test_a_client_without_test_samples_is_not_counted(owned, play, tmp_path):
    play([owned("c0", a=6, b=4), owned("c1", a=1, b=1)], "data.test_fraction=0")
    assert summary(tmp_path / "run")["tested"] == {"samples": 5, "samples_in_all": 5, "clients": [0]}


def test_data_without_any_test_samples_are_one_sentence(owned, play):
    _, error, errors = play([owned("c0", a=1, b=1), owned("c1", a=1, b=1)], "data.test_fraction=0", "partition=none")
    assert isinstance(error, UserError) and "there are no test samples: put some into a test/ folder" in str(error)
    assert str(errors[0]) == str(error)


@pytest.mark.parametrize(
    "one, other, words",
    [
        ({"ant": 2, "bee": 2}, {"bee": 2, "cat": 2}, "2 classes instead of 2: it lacks ant and has cat"),
        ({"ant": 2, "bee": 2}, {"ant": 2, "bee": 2, "cat": 2}, "3 classes instead of 2: it has cat"),
    ],
)
def test_classes_that_differ_are_named(one, other, words, owned, play):
    _, error, errors = play([owned("c0", **one), owned("c1", **other)])
    assert f"client 1 does not fit: it has {words}; data.classes=[…] gives one list" in str(error)
    assert str(errors[1]) == str(error)


def test_with_one_list_for_all_a_client_may_lack_some(owned, play, tmp_path):
    roots = [owned("c0", ant=2, bee=2), owned("c1", bee=2, cat=2)]
    _, error, errors = play(roots, "data.classes=[ant,bee,cat]")
    assert error is None and errors == [None, None] and summary(tmp_path / "run")["num_classes"] == 3


def test_parts_of_different_data_are_refused(owned, play):
    _, error, _ = play([owned("c0", a=2, b=2), owned("c1", a=3, b=2)], "partition=iid")
    assert "client 1's data are not client 0's: partition=iid shares one data set out" in str(error)


@pytest.mark.parametrize("partition", ["auto", "none"])
def test_the_same_data_twice_are_refused_unless_it_is_asked_for(partition, owned, play, capfd):
    root = owned("c0", a=2, b=2)
    _, error, _ = play([root, root], f"partition={partition}")
    if partition == "auto":
        assert "client 1 has the same training samples as client 0" in str(error)
    else:
        assert error is None
        assert capfd.readouterr().out.count("clients 0 and 1 have the same training samples (partition=none)") == 1


@pytest.mark.slow
def test_an_open_run_refuses_the_client_and_goes_on(owned, play, tmp_path, capfd):
    roots = [owned("c0", a=6, b=4), owned("c1", a=2, cat=2)]
    server, error, errors = play(roots, "membership.open=true", "membership.step_deadline_s=60", "epochs=20")
    assert error is None and sum(one is None for one in errors) == 1
    (told,) = (str(one) for one in errors if one is not None)
    assert "does not fit: it has" in told
    (client,) = server.roster.members
    tested = summary(tmp_path / "run")["tested"]
    assert tested["clients"] == [client] and tested["samples_in_all"] is None
    out = capfd.readouterr().out
    words = f"over {tested['samples']} test samples, 1 of 2 clients"
    assert out.count(words) == 21  # every epoch's line, and the last
    assert f"client {client} joined with " in out


# The server's own test samples


@pytest.mark.parametrize("topology", ["parallel", slow("sequential")])
@pytest.mark.parametrize("exchange", ["labels_up", "u_shaped"])
def test_the_servers_test_samples_cross_no_wire(topology, exchange, owned, play, tmp_path, capfd):
    test_only = owned("server", a=8, b=8)
    (test_only / "train").rename(tmp_path / "away")
    options = ["evaluate.on=server", f"topology={topology}", f"exchange={exchange}", "epochs=2"]
    server, error, errors = play([owned("c0", a=6, b=4), owned("c1", a=8, b=12)], *options, server_root=test_only)
    assert error is None and errors == [None, None]
    found = summary(tmp_path / "run")
    assert found["tested"] == {"samples": 8, "samples_in_all": 8, "clients": []}
    assert found["other_bytes"]["evaluation_up"] == found["other_bytes"]["evaluation_down"] == 0
    out = capfd.readouterr().out
    assert "over 8 test samples of the server after" in out and "8 of the server to test on" in out

    run = saved.load(tmp_path / "run")  # the same network, whole, on the same samples
    data = server.task.load_test(server.cfg)
    with torch.no_grad():
        batches = [(run.model()(images), labels) for images, labels in data.test]
    correct = sum(int((scores.argmax(1) == labels).sum()) for scores, labels in batches)
    if exchange == "labels_up":
        assert abs(found["test_top1"] - correct / 8) <= 1 / 8  # but for the compressor
    assert run.about["classes"] == ["a", "b"]


def test_the_server_without_test_samples_or_with_other_classes_is_one_sentence(owned, play):
    roots = [owned("c0", a=6, b=4)]
    nothing = owned("nothing", a=1, b=1)
    _, error, _ = play(roots, "evaluate.on=server", "data.test_fraction=0", server_root=nothing)
    assert "evaluate.on=server: there are no test samples at the server's data.root=" in str(error)
    _, error, _ = play(roots, "evaluate.on=server", server_root=owned("other", a=4, c=4))
    assert "the server's test data do not fit (evaluate.on=server): it has 2 classes instead of 2" in str(error)


def test_there_must_be_a_segment_of_all_clients():
    with pytest.raises(UserError, match=r"^evaluate.on=server does not go with topology.average=never"):
        checks.check(compose("evaluate.on=server", "topology.average=never"))


# Whole runs


@pytest.mark.slow
def test_a_run_that_left_out_samples_goes_on_bit_for_bit(owned, tmp_path):
    root = owned("c0", a=10, b=10)
    (root / "train" / "a" / "3.png").write_bytes(b"")
    (root / "test" / "b" / "2.png").write_bytes(b"")
    cfg = compose(*OPTIONS, "num_clients=2", f"data.root={root}", "data.skip_unreadable=true", "epochs=2")
    cfg.checkpoint.every_steps = 1
    cfg.checkpoint.keep = 1000
    local.run(cfg, tmp_path / "whole")
    assert sum(summary(tmp_path / "whole")["unreadable"].values()) == 2
    assert summary(tmp_path / "whole")["tested"] == {"samples": 9, "samples_in_all": 9, "clients": [0, 1]}
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for path in (tmp_path / "part" / "checkpoints").iterdir():
        if int(path.stem.split("-")[1]) > 2:
            path.unlink()
    for path in (tmp_path / "part" / "summary.json", *(tmp_path / "part").glob("*_segment*.pt")):
        path.unlink()
    shutil.copytree(tmp_path / "part", tmp_path / "mended")
    local.run(cfg, tmp_path / "part")
    assert_same(tmp_path / "part", tmp_path / "whole")
    Image.new("RGB", (12, 12)).save(root / "train" / "a" / "3.png")
    with pytest.raises(
        UserError, match=r"client \d's data are not those that this run was started with: put them back"
    ):
        local.run(cfg, tmp_path / "mended")


def test_clients_that_are_started_one_by_one_bring_all_of_their_own(owned, free_port, tmp_path):
    roots = [owned("c0", a=6, b=4), owned("c1", a=8, b=12)]
    with Machine(tmp_path / "ranks", free_port, *OPTIONS, "num_clients=2") as machine:
        ranks = [machine.start("server")]
        ranks += [machine.start("client", index, f"data.root={root}") for index, root in enumerate(roots)]
        assert [rank.wait(120) for rank in ranks] == [0, 0, 0], [rank.out.read_text() for rank in ranks]
    out = ranks[0].out.read_text()
    assert "client 0 brought 10 and 5, client 1 brought 20 and 10" in out
    assert summary(tmp_path / "ranks" / "run")["tested"]["samples"] == 15
