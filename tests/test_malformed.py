"""What a client that is signed in may send: the checks alone, runs in one process, and one real run."""

import copy
import functools
import math
import os
import subprocess
import sys
import threading
import time

import pytest
import torch
import torch.nn.functional as F
from runs import ROOT, TINY, metrics, wait_for
from simulation import compose
from test_membership import TOKEN, Machine
from torch import nn

from splitlearn import models
from splitlearn.agreement import Agreement
from splitlearn.checkpoints import Checkpoints
from splitlearn.client import Client
from splitlearn.compressors import Payload, UniformQuantizer
from splitlearn.config import shared
from splitlearn.display import Display
from splitlearn.errors import NonFiniteError, PeerError, Rejoin
from splitlearn.membership import OpenServer
from splitlearn.metrics import Recorder
from splitlearn.server import Server
from splitlearn.training import Trainable, Trial, gradients_of, state_of
from splitlearn.transport import Inbox

OPTIONS = ["arch=convnet", "num_clients=2", "compressor=qu", *TINY]
CPU = torch.device("cpu")
LABELS = torch.zeros(4, dtype=torch.uint8)
WIRE = torch.zeros(100, dtype=torch.uint8)


def hello(cfg, **changes) -> dict:
    return {"config": shared(cfg), "num_classes": 10, "num_train": 32, "num_test": 16, **changes}


@functools.cache
def known(*options: str) -> tuple[Agreement, Trainable]:
    """An agreement, and what a client has after a step."""
    cfg = compose(*OPTIONS, *options)
    segment, _, cut = models.build_segments(cfg, 10)
    agreement, trainable = Agreement(cfg), Trainable(segment, cfg)
    agreement.know(segment, cut, 10)
    segment(torch.randn(2, 3, cfg.data.image_size, cfg.data.image_size)).sum().backward()
    trainable.optimizer.step()
    return agreement, trainable


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "sgd optimizer.momentum=0"])
def test_what_an_honest_client_sends_is_fine(optimizer):
    agreement, trainable = known(*f"optimizer={optimizer}".split(), "nonfinite=skip")
    fresh = Trainable(copy.deepcopy(trainable.segment), agreement.cfg)
    state, seconds = state_of(trainable.segment), {"client compute": 0.5, "network": -1e-9, "call": 0}
    for kind, *body in (
        ("hello", hello(agreement.cfg)),
        ("step", WIRE, LABELS, None, False),
        ("step", WIRE, LABELS.int(), 0.25, True),
        ("step", None, None, None, False),
        ("evaluate", WIRE, LABELS),
        ("gradients", gradients_of(trainable.segment)),
        ("gradients", None),
        ("state", trainable.state(), False),
        ("state", fresh.state(), True),
        ("failed", "no data"),
        ("goodbye",),
    ):
        agreement.check(1, kind, tuple(body))
    agreement.check(1, "weights", (state, seconds), "segment")
    agreement.check(1, "weights", (trainable.state(), seconds), "trainable")
    agreement.check(1, "weights", (None, {}))


