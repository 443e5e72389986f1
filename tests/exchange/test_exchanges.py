"""Both halves of every exchange, driven in one process: no server, no RPC."""

import copy
import itertools
from types import SimpleNamespace as Namespace

import pytest
import torch
import torch.nn.functional as F
from simulation import compose
from torch import nn

import splitlearn
from splitlearn.config import compressor_from
from splitlearn.exchange import network
from splitlearn.exchange.agreement import Agreement
from splitlearn.exchange.channels import channels_of, know
from splitlearn.exchange.codecs import Codecs
from splitlearn.exchange.exchange import converse, exchange_from
from splitlearn.exchange.parts import Targets, Wire, _hints
from splitlearn.exchange.passage import Passage
from splitlearn.seeds import derive
from splitlearn.tasks import task_from

EXCHANGES = ["labels_up", "u_shaped"]
ABOUT = {"num_classes": 10}
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


class Pair:
    """A client and a server in one process."""

    def __init__(self, *overrides: str):
        self.cfg = compose(*overrides)
        self.task, self.exchange = task_from(self.cfg), exchange_from(self.cfg)
        self.network = network.build(self.cfg, ABOUT)
        self.codecs = []
        for way in ("up", "down"):
            channels = channels_of(self.cfg, self.exchange)
            know(channels, self.network, self.cfg)
            self.codecs.append(Codecs(channels, way))
        self.optimizers = [
            torch.optim.SGD(side.parameters(), 0.1, momentum=0.9) for side in (self.network.client, self.network.server)
        ]

    def passages(self, place: int, **options) -> list[Passage]:
        peers = "the server", "client 0"
        return [Passage(one, (place,), CPU, peer, 32, **options) for one, peer in zip(self.codecs, peers, strict=True)]

    def halves(self, passages: list[Passage], images: torch.Tensor, labels: torch.Tensor) -> tuple:
        return (
            self.exchange.client(self.network.client, passages[0], self.task, images, labels),
            self.exchange.server(self.network.server, passages[1], self.task),
        )

    def step(self, place: int, images: torch.Tensor, labels: torch.Tensor):
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        passages = self.passages(place)
        outcome = converse(*self.halves(passages, images, labels))
        for optimizer in self.optimizers:
            optimizer.step()
        return outcome, passages


def batches(number: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 3, 32, 32, generator=generator), torch.randint(10, (8,), generator=generator))
        for _ in range(number)
    ]


def assert_same(state: dict, expected: dict) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", EXCHANGES)
def test_without_compression_it_trains_the_uncut_network(name):
    pair = Pair(f"exchange={name}", "compressor=none")
    model = pair.task.network(pair.cfg, ABOUT)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for place, (images, labels) in enumerate(batches()):
        outcome, _ = pair.step(place, images, labels)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert outcome.loss == loss.item() and outcome.num_samples == 8
    assert_same(pair.network.client.state_dict() | pair.network.server.state_dict(), model.state_dict())


@pytest.mark.parametrize("backward", ["straight_through", "gated"])
def test_labels_up_is_compress_in_one_process(backward):
    pair = Pair("compressor=ms", "compressor@downlink=qu", "downlink.rounding=stochastic", f"backward={backward}")
    alone = copy.deepcopy(pair.network)
    optimizers = [torch.optim.SGD(side.parameters(), 0.1, momentum=0.9) for side in (alone.client, alone.server)]
    up, down = (compressor_from(pair.cfg, key) for key in ("compressor", "downlink"))
    for place, (images, labels) in enumerate(batches()):
        outcome, _ = pair.step(place, images, labels)
        down.seed(derive(pair.cfg.seed, "downlink", place))
        loss = F.cross_entropy(alone.server(splitlearn.compress(alone.client(images), up, down, backward)), labels)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        assert outcome.loss == loss.item()
    assert_same(pair.network.client.state_dict(), alone.client.state_dict())
    assert_same(pair.network.server.state_dict(), alone.server.state_dict())


