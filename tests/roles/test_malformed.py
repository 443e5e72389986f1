"""What a client that is signed in may send: runs in one process, and one real run. test_messages.py has the checks."""

import copy
import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from runs import ROOT, TINY, metrics, wait_for
from simulation import compose
from test_membership import TOKEN, Machine

from splitlearn import saved
from splitlearn.checkpoints import Checkpoints
from splitlearn.compressors import Payload, UniformQuantizer
from splitlearn.config import shared
from splitlearn.errors import PeerError, Rejoin, UserError
from splitlearn.exchange import network
from splitlearn.exchange.labels_up import Smashed
from splitlearn.exchange.messages import Hello, Step
from splitlearn.measure.display import Display
from splitlearn.measure.recorder import Recorder
from splitlearn.roles.client import Client
from splitlearn.roles.conversation import Conversation
from splitlearn.roles.held import Held
from splitlearn.roles.server import Server
from splitlearn.segments.trainable import state_of
from splitlearn.transport import Inbox

OPTIONS = ["arch=convnet", "num_clients=2", "compressor=qu", *TINY]
OPEN = ["membership.open=true", "membership.step_deadline_s=60"]
HELD = [*OPEN, "exchange=send_once", "exchange.local_epochs=1", "epochs=3"]
CPU = torch.device("cpu")
TEN = {"num_classes": 10, "classes": list("0123456789")}


# One client at once


def test_a_newer_call_takes_back_one_that_was_not_answered():
    box = Inbox(1, 5)
    first, second = (box.deliver(0, "session", number, "hello", ()) for number in (1, 2))
    assert first.wait() == ("failed", "the client has sent its hello since")
    box.take(0, "hello").reply("welcome")
    assert second.wait() == ("done", "welcome")


def test_a_restarted_client_does_not_change_what_the_server_saw(tmp_path):
    cfg = compose(*OPTIONS, "membership.open=true")
    server = Server(cfg, CPU, Recorder(cfg, tmp_path, Display()), Checkpoints(tmp_path, 1))
    hello = Hello(shared(cfg), TEN, 32, 16, None)
    server.inbox.deliver(1, "old", 1, "hello", hello.body())
    server.roster.look()
    anew = server.inbox.deliver(1, "new", 1, "hello", hello.body())
    request, message = server.roster.take(1, Hello)
    assert request.future is not anew and message == hello and not anew.done()
    assert server.roster.look()[1].future is anew

    server.inbox.deliver(1, "newest", 1, "hello", ())
    is_taken = False
    with server.roster.excusing(1):
        server.roster.take(1, Step, Smashed)  # what was seen is no step
        is_taken = True
    assert not is_taken
    assert server.inbox.new_requests()[1].body == ()  # and the newest process is not to blame


# Whole runs in this process: the server in a thread, clients that deliver to its inbox


class Proxy:
    """Calls as of ServerProxy, without the wire. `change(kind, body)` gives what is sent instead."""

    def __init__(self, server: Server, client: int, change=lambda kind, body: body):
        self.server, self.client, self.change, self.session, self.number = server, client, change, "0", 0

    def call(self, kind: str, *body):
        self.number += 1
        return self.call_anew(kind, *body)

    def call_anew(self, kind: str, *body):
        body = self.change(kind, body)
        status, value = self.server.inbox.deliver(self.client, self.session, self.number, kind, body).wait()
        if status == "rejoin":
            raise Rejoin
        if status == "failed":
            raise PeerError(value)
        return value


class Thread(threading.Thread):
    def __init__(self, function):
        super().__init__(daemon=True)
        self.function, self.error = function, None

    def run(self) -> None:
        try:
            self.function()
        except Exception as error:
            self.error = error


@pytest.fixture
def built_before(monkeypatch):
    """The networks, as torch.fx cannot trace in several threads."""
    overrides = {
        name: compose(*OPTIONS, f"exchange={name}") for name in ("labels_up", "u_shaped", "local_loss", "send_once")
    }
    built = {cfg.exchange._target_: network.build(cfg, TEN) for cfg in overrides.values()}
    lock = threading.Lock()

    def build(cfg, *_, **__):
        with lock:
            return copy.deepcopy(built[cfg.exchange._target_])

    monkeypatch.setattr(network, "build", build)