def bodies() -> dict[str, tuple]:
    """Malformed ones: a name, and (kind, what weights hold, body)."""
    agreement, trainable = known()
    cfg, whole, segment = agreement.cfg, trainable.state(), state_of(trainable.segment)
    name = next(iter(segment))
    long = segment | {name: torch.zeros(3, 3)}
    momentum = {0: {"momentum_buffer": torch.zeros(2)}}
    found = {
        "hello without a body": ("hello", None, ()),
        "hello of a number": ("hello", None, ({"config": 5},)),
        "hello with a number as configuration": ("hello", None, (hello(cfg, config=5),)),
        "hello with a tensor in it": ("hello", None, (hello(cfg, config={"seed": torch.zeros(2)}),)),
        "hello without classes": ("hello", None, (hello(cfg, num_classes=0),)),
        "hello with too many classes": ("hello", None, (hello(cfg, num_classes=1 << 40),)),
        "hello with samples in words": ("hello", None, (hello(cfg, num_train="many"),)),
        "no tuple": ("step", None, 5),
        "a step of one part": ("step", None, (1,)),
        "a step without labels": ("step", None, (WIRE, None, None, False)),
        "a step of nothing": ("step", None, (None, None, None, False)),
        "a payload of floats": ("step", None, (WIRE.float(), LABELS, None, False)),
        "a payload elsewhere": ("step", None, (WIRE.to("meta"), LABELS, None, False)),
        "an error in words": ("step", None, (WIRE, LABELS, "0.5", False)),
        "an error of NaN": ("step", None, (WIRE, LABELS, math.nan, False)),
        "an end of 2": ("step", None, (WIRE, LABELS, None, 2)),
        "labels of floats": ("step", None, (WIRE, LABELS.float(), None, False)),
        "labels of two dimensions": ("step", None, (WIRE, LABELS.view(2, 2), None, False)),
        "labels elsewhere": ("step", None, (WIRE, LABELS.to("meta"), None, False)),
        "no labels": ("step", None, (WIRE, LABELS[:0], None, False)),
        "more labels than a batch": ("step", None, (WIRE, LABELS.repeat(5), None, False)),
        "a class that there is not": ("evaluate", None, (WIRE, LABELS + 10)),
        "a class below 0": ("evaluate", None, (WIRE, LABELS.int() - 1)),
        "gradients in a dict": ("gradients", None, ({},)),
        "gradients of another shape": ("gradients", None, ([torch.zeros(1)] * len(agreement.gradients),)),
        "weights of another name": ("weights", "segment", ({"a": torch.zeros(3)}, {})),
        "weights of another shape": ("weights", "segment", (long, {})),
        "weights of another dtype": ("weights", "segment", ({k: v.double() for k, v in segment.items()}, {})),
        "weights for nobody": ("weights", None, (segment, {})),
        "no weights": ("weights", "segment", (None, {})),
        "weights without the optimizer": ("weights", "trainable", (segment, {})),
        "times of other names": ("weights", "segment", (segment, {"lunch": 1.0})),
        "times of NaN": ("weights", "segment", (segment, {"call": math.nan})),
        "times without an end": ("weights", "segment", (segment, {"call": 10**400})),
        "times of tensors": ("weights", "segment", (segment, {"call": torch.zeros(2)})),
        "a state of one tensor": ("state", None, (torch.zeros(3), False)),
        "an optimizer of another shape": ("state", None, (whole | {"optimizer": momentum}, False)),
        "an optimizer of more parameters": ("state", None, (whole | {"optimizer": {99: {}}}, False)),
        "an optimizer of another kind": ("state", None, (whole | {"optimizer": {0: {"exp_avg": 1}}}, False)),
        "a failure that is none": ("failed", None, (torch.zeros(3),)),
    }
    return found


BODIES = bodies()


@pytest.mark.parametrize("what", BODIES)
def test_a_malformed_body_is_one_sentence_that_names_the_client(what):
    agreement, _ = known()
    kind, holds, body = BODIES[what]
    with pytest.raises(PeerError, match=f"client 1 sent a malformed {kind}: ") as error:
        agreement.check(1, kind, body, holds)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, allowed",
    [
        ([], [torch.float32]),
        (["precision=bf16"], [torch.bfloat16, torch.float32]),
        (["precision=bf16", "cut_precision=fp32"], [torch.float32]),
    ],
)
def test_the_precision_says_what_dtype_a_payload_may_be_of(options, allowed):
    agreement, _ = known(*options)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        payload = UniformQuantizer().encode(torch.ones(2, 2, dtype=dtype))
        assert (agreement.dtype_of(payload) == dtype) == (dtype in allowed)


# Batches that are not finite


def batch(segment: nn.Module, scale: float = 1.0) -> None:
    F.cross_entropy(segment(scale * torch.randn(6, 4)), torch.arange(6) % 3).backward()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def test_a_kept_trial_is_what_backward_alone_does_and_an_undone_one_is_nothing():
    plain, tried = network(), network()
    torch.manual_seed(1)
    for _ in range(3):
        batch(plain)
    torch.manual_seed(1)
    for _ in range(3):
        before = torch.get_rng_state()
        for scale, word in ((3e38, "undo"), (1.0, "keep")):
            torch.set_rng_state(before)
            trial = Trial(tried)
            batch(tried, scale)
            if word == "undo":
                with pytest.raises(NonFiniteError):
                    trial.keep()
            getattr(trial, word)()
    assert all(map(torch.equal, gradients_of(plain), gradients_of(tried)))
    assert all(map(torch.equal, plain.buffers(), tried.buffers()))


# One client at once


def test_a_newer_call_takes_back_one_that_was_not_answered():
    box = Inbox(1, 5)
    first, second = (box.deliver(0, "session", number, "hello", ()) for number in (1, 2))
    assert first.wait() == ("failed", "the client has sent its hello since")
    box.take(0, "hello").reply("welcome")
    assert second.wait() == ("done", "welcome")


def test_a_restarted_client_does_not_change_what_the_server_saw(tmp_path):
    cfg = compose(*OPTIONS, "membership.open=true")
    server = OpenServer(cfg, CPU, Recorder(cfg, tmp_path, Display()), Checkpoints(tmp_path, 1))
    server.inbox.deliver(1, "old", 1, "hello", (hello(cfg),))
    server.look()
    anew = server.inbox.deliver(1, "new", 1, "hello", (hello(cfg),))
    assert server.take(1, "hello").body == (hello(cfg),) and not anew.done()
    assert server.look()[1].future is anew

    server.inbox.deliver(1, "newest", 1, "hello", ())
    assert server.or_see_off(1, lambda client: server.take(client, "step")) is None  # what was seen is malformed
    assert server.inbox.new_requests()[1].body == ()  # and the newest process is not to blame