@pytest.mark.parametrize("name", EXCHANGES)
def test_both_ends_book_the_same_bytes_and_the_wires_are_as_long(name):
    pair = Pair(f"exchange={name}", *(["compressor@features=ms"] if name == "u_shaped" else []))
    passages = pair.passages(0, measures_error=True)
    client, server = pair.halves(passages, *batches(1)[0])
    next(server)
    message, crossed = next(client), 0
    while message is not None:
        answer = server.send(message)
        crossed += sum(value.numel() for part in (message, answer) for value in wires(part))
        try:
            message = client.send(answer)
        except StopIteration:
            message = None
    one, other = (sorted((t.channel, t.num_bytes, t.raw_bytes) for t in end.transfers) for end in passages)
    assert one == other and crossed == sum(num_bytes for _, num_bytes, _ in one)
    assert {channel for channel, *_ in one} == {spec.name for spec in pair.exchange.channels}
    errors = {t.channel: t.error for end in passages for t in end.transfers if t.error is not None}
    assert errors.keys() == {spec.name for spec in pair.exchange.channels} and errors["smashed"] > 0.05


def wires(part) -> list[torch.Tensor]:
    return [getattr(part, name) for name, hint in _hints(type(part)).items() if hint is Wire]


@pytest.mark.parametrize("name", EXCHANGES)
def test_evaluation_is_the_uncut_networks(name):
    pair = Pair(f"exchange={name}", "compressor=none")
    pair.network.client.eval()
    pair.network.server.eval()
    ((images, labels),) = batches(1)
    passages = pair.passages(0, in_evaluation=True)
    with torch.no_grad():
        outcome = converse(
            pair.exchange.client_evaluation(pair.network.client, passages[0], pair.task, images, labels),
            pair.exchange.server_evaluation(pair.network.server, passages[1], pair.task),
        )
        outputs = pair.task.network(pair.cfg, ABOUT).eval()(images)
    assert outcome.num_samples == 8
    assert outcome.sums["loss"] == pytest.approx(nn.CrossEntropyLoss(reduction="sum")(outputs, labels).item())
    assert outcome.sums["top1"] == (outputs.argmax(1) == labels).sum()


def test_no_label_crosses_the_wire_of_u_shaped():
    """Not by its type, and not by its values: what crosses for other labels is the same until their loss is known."""
    exchange = exchange_from(compose("exchange=u_shaped"))
    parts = {part for pair in (*exchange.rounds, *exchange.evaluation_rounds) for part in pair}
    assert not [part for part, hint in itertools.product(parts, (Targets,)) if hint in _hints(part).values()]
    ((images, labels),) = batches(1)
    sent = []
    for changed in (labels, (labels + 1) % 10):
        pair = Pair("exchange=u_shaped", "compressor@feature_gradient=ms")
        client, server = pair.halves(pair.passages(0), images, changed)
        next(server)
        first = next(client)
        second = client.send(server.send(first))
        sent.append((first, second))
    assert torch.equal(sent[0][0].wire, sent[1][0].wire)
    for _, second in sent:  # the gradient of the features, the loss and the metrics: no tensor beside the payload
        assert [type(value) for value in second.body()] == [torch.Tensor, float, dict]
        assert set(second.sums) == {"top1"}


@pytest.mark.parametrize("cut", ["[block2,block1]", "[block2,nowhere]"])
def test_a_way_back_that_is_not_possible_is_refused_with_the_valid_ones(cut):
    expected = r"^cut=(block1|nowhere) is not possible.*Valid cuts: block3.*; this cut has to come after block2$"
    with pytest.raises(splitlearn.errors.UserError, match=expected):
        Pair("exchange=u_shaped", f"cut={cut}")


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["cut=[block1,block2]"], "exchange=labels_up cuts the network once"),
        (["exchange=u_shaped", "cut=[block1]"], r"give two cuts, cut=\[<first>,<second>\]"),
        (["exchange=u_shaped", "cut=flatten"], "cut_back=last is not possible.*; this cut has to come after flatten"),
        (["cut="], "^cut= is not possible: no module has this path. Valid cuts: .*block1"),
        (["exchange=u_shaped", "cut=block2", "cut_back="], "^cut= is not possible: no .*has to come after block2$"),
    ],
)
def test_a_number_of_cuts_that_does_not_fit_is_one_sentence(overrides, expected):
    with pytest.raises(splitlearn.errors.UserError, match=expected):
        Pair(*overrides)