def play(folder, cfg, change, proxy=Proxy) -> tuple[Server, Exception | None, Exception | None]:
    """A run with a client 1 that sends what `change` says; gives the server, and its and client 1's errors."""
    server = Server(cfg, CPU, Recorder(cfg, folder, Display()), Checkpoints(folder / "checkpoints", 1))
    serving = Thread(server.run)
    proxies = Proxy(server, 0), proxy(server, 1, change)
    clients = [Thread(Client(cfg, index, CPU, proxy).run) for index, proxy in enumerate(proxies)]
    for thread in clients:
        thread.start()
    while len(server.inbox.new_requests()) < len(clients):  # so that the first step is of both
        time.sleep(0.01)
    serving.start()
    join(server, serving, clients)
    return server, serving.error, clients[1].error


def join(server: Server, serving: Thread, clients: list[Thread], within_s: float = 60) -> None:
    """Until a run is over, on the server and then on its clients."""
    serving.join(within_s)
    assert not serving.is_alive()
    if serving.error:
        server.inbox.fail(str(serving.error))
    for client in clients:
        client.join(10)
    server.recorder.close()


def of_infinite_size(body: tuple) -> tuple:
    """A step whose smashed data are finite, but not what comes of them."""
    (wire, labels), *others = body
    huge = torch.full(Payload.parse(wire).shape, 3e38)
    return (UniformQuantizer().encode(huge).tensor, labels), *others


def instead(wanted: str, body_of, after: int = 1):
    """Changes the n-th body of a kind."""
    counted = iter(range(1, 1000))

    def change(kind: str, body: tuple) -> tuple:
        return body_of(body) if kind == wanted and next(counted) == after else body

    return change


MISDEEDS = {
    "hello": lambda body: (),
    "step": lambda body: (1,),
    "weights": lambda body: ({"a": torch.zeros(3)}, {}, None, False),
    "evaluate": lambda body: ((body[0][0], None),),
    "state": lambda body: (torch.zeros(3), False),
    "goodbye": lambda body: (1,),
}


@pytest.mark.usefixtures("built_before")
@pytest.mark.parametrize("kind", MISDEEDS)
def test_without_an_open_run_a_malformed_body_ends_it_with_one_sentence(kind, tmp_path):
    cfg = compose(*OPTIONS, "rpc.timeout_s=20")
    _, error, told = play(tmp_path, cfg, instead(kind, MISDEEDS[kind]))
    assert isinstance(error, PeerError) and f"client 1 sent a malformed {kind}: " in str(error)
    assert str(told) == str(error)


@pytest.mark.usefixtures("built_before")
@pytest.mark.parametrize("kind", MISDEEDS)
def test_an_open_run_goes_on_without_the_client(kind, tmp_path, capfd):
    cfg = compose(*OPTIONS, "membership.open=true", "membership.step_deadline_s=60")
    _, error, told = play(tmp_path, cfg, instead(kind, MISDEEDS[kind]))
    assert error is None and (tmp_path / "summary.json").exists()
    assert isinstance(told, PeerError) and f"client 1 sent a malformed {kind}: " in str(told)
    assert capfd.readouterr().out.count(f"client 1 is sent away: {told}") == 1


@pytest.mark.usefixtures("built_before")
@pytest.mark.parametrize("has_network", [True, False], ids=["its data do not fit", "no data would"])
def test_an_open_run_waits_for_the_next_where_the_first_clients_data_do_not_fit(has_network, tmp_path, monkeypatch):
    cfg = compose(*OPTIONS, "membership.open=true", f"task.class_weights={[1] * 10}")
    server = Server(cfg, CPU, Recorder(cfg, tmp_path, Display()), Checkpoints(tmp_path, 1))
    others = {"num_classes": 7, "classes": list("0123456")}
    first, second = (
        server.inbox.deliver(client, "session", 1, "hello", Hello(shared(cfg), about, 32, 16, None).body())
        for client, about in enumerate((others, TEN))
    )
    if has_network:
        server.roster.meet(server)
        assert server.roster.here() == [1] == [*server.roster.members] and server.roster.about == TEN
        status, why = first.wait()
        assert status == "failed" and "task.class_weights has 10 numbers, but the data 7 classes" in why
        assert second.wait()[0] == "done"
        return

    def build(*_, **__):
        raise UserError("cut=nowhere is none")

    monkeypatch.setattr(network, "build", build)  # a mistake in the server's own configuration is no client's
    with pytest.raises(UserError, match="cut=nowhere is none"):
        server.roster.meet(server)