# Whole runs in this process: the server in a thread, clients that deliver to its inbox


class Proxy:
    """Calls as of ServerProxy, without the wire. `change(kind, body)` gives what is sent instead."""

    def __init__(self, server: Server, client: int, change=lambda kind, body: body):
        self.server, self.client, self.change, self.session, self.number = server, client, change, "0", 0

    def call(self, kind: str, *body):
        self.number += 1
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
    """The network, as torch.fx cannot trace in several threads."""
    built = models.build_segments(compose(*OPTIONS), 10)
    lock = threading.Lock()

    def build_segments(*_):
        with lock:
            return copy.deepcopy(built)

    monkeypatch.setattr(models, "build_segments", build_segments)


def play(folder, cfg, change) -> tuple[Server, Exception | None, Exception | None]:
    """A run with a client 1 that sends what `change` says; gives the server, and its and client 1's errors."""
    kind = OpenServer if cfg.membership.open else Server
    server = kind(cfg, CPU, Recorder(cfg, folder, Display()), Checkpoints(folder / "checkpoints", 1))
    serving = Thread(server.run)
    proxies = Proxy(server, 0), Proxy(server, 1, change)
    clients = [Thread(Client(cfg, index, CPU, proxy).run) for index, proxy in enumerate(proxies)]
    for thread in clients:
        thread.start()
    while len(server.inbox.new_requests()) < len(clients):  # so that the first step is of both
        time.sleep(0.01)
    serving.start()
    serving.join(60)
    assert not serving.is_alive()
    if serving.error:
        server.inbox.fail(str(serving.error))
    for client in clients:
        client.join(10)
    server.recorder.close()
    return server, serving.error, clients[1].error


def of_infinite_size(wire: torch.Tensor) -> torch.Tensor:
    payload = Payload.parse(wire)
    return UniformQuantizer().encode(torch.full(payload.shape, 3e38)).tensor


def instead(wanted: str, body_of, after: int = 1):
    """Changes the n-th body of a kind."""
    counted = iter(range(1, 1000))

    def change(kind: str, body: tuple) -> tuple:
        return body_of(body) if kind == wanted and next(counted) == after else body

    return change


MISDEEDS = {
    "hello": lambda body: (),
    "step": lambda body: (1,),
    "weights": lambda body: ({"a": torch.zeros(3)}, {}),
    "evaluate": lambda body: (body[0], None),
    "state": lambda body: (torch.zeros(3), False),
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
@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_values_whose_gradient_is_not_finite_are_one_clients_part(nonfinite, tmp_path):
    cfg = compose(*OPTIONS, "membership.open=true", f"nonfinite={nonfinite}", "membership.step_deadline_s=60")
    huge = instead("step", lambda body: (of_infinite_size(body[0]), *body[1:]), after=2)
    server, error, told = play(tmp_path, cfg, huge)
    assert error is None
    steps = metrics(tmp_path, "step")
    assert steps[0]["clients"] == [0, 1] and steps[1]["clients"] == [0]
    assert all(tensor.isfinite().all() for tensor in state_of(server.trainable.segment).values())
    if nonfinite == "stop":
        assert "the gradient for what client 1 sent is not finite" in str(told)
    else:
        assert told is None and server.recorder.totals["skipped"] == 1


@pytest.mark.usefixtures("built_before")
def test_weights_that_are_not_finite_stay_out_of_the_mean(tmp_path):
    cfg = compose(*OPTIONS, "membership.open=true", "membership.step_deadline_s=60")
    change = instead("weights", lambda body: ({k: (v * math.nan).to(v.dtype) for k, v in body[0].items()}, body[1]))
    server, error, told = play(tmp_path, cfg, change)
    assert error is None and "weights that are not finite" in str(told)
    assert all(tensor.isfinite().all() for tensor in server.client_states[0].values())


@pytest.mark.usefixtures("built_before")
def test_a_cut_gradient_that_is_not_finite_is_skipped_without_an_open_run_too(tmp_path):
    cfg = compose(*OPTIONS, "nonfinite=skip", "rpc.timeout_s=20")
    huge = instead("step", lambda body: (of_infinite_size(body[0]), *body[1:]), after=2)
    server, error, told = play(tmp_path, cfg, huge)
    assert error is told is None and server.recorder.totals["skipped"] == 1
    assert [line["clients"] for line in metrics(tmp_path, "step")] == [[0, 1], [0]]


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