def test_what_crosses_is_checked_by_its_annotation():
    pair = Pair("exchange=u_shaped")
    channels = channels_of(pair.cfg, pair.exchange)
    agreement = Agreement(pair.cfg, pair.task, channels)
    agreement.know(pair.network.client, ABOUT)
    (payload, _), (gradient, _) = pair.exchange.rounds
    wire = torch.zeros(9, dtype=torch.uint8)
    assert payload.parse((wire,), agreement).wire is wire
    assert gradient.parse((wire, 0.5, {"top1": 1.0}), agreement).loss == 0.5
    for body in [
        (wire, 0.5),
        (wire.float(), 0.5, {"top1": 1.0}),
        (wire, "0.5", {"top1": 1.0}),
        (wire, float("nan"), {"top1": 1.0}),
        (wire, 0.5, {"labels": 1.0}),
        (wire, 0.5, {"top1": float("nan")}),
        (wire, 0.5, {"top1": wire}),
    ]:
        with pytest.raises(splitlearn.exchange.agreement.Unfit):
            gradient.parse(body, agreement)


@pytest.mark.parametrize(
    "overrides, cannot",
    [
        (["arch=convnet"], None),
        (["arch=convnet", "exchange=u_shaped"], None),
        (["arch=squeezenet1_1"], None),  # dropout, and no norm
        (["arch=mobilenet_v2"], "Expected more than 1 value per channel"),
        (["arch=mobilenet_v2", "data.image_size=64"], None),
        (["arch._target_=own_nets.Normed", "cut=first"], "Expected more than 1 value per channel"),
        (["arch._target_=own_nets.Normed", "cut=norm"], "Expected more than 1 value per channel"),
        (["arch._target_=own_nets.Normed", "cut=[first,norm]", "exchange=u_shaped"], "Expected more than 1 value"),
    ],
)
def test_whether_a_network_trains_on_a_single_sample(overrides, cannot):
    built = network.build(compose(*overrides), ABOUT)
    before = copy.deepcopy(built.client.state_dict() | built.server.state_dict())
    found = built.alone()
    assert (found is None) if cannot is None else (cannot in found)
    assert_same(built.client.state_dict() | built.server.state_dict(), before)


def test_a_norm_that_never_works_is_of_the_images_size():
    with pytest.raises(
        splitlearn.errors.UserError, match=r"^arch InstanceNorms cannot take images .*1 spatial element"
    ):
        network.check(compose("arch._target_=own_nets.InstanceNorms"))


# What is frozen


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", EXCHANGES)
@pytest.mark.parametrize("freeze", ["block1", "[block1.0,block2.1.weight,classifier]", "client", "[block3,block1.1]"])
def test_what_is_frozen_stays_as_it_is_and_the_rest_trains_as_in_the_uncut_network(freeze, name, optimizer):
    pair = Pair(f"exchange={name}", "compressor=none", f"freeze={freeze}", "cut=medium")
    model = pair.task.network(pair.cfg, ABOUT)
    paths = freeze.strip("[]").split(",")
    if freeze == "client":
        paths = ["block1", "block2", *(["classifier"] if name == "u_shaped" else [])]
    sides = pair.network.client, pair.network.server
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def is_frozen(name: str) -> bool:
        return any(f"{name}.".startswith(f"{path}.") for path in paths)

    for path, parameter in model.named_parameters():
        parameter.requires_grad_(not is_frozen(path))
    model.train()
    for path in paths:
        if not path.endswith("weight"):
            model.get_submodule(path).eval()
    kind = {"sgd": lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1), "adam": torch.optim.Adam}[optimizer]
    pair.optimizers, alone = [kind(side.parameters()) for side in sides], kind(model.parameters())
    for place, (images, labels) in enumerate(batches()):
        for side in sides:
            side.train()
        pair.step(place, images, labels)
        alone.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        alone.step()
    after = pair.network.client.state_dict() | pair.network.server.state_dict()
    assert_same(after, model.state_dict())
    same = {path for path in after if torch.equal(after[path], before[path])}
    assert same == {path for path in after if is_frozen(path)}
    kept = sum(len(one.state_dict()["state"]) for one in pair.optimizers)
    assert kept == sum(not is_frozen(path) for path, _ in model.named_parameters())