@pytest.mark.usefixtures("built_before")
@pytest.mark.parametrize(
    "options, sentence",
    [
        (["init_from=elsewhere"], "init_from=elsewhere holds another network"),
        (["defence=noise", "defence.noise.clip=1", "defence.noise.delta=1e-5"], "defence.noise: delta claims privacy"),
        (["task.class_weights=[1,1]"], "task.class_weights has 2 numbers, but the data 10 classes"),
        (["evaluate.on=server"], r"the server's test data do not fit \(evaluate.on=server\)"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_of_the_servers_own_ends_an_open_run_and_is_no_clients(options, sentence, tmp_path, monkeypatch):
    if "defence=noise" in options:
        pytest.importorskip("dp_accounting")
    monkeypatch.setattr(saved, "weights", lambda folder: {"other": torch.zeros(1)})
    cfg = compose(*OPTIONS, *OPEN, *options)
    server = Server(cfg, CPU, Recorder(cfg, tmp_path, Display()), Checkpoints(tmp_path, 1))
    about = {"num_classes": 10, "classes": list("abcdefghij")}
    told = server.inbox.deliver(0, "session", 1, "hello", Hello(shared(cfg), about, 32, 16, None).body())
    serving = Thread(server.run)
    serving.start()
    serving.join(60)
    with pytest.raises(UserError, match=sentence):
        raise serving.error or TimeoutError
    assert not isinstance(serving.error, PeerError) and not told.done()


@pytest.mark.parametrize(
    "options, num_train, why",
    [
        (["init_from=elsewhere"], 32, "init_from=elsewhere holds another network: classifier.bias is"),
        (["last_batch=drop"], 1, "client 0 has 1 samples, fewer than batch_size=16"),
    ],
    ids=["its classes", "its samples"],
)
def test_a_first_client_that_is_sent_away_decides_nothing(options, num_train, why, tmp_path, monkeypatch, capfd):
    cfg = compose(*OPTIONS, *OPEN, *options)
    built = network.build(cfg, TEN)
    monkeypatch.setattr(saved, "weights", lambda folder: built.client.state_dict() | built.server.state_dict())
    server = Server(cfg, CPU, Recorder(cfg, tmp_path, Display()), Checkpoints(tmp_path, 1))
    seven = {"num_classes": 7, "classes": list("abcdefg")}
    first, second = (
        server.inbox.deliver(client, "session", 1, "hello", Hello(shared(cfg), about, number, 16, None).body())
        for client, (about, number) in enumerate([(seven, num_train), (TEN, 32)])
    )
    server.runstate.find()
    server.roster.meet(server)
    assert server.roster.here() == [1] and server.roster.about == server.agreement.about == TEN
    assert second.wait()[0] == "done" and first.wait()[0] == "failed" and why in first.wait()[1]
    out = capfd.readouterr().out
    assert f"client 0 is sent away: {first.wait()[1]} (0 of 2 are there)" in out


class OneMore(Proxy):
    """Sends its last step again, once, in the place of the weights."""

    step = None

    def call_anew(self, kind: str, *body):
        if kind == "step":
            self.step = body
        if kind == "weights" and self.step:
            kind, body, self.step = "step", self.step, None
        return super().call_anew(kind, *body)


@pytest.mark.usefixtures("built_before")
@pytest.mark.parametrize("proxy", [OneMore, Proxy], ids=["one more", "of no samples"])
def test_a_step_more_than_an_epoch_has_does_not_end_an_open_run(proxy, tmp_path, capfd):
    cfg = compose(*OPTIONS, "membership.open=true", "membership.step_deadline_s=60")
    hello = instead("hello", lambda body: (*body[:2], 0, *body[3:]), after=1 if proxy is Proxy else 0)
    _, error, _ = play(tmp_path, cfg, hello, proxy)
    assert error is None and (tmp_path / "summary.json").exists()
    assert "client 1 sent one step more than its epoch has" in capfd.readouterr().out


@pytest.mark.usefixtures("built_before")
def test_a_malformed_test_batch_of_a_client_that_comes_anew_meanwhile(tmp_path, monkeypatch):
    cfg = compose(*OPTIONS, "membership.open=true", "membership.step_deadline_s=60")
    score, hello = Conversation._score, Hello(shared(cfg), TEN, 32, 16, None)

    def scored(self, client, *others, **more):
        if client == 0:  # while its batch is computed
            self.server.inbox.deliver(1, "another process", 1, "hello", hello.body())
        return score(self, client, *others, **more)

    monkeypatch.setattr(Conversation, "_score", scored)
    _, error, told = play(tmp_path, cfg, instead("evaluate", MISDEEDS["evaluate"]))
    assert error is None and (tmp_path / "summary.json").exists()
    assert "another process has joined as this client" in str(told)


@pytest.mark.usefixtures("built_before")
@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("exchange", ["labels_up", "local_loss"])  # which answers first, and then computes
def test_values_whose_gradient_is_not_finite_are_one_clients_part(nonfinite, exchange, tmp_path):
    options = [f"nonfinite={nonfinite}", f"exchange={exchange}", "membership.open=true"]
    cfg = compose(*OPTIONS, *options, "membership.step_deadline_s=60", "epochs=2")
    huge = instead("step", of_infinite_size, after=2)
    server, error, told = play(tmp_path, cfg, huge)
    assert error is None
    steps = metrics(tmp_path, "step")
    assert steps[0]["clients"] == [0, 1] and steps[1]["clients"] == [0]
    assert all(tensor.isfinite().all() for tensor in state_of(server.trainable.segment).values())
    if nonfinite == "stop":
        assert "the gradient for what client 1 sent is not finite" in str(told)
    else:
        assert told is None and server.recorder.ledger.totals["skipped"] == 1


@pytest.mark.usefixtures("built_before")
@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_values_whose_gradient_is_not_finite_are_not_held(nonfinite, tmp_path):
    cfg = compose(*OPTIONS, *HELD, f"nonfinite={nonfinite}")
    server, error, told = play(tmp_path, cfg, instead("step", of_infinite_size, after=2))
    assert error is None and server.recorder.ledger.totals["skipped"] == (nonfinite == "skip")
    assert (told is None) == (nonfinite == "skip")
    sent, replayed = ([line for line in metrics(tmp_path, "step") if line["epoch"] == epoch] for epoch in (2, 3))
    assert [line["clients"] for line in sent] == [[0, 1], [0]]
    assert sorted(line["clients"] for line in replayed) == [[0], [0, 1]]


@pytest.mark.usefixtures("built_before")
def test_what_is_held_and_comes_to_nothing_finite_later_is_left_out(tmp_path, monkeypatch, capfd):
    keep = Held.keep

    def as_if(self, client, part, known):
        wire = of_infinite_size(((part.wire, None),))[0][0] if client == 1 else part.wire
        keep(self, client, replace(part, wire=wire), known)

    monkeypatch.setattr(Held, "keep", as_if)
    server, error, told = play(tmp_path, compose(*OPTIONS, *HELD), lambda kind, body: body)
    assert error is told is None
    assert [line["clients"] for line in metrics(tmp_path, "step") if line["epoch"] == 3] == [[0], [0]]
    assert all(tensor.isfinite().all() for tensor in state_of(server.trainable.segment).values())
    assert "leaves out a batch that the server holds: the gradient for what client 1 sent" in capfd.readouterr().out


@pytest.mark.usefixtures("built_before")
def test_what_a_client_has_sent_is_trained_on_where_it_comes_back_with_data_that_do_not_fit(tmp_path, monkeypatch):
    cfg = compose(*OPTIONS, *HELD, "epochs=5", "last_batch=drop")
    servers, answers, run = [], [], Server.run
    monkeypatch.setattr(Server, "run", lambda server: servers.append(server) or run(server))

    def comes_back(body: tuple) -> tuple:
        hello = Hello(shared(cfg), TEN, 1, 16, None)  # less than a batch
        answers.append(servers[0].inbox.deliver(1, "new", 1, "hello", hello.body()).wait())
        return body

    _, error, _ = play(tmp_path, cfg, instead("weights", comes_back, after=2))
    assert error is None and answers[0][0] == "failed"
    replayed = [line["clients"] for line in metrics(tmp_path, "step") if line["epoch"] > 2]
    assert len(replayed) == 6 and all(clients == [0, 1] for clients in replayed)


@pytest.mark.usefixtures("built_before")
def test_a_payload_that_is_none_costs_the_others_nothing(tmp_path):
    cfg = compose(*OPTIONS, "membership.open=true", "membership.step_deadline_s=60")
    found = []
    for name, misdeed in {
        "message": lambda body: (1,),  # seen before anything is computed
        "payload": lambda body: ((body[0][0][:-1], body[0][1]), *body[1:]),
    }.items():
        server, error, told = play(tmp_path / name, cfg, instead("step", misdeed, after=2))
        assert error is None and isinstance(told, PeerError) and "client 1 sent a " in str(told)
        assert [line["clients"] for line in metrics(tmp_path / name, "step")] == [[0, 1], [0]]
        found.append(state_of(server.trainable.segment))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.usefixtures("built_before")
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "fixed"])
def test_a_client_that_goes_wrong_between_two_round_trips(is_open, tmp_path):
    """Its features were sent; what it sends for their gradient is none."""
    cfg = compose(*OPTIONS, "exchange=u_shaped", f"membership.open={is_open}", "membership.step_deadline_s=60")
    server, error, told = play(tmp_path, cfg, instead("step", lambda body: (body[0][:1], *body[1:]), after=4))
    assert isinstance(told, PeerError) and "client 1 sent a malformed step: " in str(told)
    if is_open:
        assert error is None
        assert [line["clients"] for line in metrics(tmp_path, "step")] == [[0, 1], [0]]
        assert all(tensor.isfinite().all() for tensor in state_of(server.trainable.segment).values())
        payloads = [server.recorder.ledger.channels[name]["payloads"] for name in ("smashed", "features", "gradient")]
        assert payloads == [4, 4, 3]  # with those of its first round trip
    else:
        assert str(error) == str(told)


@pytest.mark.usefixtures("built_before")
def test_what_crossed_of_a_test_batch_that_does_not_come_through_is_booked(tmp_path, monkeypatch):
    sent, received, call = [], [], Proxy.call_anew

    def counted(proxy, kind, *body):
        reply = call(proxy, kind, *body)  # none for what is malformed
        if kind == "evaluate":
            sent.append(sum(one.nbytes for one in body[0] if isinstance(one, torch.Tensor)))
            received.append(sum(one.nbytes for one in reply[0] if isinstance(one, torch.Tensor)))
        return reply

    monkeypatch.setattr(Proxy, "call_anew", counted)
    cfg = compose(*OPTIONS, "exchange=u_shaped", "membership.open=true", "membership.step_deadline_s=60")
    server, error, told = play(tmp_path, cfg, instead("evaluate", lambda body: (1,), after=2))
    assert error is None and "client 1 sent a malformed evaluate: " in str(told) and len(sent) == 3
    totals = server.recorder.ledger.totals
    assert (totals["evaluation_up_bytes"], totals["evaluation_down_bytes"]) == (sum(sent), sum(received))


@pytest.mark.usefixtures("built_before")
def test_in_an_open_run_without_averages_each_client_keeps_its_weights(tmp_path):
    cfg = compose(*OPTIONS, "membership.open=true", "topology.average=never", "membership.step_deadline_s=60")
    _, error, told = play(tmp_path, cfg, lambda kind, body: body)
    assert error is told is None
    one, other = (torch.load(tmp_path / f"client_segment_{index}.pt") for index in range(2))
    assert one.keys() == other.keys() and not torch.equal(one["block1.0.weight"], other["block1.0.weight"])


@pytest.mark.usefixtures("built_before")
def test_weights_that_are_not_finite_stay_out_of_the_mean(tmp_path):
    cfg = compose(*OPTIONS, "membership.open=true", "membership.step_deadline_s=60")
    change = instead("weights", lambda body: ({k: (v * math.nan).to(v.dtype) for k, v in body[0].items()}, *body[1:]))
    server, error, told = play(tmp_path, cfg, change)
    assert error is None and "weights that are not finite" in str(told)
    assert all(tensor.isfinite().all() for tensor in server.client_states[0].values())


@pytest.mark.usefixtures("built_before")
def test_a_cut_gradient_that_is_not_finite_is_skipped_without_an_open_run_too(tmp_path):
    cfg = compose(*OPTIONS, "nonfinite=skip", "rpc.timeout_s=20")
    huge = instead("step", of_infinite_size, after=2)
    server, error, told = play(tmp_path, cfg, huge)
    assert error is told is None and server.recorder.ledger.totals["skipped"] == 1
    assert [line["clients"] for line in metrics(tmp_path, "step")] == [[0, 1], [0]]


@pytest.mark.usefixtures("built_before")
def test_a_gradient_that_is_not_sent_after_all_is_not_booked(tmp_path, monkeypatch):
    """It is finite, and encoded before a weight's gradient is found that is not."""
    sent, call, build = [], Proxy.call_anew, Server.build

    def counted(proxy, kind, *body):
        reply = call(proxy, kind, *body)
        if kind == "step" and reply[0] is not None:
            sent.append(reply[0][1].nbytes)
        return reply

    def built(server, about):
        build(server, about)
        gradients = iter(range(100))
        weight = next(server.trainable.segment.parameters())
        weight.register_hook(lambda gradient: gradient * (math.inf if next(gradients) == 1 else 1.0))

    monkeypatch.setattr(Proxy, "call_anew", counted)
    monkeypatch.setattr(Server, "build", built)
    cfg = compose(*OPTIONS, "nonfinite=skip", "rpc.timeout_s=60")
    server, error, told = play(tmp_path, cfg, lambda kind, body: body)
    assert error is told is None and server.recorder.ledger.totals["skipped"] == 1
    assert server.recorder.ledger.totals["gradient_down_bytes"] == sum(sent)


@pytest.mark.usefixtures("built_before")
@pytest.mark.parametrize("exchange", [["labels_up"], ["local_loss", "exchange.send_every=2"]], ids=["sent", "alone"])
def test_a_clients_own_gradients_that_are_not_finite_are_skipped(exchange, tmp_path, monkeypatch):
    """What came to it is finite, and its backward pass makes something of it that is not."""
    segments, real = [], Client.join

    def joined(client):
        real(client)
        if client.index == 1:
            segments.append(client.trainable.segment)
            gradients = iter(range(100))
            weight = next(client.trainable.segment.parameters())
            weight.register_hook(lambda gradient: gradient * (math.inf if next(gradients) == 1 else 1.0))

    monkeypatch.setattr(Client, "join", joined)
    cfg = compose(*OPTIONS, f"exchange={exchange[0]}", *exchange[1:], "nonfinite=skip", "rpc.timeout_s=60")
    server, error, told = play(tmp_path, cfg, lambda kind, body: body)
    assert error is told is None
    assert all(tensor.isfinite().all() for tensor in [*segments[0].state_dict().values()])
    assert all(tensor.isfinite().all() for tensor in server.client_states[0].values())


# A real run


@pytest.mark.slow
def test_a_client_with_the_token_that_misbehaves_is_sent_away_each_time(free_port, tmp_path):
    options = [*OPTIONS, "epochs=100000", "membership.open=true"]
    with Machine(tmp_path, free_port, *options) as machine:
        server = machine.start("server")
        machine.start("client", 0)
        wait_for(server.out, "epoch      1/")
        rogue = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "rogue.py"), *options, f"rpc.port={free_port}", "client.index=1"],
            env={**os.environ, **TOKEN, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=90,
        )
        outcomes = dict(line.split(" | ") for line in rogue.stdout.splitlines())
        assert len(outcomes) == 7, rogue.stdout + rogue.stderr
        assert all(outcome.startswith("PeerError: client 1 sent a ") for outcome in outcomes.values()), outcomes
        after = len(metrics(tmp_path / "run", "step"))
        wait_for(tmp_path / "run" / "metrics.jsonl", f'"step": {after + 20},')
        server.terminate()
        assert server.wait(30) == 143
        out = server.out.read_text()
        assert "Traceback" not in out and out.count("client 1 is sent away: client 1 sent a ") == 7
