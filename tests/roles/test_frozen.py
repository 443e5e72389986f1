"""Whole runs in this process whose client segments are frozen, in part or whole."""

import copy
import threading

import pytest
import torch
from runs import TINY, metrics, summary
from simulation import compose
from test_malformed import play

from splitlearn.errors import UserError
from splitlearn.exchange import network

OPTIONS = ["arch=convnet", "num_clients=2", "compressor=qu", *TINY, "epochs=2"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run("key=value", …): folder of a run, and the network that it began with."""

    def run(*overrides):
        cfg = compose(*OPTIONS, *overrides)
        built, lock = network.build(cfg, {"num_classes": 10}), threading.Lock()
        monkeypatch.setattr(network, "build", lambda *_, **__: locked(lock, built))
        _, *errors = play(tmp_path, cfg, lambda kind, body: body)
        assert errors == [None, None]
        return tmp_path, built

    def locked(lock, built):
        with lock:  # torch.fx cannot trace in several threads
            return copy.deepcopy(built)

    return run


@pytest.mark.parametrize(
    "overrides",
    [[], ["pipeline_depth=2"], ["topology.average=step"], ["topology.average=never"], ["compressor@weights=uq"]],
)
def test_a_client_segment_that_is_frozen_costs_the_way_up_alone(overrides, run):
    folder, built = run("freeze=client", *overrides)
    found = summary(folder)
    assert found["downlink"]["bytes"] == found["downlink"]["bytes_per_batch"] == 0 and found["uplink"]["bytes"] > 0
    assert found["other_bytes"]["weights_up"] == found["other_bytes"]["weights_down"] == 0
    assert all(step["downlink_bytes"] == 0 for step in metrics(folder, "step"))
    for path in folder.glob("client_segment*.pt"):
        state = torch.load(path)
        assert all(torch.equal(state[name], value) for name, value in built.client.state_dict().items())
        assert state.keys() == built.client.state_dict().keys()


@pytest.mark.parametrize(
    "overrides",
    [[], ["pipeline_depth=2"], ["topology.average=step"], ["topology.average=never"], ["topology=sequential"]],
)
def test_what_is_frozen_of_it_stays_and_the_rest_trains(overrides, run):
    folder, built = run("freeze=block1", *overrides)
    for path in folder.glob("client_segment*.pt"):
        state = torch.load(path)
        same = {name for name, value in built.client.state_dict().items() if torch.equal(state[name], value)}
        assert same == {name for name in state if name.startswith("block1")}
    if "topology=sequential" not in overrides:
        changing = [v for name, v in built.client.state_dict().items() if not name.startswith("block1")]
        epochs = 1 if "topology.average=never" in overrides else 2
        weights = 2 * epochs * sum(value.nbytes for value in changing)
        if "topology.average=step" in overrides:  # two steps an epoch
            weights += 2 * 2 * 2 * sum(p.nbytes for p in built.client.parameters() if p.requires_grad)
        assert summary(folder)["other_bytes"]["weights_up"] == weights


@pytest.mark.parametrize("frozen", ["client", "[block3,classifier]"], ids=["client", "server"])
@pytest.mark.parametrize("exchange", ["local_loss", "aligned", "hijacking"])
def test_the_other_end_trains_where_one_is_frozen(exchange, frozen, run):
    folder, built = run(f"exchange={exchange}", f"freeze={frozen}", *["evaluate.on=server"] * (exchange == "hijacking"))
    changed = {}
    for end, parts in (("client", built.client), ("server", built.server)):
        state, before = torch.load(folder / f"{end}_segment.pt"), parts.state_dict()
        names = before.keys() & dict(built.model.named_parameters()).keys()
        changed[end] = {name for name in names if not torch.equal(state[name], before[name])}
    assert changed["server" if frozen == "client" else "client"]
    assert not changed["client" if frozen == "client" else "server"]


@pytest.mark.parametrize(
    ("exchange", "frozen", "end"),
    [
        ("send_once", "client", "client"),
        ("send_once", "[block3,classifier]", "server"),
        ("update_by_loss", "[block3,classifier]", "server"),
    ],
)
def test_an_end_that_is_to_train_alone_needs_something_to_train(exchange, frozen, end):
    with pytest.raises(UserError, match=rf"exchange={exchange} has epochs in which the {end} trains alone.*freeze"):
        network.check(compose(*OPTIONS, f"exchange={exchange}", "epochs=20", f"freeze={frozen}"))
