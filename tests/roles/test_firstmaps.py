"""A bottleneck's start in whole runs: what it is, what it costs, and clients that send something else, or nothing."""

import copy
import math
import threading
import time
from functools import partial
from itertools import islice

import pytest
import torch
from runs import TINY, metrics, summary
from simulation import compose
from test_malformed import CPU, TEN, Proxy, Thread, join, play

from splitlearn import local, saved
from splitlearn.checkpoints import Checkpoints
from splitlearn.errors import PeerError, UserError
from splitlearn.exchange import network
from splitlearn.exchange.agreement import Agreement
from splitlearn.exchange.channels import channels_of
from splitlearn.exchange.exchange import exchange_from
from splitlearn.exchange.firstmaps import Fitted, Maps, Moments
from splitlearn.measure.display import Display
from splitlearn.measure.recorder import Recorder
from splitlearn.roles.client import Client
from splitlearn.roles.server import Server
from splitlearn.segments import bottleneck
from splitlearn.segments.trainable import state_of
from splitlearn.tasks import task_from
from splitlearn.transport.inbox import LOOK_EVERY_S

OPTIONS = ["arch=convnet", "num_clients=2", "compressor=qu", "bottleneck=8", "bottleneck_batches=2", *TINY]
STILL = ["optimizer.lr=0", "optimizer.weight_decay=0", "evaluate.every=100", "schedule=constant"]


@pytest.fixture
def prepared(monkeypatch):
    """prepared("key=value", …): a configuration, whose network is built before, as torch.fx cannot trace in threads."""

    cut = network.build

    def prepare(*overrides):
        cfg = compose(*OPTIONS, *overrides)
        built, lock = cut(cfg, TEN), threading.Lock()

        def build(*_, **__):
            with lock:
                return copy.deepcopy(built)

        monkeypatch.setattr(network, "build", build)
        return cfg

    return prepare


def keep(seen, key, _, inputs, output):
    seen[key] = inputs[0], output


def first_maps(run, exchange):
    """The maps before each bottleneck for the first batches of both clients, and what the pair makes of them."""
    found = []
    for client in range(2):
        data = task_from(run.cfg).load(run.cfg, client, 2)
        data.train.batch_sampler.start_at(1)
        for images, _ in islice(data.train, 2):
            built = run.network()
            cuts = [bottleneck.name_of(cut.path) for cut in built.cuts]
            built.client.train()
            built.server.train()
            seen = {}
            for name in cuts:
                for layer in ("reduce", "expand"):
                    hook = partial(keep, seen, (name, layer))
                    built.model.get_submodule(f"{name}.{layer}").register_forward_hook(hook)
            with torch.no_grad():
                crossing = built.server(built.client[0](images))
                if exchange == "u_shaped":
                    built.client[1](crossing)
            found.append([(seen[name, "reduce"][0], seen[name, "expand"][1]) for name in cuts])
    return [tuple(map(torch.cat, zip(*batches, strict=True))) for batches in zip(*found, strict=True)]