@pytest.mark.parametrize(
    "freeze, exchange, expected",
    [
        ("client", "labels_up", {"smashed"}),
        ("[block1,block2]", "u_shaped", {"smashed", "features", "feature_gradient"}),  # the middle part trains
        ("[block1,block2,block3]", "u_shaped", {"smashed", "features"}),
        ("block1", "labels_up", {"smashed", "gradient"}),
    ],
)
def test_no_gradient_crosses_to_where_nothing_is_trained(freeze, exchange, expected):
    pair = Pair(f"exchange={exchange}", "cut=medium", f"freeze={freeze}", "backward=gated")
    _, passages = pair.step(0, *batches(1)[0])
    assert {transfer.channel for transfer in passages[1].transfers} == expected


@pytest.mark.parametrize(
    "freeze, expected",
    [
        ("blok1", r"^freeze=blok1 matches no weights: choose block1, block2, block3, classifier, a path .*or client"),
        ("[block1,block]", "^freeze=block matches no weights"),
        ("[client,block3,classifier]", r"^freeze=\[client,block3,classifier\] leaves nothing to train"),
    ],
)
def test_a_freeze_that_cannot_be_is_one_sentence(freeze, expected):
    with pytest.raises(splitlearn.errors.UserError, match=expected):
        network.check(compose(f"freeze={freeze}"))


def test_what_a_frozen_segment_sends_of_itself_is_nothing():
    pair = Pair("freeze=client")
    agreement = Agreement(pair.cfg, pair.task, channels_of(pair.cfg, pair.exchange))
    agreement.know(pair.network.client, ABOUT)
    assert agreement.changing == {} and agreement.gradients == [] and agreement.optimizer == {}
    assert agreement.segment.keys() == pair.network.client.state_dict().keys()


def test_a_frozen_batch_norm_trains_on_a_single_sample():
    freeze = "freeze=norm"
    assert network.build(compose("arch._target_=own_nets.Normed", "cut=first", freeze), ABOUT).alone() is None


def auxiliary_gradients(cut_gradient: float, *overrides: str) -> list[torch.Tensor]:
    """Of the auxiliary network's weights, after a batch that is aligned with a cut gradient of a size."""
    pair, (batch, *_) = Pair("exchange=aligned", *overrides), batches(1)
    half, _ = pair.halves(pair.passages(1), *batch)
    shape = splitlearn.compressors.Payload.parse(next(half).wire).shape
    gradient = cut_gradient * torch.randn(shape, generator=torch.Generator().manual_seed(2))
    with pytest.raises(StopIteration):
        half.send(Namespace(wire=splitlearn.compressors.Identity().encode(gradient).tensor))
    return [weight.grad.double() for weight in pair.network.client.parts[1].parameters()]


def test_an_alignment_in_float16_is_that_of_full_precision():
    expected, found = (
        auxiliary_gradients(1e-4, f"precision={precision}", "exchange.weight=1000") for precision in ("fp32", "fp16")
    )
    for one, other in zip(expected, found, strict=True):
        assert (one - other).norm() < 0.05 * one.norm()


@pytest.mark.parametrize("size", [0.0, 1e-12])
def test_there_is_no_alignment_with_a_cut_gradient_that_is_next_to_nothing(size):
    expected, found = (auxiliary_gradients(size, f"exchange.weight={weight}") for weight in (0, 1))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
