"""A last batch of one sample, and networks that cannot train on it: whole runs in this process."""

import copy
import threading
from types import SimpleNamespace

import pytest
from runs import TINY, metrics
from simulation import compose
from test_malformed import play

from splitlearn.errors import PeerError, UserError
from splitlearn.exchange import network
from splitlearn.roles.server import Server
from splitlearn.tasks import task_from

NORMED = ["arch._target_=own_nets.Normed", "cut=first", "compressor=qu", "num_clients=2", *TINY]
SAMPLES = "data.max_train_samples=33"  # client 0 gets 17 of them, and batch_size is 16
ALONE = r"Normed cannot train on a batch of one \(ValueError: Expected more than 1 value per channel"


@pytest.fixture(autouse=True)
def built_before(monkeypatch):
    """The network, as torch.fx cannot trace in several threads."""
    built, lock = network.build(compose(*NORMED), {"num_classes": 10}), threading.Lock()

    def build(cfg, *_, **__):
        with lock:
            return copy.deepcopy(built)

    monkeypatch.setattr(network, "build", build)


def run(folder, *overrides):
    return play(folder, compose(*NORMED, SAMPLES, *overrides), lambda kind, body: body)


def test_it_is_known_before_the_first_step(tmp_path):
    _, error, told = run(tmp_path)
    expected = (
        rf"^client 0 has 17 samples, of which batch_size=16 leaves one .*{ALONE}.*last_batch=merge, last_batch=drop"
    )
    with pytest.raises(UserError, match=expected):
        raise error
    assert isinstance(told, PeerError) and str(error) in str(told)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("how, num_samples", [("merge", 33), ("drop", 32)])
def test_it_can_be_merged_or_dropped(how, num_samples, tmp_path):
    server, *errors = run(tmp_path, f"last_batch={how}")
    assert errors == [None, None]
    (step,) = metrics(tmp_path, "step")
    assert step["clients"] == [0, 1]
    assert server.recorder.ledger.totals["labels_up_bytes"] == num_samples  # a byte each


def test_an_open_run_goes_on_without_the_client_whose_it_is(tmp_path):
    server, *errors = run(tmp_path, "membership.open=true")
    assert errors == [None, None] and server.roster.members.keys() == {1}
    assert [step["clients"] for step in metrics(tmp_path, "step")] == [[1]]


def test_a_batch_size_that_nobodys_samples_make_right_ends_an_open_run(tmp_path):
    _, error, _ = run(tmp_path, "membership.open=true", "batch_size=1")
    assert isinstance(error, UserError) and not isinstance(error, PeerError)
    assert str(error).startswith("batch_size=1 has one sample in each batch")


def server_of(*overrides) -> SimpleNamespace:
    cfg = compose(*NORMED, *overrides)
    roster = SimpleNamespace(members={})
    return SimpleNamespace(cfg=cfg, task=task_from(cfg), alone=network.build(cfg).alone(), roster=roster, channels={})


@pytest.mark.parametrize(
    "overrides, num_train, expected",
    [
        (["batch_size=1"], 5, rf"^batch_size=1 has one sample in each batch, but {ALONE}.*set batch_size=2 or more"),
        (["batch_size=1", "last_batch=merge"], 5, "^batch_size=1 has one sample in each batch"),
        (["last_batch=merge"], 1, rf"^client 3 has a single sample, but {ALONE}.*: give it more"),
        (["last_batch=drop"], 15, r"^client 3 has 15 samples, fewer than batch_size=16, .* set last_batch=keep"),
        (["batch_size=2"], 5, r"^client 3 has 5 samples, of which batch_size=2 leaves one"),
    ],
)
def test_what_cannot_be_trained_on_is_one_sentence(overrides, num_train, expected):
    with pytest.raises(UserError, match=expected):
        Server.check_batches(server_of(*overrides), 3, num_train)


@pytest.mark.parametrize(
    "overrides, num_train",
    [([], 0), ([], 16), ([], 18), (["last_batch=drop"], 17), (["last_batch=merge"], 17), (["batch_size=2"], 6)],
)
def test_what_can_be_is_let_through(overrides, num_train):
    Server.check_batches(server_of(*overrides), 3, num_train)