@pytest.mark.parametrize("exchange", ["labels_up", "u_shaped"])
def test_on_both_sides_it_is_the_pca_of_all_clients_first_maps(exchange, tmp_path, one_thread):
    threads = ["client.num_threads=1", "server.num_threads=1"]
    cfg = compose(*OPTIONS, *STILL, *threads, f"exchange={exchange}", "partition=dirichlet")
    local.run(cfg, tmp_path)
    run = saved.load(tmp_path)
    found = first_maps(run, exchange)
    assert len(found) == (2 if exchange == "u_shaped" else 1)
    for maps, projected in found:
        rows = maps.movedim(1, -1).reshape(-1, maps.shape[1]).double()
        least = torch.linalg.svdvals(rows - rows.mean(0))[8:].square().sum().sqrt()
        assert ((projected - maps).double().norm() / least).item() == pytest.approx(1, rel=1e-4)
    other = summary(tmp_path)["other_bytes"]
    of_pair = 4 * (64 * 8 + 8)  # the client's layer at the first cut, to each client
    of_moments = 2 * 4 * (64 + 64 * 65 // 2)
    if exchange == "labels_up":
        assert (other["bottleneck_up"], other["bottleneck_down"]) == (of_moments, 2 * of_pair)
    else:
        _, width = summary(tmp_path)["bottleneck"][run.network().cuts[1].path]
        samples = sum(min(32, data.num_train) for data in (task_from(cfg).load(cfg, client, 2) for client in range(2)))
        assert other["bottleneck_up"] == of_moments + samples * 4 * 8 * 8 * 8
        assert other["bottleneck_down"] == 2 * (of_pair + 4 * (8 * width + width))
    (epoch,) = metrics(tmp_path, "epoch")
    assert epoch["bottleneck_up_bytes"] == other["bottleneck_up"]


def test_a_start_at_random_costs_nothing_and_a_frozen_client_has_one_too(tmp_path, prepared):
    _, *errors = play(tmp_path / "a", prepared("bottleneck_init=orthogonal"), lambda kind, body: body)
    assert errors == [None, None]
    other = summary(tmp_path / "a")["other_bytes"]
    assert other["bottleneck_up"] == other["bottleneck_down"] == 0
    server, *errors = play(tmp_path / "b", prepared("freeze=client"), lambda kind, body: body)
    assert errors == [None, None]
    state = torch.load(tmp_path / "b" / "client_segment.pt")
    bias = state["bottleneck_block2.reduce.bias"]
    assert bias.abs().max() > 0 and torch.equal(bias, server.client_states[0]["bottleneck_block2.reduce.bias"])
    assert summary(tmp_path / "b")["downlink"]["bytes"] == 0


@pytest.mark.parametrize(
    "overrides",
    [
        ["pipeline_depth=2"],
        ["precision=bf16"],
        ["topology.average=never"],
        ["num_clients=3", "membership.sample=2"],
        ["evaluate.on=server"],
        ["exchange=u_shaped", "precision=bf16", "cut_precision=fp32"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_it_goes_with_all_that_a_run_may_be(overrides, tmp_path, prepared):
    cfg = prepared(*overrides)
    server = Server(cfg, CPU, Recorder(cfg, tmp_path, Display()), Checkpoints(tmp_path / "checkpoints", 1))
    serving = Thread(server.run)
    clients = [Thread(Client(cfg, index, CPU, Proxy(server, index)).run) for index in range(cfg.num_clients)]
    for thread in (serving, *clients):
        thread.start()
    join(server, serving, clients)
    assert [one.error for one in (serving, *clients)] == [None] * (1 + cfg.num_clients)
    assert summary(tmp_path)["other_bytes"]["bottleneck_up"] >= cfg.num_clients * 4 * (64 + 64 * 65 // 2)


def test_savings_are_against_the_unmodified_network(tmp_path, prepared, capfd):
    _, *errors = play(tmp_path, prepared("compressor=none"), lambda kind, body: body)
    found = summary(tmp_path)
    assert errors == [None, None] and found["bottleneck"] == {"block2": [8, 64]}
    for way in ("uplink", "downlink"):
        assert found[way]["uncompressed_bytes"] == 64 * 4 * 64 * 8 * 8 and found[way]["channels"] == [8, 64]
        assert found[way]["saving_by_formula"] == 8 and 7.9 < found[way]["saving"] < 8
    text = " ".join(capfd.readouterr().out.split())
    assert "cut after block2 (8×8×8, bottleneck 8 of 64 channels)" in text and "unmodified network" in text
    assert "starts with 8 of 64 principal components, which keep" in text


# Clients that send something else


@pytest.mark.parametrize("is_open", [False, True])
def test_malformed_moments_are_one_clients_part(is_open, tmp_path, prepared):
    cfg = prepared(f"membership.open={str(is_open).lower()}", "membership.step_deadline_s=60")

    def change(kind, body):
        return (body[0], body[1] * math.nan, body[2]) if kind == "moments" else body

    server, error, told = play(tmp_path, cfg, change)
    words = "client 1 sent a malformed moments: mean holds NaN, Inf"
    assert words in str(told)
    if not is_open:
        assert isinstance(error, PeerError) and words in str(error)
    else:  # it goes on with what the other one has
        assert error is None and {c for line in metrics(tmp_path, "step") for c in line["clients"]} == {0}
        assert server.recorder.ledger.totals["bottleneck_up_bytes"] == 4 * (64 + 64 * 65 // 2)


@pytest.mark.slow
def test_in_an_open_run_one_that_is_too_late_joins_again_with_the_start_of_the_others(tmp_path, prepared):
    cfg = prepared("membership.open=true", "membership.step_deadline_s=1", "epochs=40")
    server = Server(cfg, CPU, Recorder(cfg, tmp_path, Display()), Checkpoints(tmp_path / "checkpoints", 1))
    has_begun, kinds = threading.Event(), []

    def late(kind, body):
        kinds.append(kind)
        if kind == "moments":
            assert has_begun.wait(30)
        return body

    def prompt(kind, body):
        if kind == "step":
            has_begun.set()
        return body

    serving = Thread(server.run)
    clients = [Thread(Client(cfg, 0, CPU, Proxy(server, 0, prompt)).run)]
    clients.append(Thread(Client(cfg, 1, CPU, Proxy(server, 1, late)).run))
    for thread in clients:
        thread.start()
    while len(server.inbox.new_requests()) < 2:
        time.sleep(0.01)
    serving.start()
    join(server, serving, clients)
    assert serving.error is None and clients[1].error is None
    assert kinds[:3] == ["hello", "moments", "hello"] and "moments" not in kinds[2:] and "step" in kinds
    assert LOOK_EVERY_S <= 1  # which the deadline is looked at by


MEAN, TRIANGLE = torch.zeros(64), torch.zeros(64 * 65 // 2)


def agreed():
    cfg = compose(*OPTIONS)
    agreement = Agreement(cfg, task_from(cfg), channels_of(cfg, exchange_from(cfg)))
    built = network.build(cfg, TEN)
    agreement.know(built.client, TEN)
    return agreement, state_of(built.client)


def test_what_an_honest_client_and_server_send_is_fine():
    agreement, state = agreed()
    Moments.parse((0, MEAN, TRIANGLE), "client 1", agreement, 64)
    Maps.parse(([torch.zeros(16, 8, 8, 8), torch.zeros(1, 8, 8, 8)],), "client 1", agreement, (8, 8, 8))
    Maps.parse(([],), "client 1", agreement, (8, 8, 8))
    Fitted.parse(({},), "the server", agreement)
    Fitted.parse(({name: value for name, value in state.items() if "bottleneck" in name},), "the server", agreement)


@pytest.mark.parametrize(
    ("kind", "body", "context", "words"),
    [
        (Moments, (1, MEAN), (64,), "3 parts"),
        (Moments, (-1, MEAN, TRIANGLE), (64,), "count is not a number from 0"),
        (Moments, (True, MEAN, TRIANGLE), (64,), "count is not a number from 0"),
        (Moments, (1, MEAN.double(), TRIANGLE), (64,), "mean is no float32 tensor of shape"),
        (Moments, (1, MEAN, torch.zeros(64, 64)), (64,), "triangle is no float32 tensor of shape"),
        (Moments, (1, MEAN, TRIANGLE - math.inf), (64,), "triangle holds NaN, Inf, or more than 1e"),
        (Maps, (torch.zeros(2, 8, 8, 8),), ((8, 8, 8),), "list of up to 2 batches"),
        (Maps, ([torch.zeros(2, 8, 8, 8)] * 3,), ((8, 8, 8),), "list of up to 2 batches"),
        (Maps, ([torch.zeros(17, 8, 8, 8)],), ((8, 8, 8),), "not of 1 to 16 samples"),
        (Maps, ([torch.zeros(0, 8, 8, 8)],), ((8, 8, 8),), "not of 1 to 16 samples"),
        (Maps, ([torch.tensor(1.0)],), ((8, 8, 8),), "not of 1 to 16 samples"),
        (Maps, ([torch.zeros(2, 8, 8, 9)],), ((8, 8, 8),), "a batch is no float32 tensor of shape"),
        (Maps, ([torch.zeros(2, 8, 8, 8) + math.nan],), ((8, 8, 8),), "a batch holds NaN, Inf"),
        (Fitted, (3,), (), "other weights than the client segment's"),
        (Fitted, ({"classifier.weight": MEAN},), (), "other weights than the client segment's"),
        (Fitted, ({"bottleneck_block2.reduce.bias": MEAN},), (), "bottleneck_block2.reduce.bias is no"),
    ],
)
def test_what_is_malformed_is_refused(kind, body, context, words):
    agreement, _ = agreed()
    with pytest.raises(PeerError, match=f"malformed {kind.kind}: .*{words}"):
        kind.parse(body, "the other end", agreement, *context)


def test_maps_that_are_not_finite_are_one_sentence(tmp_path, prepared, monkeypatch):
    of = bottleneck.Moments.of
    monkeypatch.setattr(bottleneck.Moments, "of", lambda maps: of(maps / 0))
    _, error, told = play(tmp_path, prepared("rpc.timeout_s=5"), lambda kind, body: body)
    assert isinstance(told, UserError) and "the maps of the first batches are not finite" in str(told)
    assert error is None or isinstance(error, PeerError)
