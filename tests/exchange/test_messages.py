"""What a client that is signed in may send, and a server answer: the checks of each message alone."""

import copy
import functools
import math

import pytest
import torch
from simulation import compose

from splitlearn.config import shared
from splitlearn.errors import PeerError
from splitlearn.exchange import network
from splitlearn.exchange.agreement import Agreement, as_sent
from splitlearn.exchange.channels import channels_of, know
from splitlearn.exchange.exchange import exchange_from
from splitlearn.exchange.messages import (
    Evaluate,
    Failed,
    Goodbye,
    GoodbyeReply,
    Gradients,
    GradientsReply,
    Hello,
    State,
    Step,
    StepReply,
    Weights,
    WeightsReply,
    Welcome,
)
from splitlearn.exchange.rounds import Round, RoundReply
from splitlearn.segments.trainable import Trainable, gradients_of, state_of
from splitlearn.tasks import task_from

OPTIONS = ["arch=convnet", "num_clients=2", "compressor=qu", "batch_size=16"]
LABELS = torch.zeros(4, dtype=torch.uint8)
WIRE = torch.zeros(100, dtype=torch.uint8)
ORIGIN = {"partition": "iid", "num_train": 64, "num_test": 32, "train": "a1", "test": "b2"}
ORIGIN |= {"unreadable_train": 1, "unreadable_test": 0}
TEN = {"num_classes": 10, "classes": list("0123456789")}
MEASURED = {"top1": 3.0}  # sums of a training batch
SUMS = {"loss": 9.5, "top1": 3.0, "top5": 4}  # and of test samples


def hello(cfg, **changes) -> tuple:
    fields = {"config": shared(cfg), "about": TEN, "num_train": 32, "num_test": 16, "origin": ORIGIN}
    return Hello(**{**fields, **changes}).body()


@functools.cache
def known(*options: str) -> tuple[Agreement, Trainable]:
    """An agreement, and what a client has after a step."""
    cfg, about = compose(*OPTIONS, *options), TEN
    built, channels = network.build(cfg, about), channels_of(cfg, exchange_from(cfg))
    agreement, trainable = Agreement(cfg, task_from(cfg), channels), Trainable(built.client, cfg)
    know(channels, built, cfg)
    agreement.know(built.client, about)
    for parameter in built.client.parameters():
        parameter.grad = torch.randn_like(parameter)
    trainable.optimizer.step()
    return agreement, trainable


def parts_of(agreement: Agreement, of: str = "rounds") -> list:
    """What the client sends in each round of the exchange."""
    return [sent for sent, _ in getattr(exchange_from(agreement.cfg), of)]


@pytest.mark.parametrize("exchange", ["labels_up", "u_shaped", "local_loss", "send_once", "update_by_loss"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "sgd optimizer.momentum=0"])
def test_what_an_honest_client_sends_is_fine(optimizer, exchange):
    agreement, trainable = known(*f"optimizer={optimizer}".split(), "nonfinite=skip", f"exchange={exchange}")
    fresh = Trainable(copy.deepcopy(trainable.segment), agreement.cfg)
    state, seconds = state_of(trainable.segment), {"client compute": 0.5, "network": -1e-9, "codec": 0}
    whole = trainable.state()
    training, evaluation = {
        **dict.fromkeys(("labels_up", "local_loss", "send_once"), ([(WIRE, LABELS)], [(WIRE, LABELS)])),
        "update_by_loss": ([(WIRE, LABELS, True)], [(WIRE, LABELS)]),
        "u_shaped": ([(WIRE,), (WIRE, 2.5, MEASURED)], [(WIRE,), (SUMS,)]),
    }[exchange]
    for kind, *body in (
        (Hello, *hello(agreement.cfg)),
        (Hello, *hello(agreement.cfg, origin=None)),
        (Gradients, gradients_of(trainable.segment)),
        (Gradients, None),
        (State, whole, False),
        (State, fresh.state(), True),
        (State, {**whole, "own": {"client": 1, "samples": 3, "loss": 2.5, "top1": 1.0}}, True),
        (Failed, "no data"),
        (Goodbye,),
        (Round, True),
    ):
        assert kind.parse(tuple(body), "client 1", agreement).body() == tuple(body)
    for part, body in zip(parts_of(agreement), training, strict=True):
        for errors, wants_to_stop in (({}, False), ({"smashed": 0.25}, True)):
            message = Step.parse((body, errors, wants_to_stop), "client 1", agreement, part)
            assert type(message.part) is part and message.part.body() == body
            assert (message.errors, message.wants_to_stop) == (errors, wants_to_stop)
        assert Step.parse((None, {}, False), "client 1", agreement, part).part is None
    for part, body in zip(parts_of(agreement, "evaluation_rounds"), evaluation, strict=True):
        assert Evaluate.parse((body,), "client 1", agreement, part).part.body() == body
    own = {"samples": 3, "loss": 2.5, "top1": 1.0}
    Weights.parse((state, seconds, None, False), "client 1", agreement, "segment")
    Weights.parse((whole, seconds, own, True), "client 1", agreement, "trainable")
    Weights.parse((None, {}, None, False), "client 1", agreement)


@pytest.mark.parametrize(
    "labels", [LABELS, LABELS.int(), LABELS.long() + 9, LABELS.repeat(4)], ids=lambda x: f"{x.dtype}"
)
def test_labels_may_be_of_any_integer_dtype(labels):
    agreement, _ = known()
    (part,) = parts_of(agreement)
    assert Step.parse(((WIRE, labels), {}, False), "client 1", agreement, part).part.targets is labels


def nested(depth: int, inmost="a") -> list:
    """A list that is in a list a hundred times, and so on: little memory, and a hundred to the power of items."""
    return [nested(depth - 1, inmost)] * 100 if depth else inmost


def malformed() -> dict[str, tuple]:
    """By name: the kind, its body, what `check` has to know beside, and what is wrong."""
    agreement, trainable = known()
    cfg, whole, segment = agreement.cfg, trainable.state(), state_of(trainable.segment)
    name = next(iter(segment))
    long = segment | {name: torch.zeros(3, 3)}
    kept = whole["optimizer"] | {0: {"momentum_buffer": torch.zeros(2)}}
    other = whole["optimizer"] | {0: {"exp_avg": 1}}
    found = {
        "hello without a body": (Hello, (), None, "6 parts"),
        "hello of one part": (Hello, ({"config": 5},), None, "6 parts"),
        "hello with a number as configuration": (Hello, hello(cfg, config=5), None, "configuration"),
        "hello with a tensor in it": (Hello, hello(cfg, config={"seed": torch.zeros(2)}), None, "configuration"),
        "hello with a number without an end": (Hello, hello(cfg, config={"seed": 10**5000}), None, "configuration"),
        "hello with a list in lists": (Hello, hello(cfg, config={"seed": nested(7)}), None, "configuration"),
        "hello with a long word in lists": (Hello, hello(cfg, config={"seed": nested(2, "a" * 999)}), None, "plain"),
        "hello with a number as key": (Hello, hello(cfg, config={5: "seed"}), None, "configuration"),
        "hello of nothing about the data": (Hello, hello(cfg, about=None), None, "classes"),
        "hello about more than classes": (Hello, hello(cfg, about=TEN | {"a": 1}), None, "classes"),
        "hello without classes": (Hello, hello(cfg, about=TEN | {"num_classes": 0}), None, "num_classes"),
        "hello with too many classes": (Hello, hello(cfg, about=TEN | {"num_classes": 1 << 40}), None, "num_classes"),
        "hello with a tensor of classes": (Hello, hello(cfg, about=TEN | {"num_classes": LABELS}), None, "num_classes"),
        "hello with half a letter": (
            Hello,
            hello(cfg, about=TEN | {"classes": ["\ud800"] * 10}),
            None,
            "half a letter",
        ),
        "hello with bytes for names": (Hello, hello(cfg, about=TEN | {"classes": [b"a"] * 10}), None, "names"),
        "hello with samples in words": (Hello, hello(cfg, num_train="many"), None, "num_train"),
        "hello with fewer samples than none": (Hello, hello(cfg, num_numbered=-1), None, "num_numbered"),
        "hello with less than no samples": (Hello, hello(cfg, num_test=-1), None, "num_test"),
        "hello with data of a word": (Hello, hello(cfg, origin="iid"), None, "part of"),
        "hello with less said of its data": (Hello, hello(cfg, origin={"partition": "iid"}), None, "part of"),
        "hello with bytes": (
            Hello,
            hello(cfg, origin=ORIGIN | {"train": b"a1"}),
            None,
            "train of its",
        ),
        "hello of a long word": (
            Hello,
            hello(cfg, origin=ORIGIN | {"partition": "a" * 65}),
            None,
            "partition of",
        ),
        "hello with half a sample": (Hello, hello(cfg, origin=ORIGIN | {"num_test": 0.5}), None, "num_test of its"),
        "gradients in a dict": (Gradients, ({},), None, "no list"),
        "gradients of another shape": (Gradients, ([torch.zeros(1)] * len(agreement.gradients),), None, "shapes"),
        "weights of another name": (Weights, ({"a": torch.zeros(3)}, {}, None, False), "segment", "names"),
        "weights of another shape": (Weights, (long, {}, None, False), "segment", name),
        "weights of another dtype": (
            Weights,
            ({k: v.double() for k, v in segment.items()}, {}, None, False),
            "segment",
            name,
        ),
        "weights for nobody": (Weights, (segment, {}, None, False), None, "nobody asked"),
        "no weights": (Weights, (None, {}, None, False), "segment", "names"),
        "weights without the optimizer": (Weights, (segment, {}, None, False), "trainable", "optimizer"),
        "times of other names": (Weights, (segment, {"lunch": 1.0}, None, False), "segment", "times are not those"),
        "times of NaN": (Weights, (segment, {"codec": math.nan}, None, False), "segment", "seconds"),
        "times without an end": (Weights, (segment, {"codec": 10**400}, None, False), "segment", "seconds"),
        "times of tensors": (Weights, (segment, {"codec": torch.zeros(2)}, None, False), "segment", "seconds"),
        "sums of other names": (Weights, (segment, {}, {"loss": 1.0}, False), "segment", "its own sums are not those"),
        "sums of NaN": (
            Weights,
            (segment, {}, {"samples": 1, "loss": math.nan, "top1": 1}, False),
            "segment",
            "numbers",
        ),
        "weights that want to stop once": (Weights, (segment, {}, None, 1), "segment", "is no bool"),
        "a state of one tensor": (State, (torch.zeros(3), False), None, "optimizer"),
        "a state that leaves twice": (State, (whole, 2), None, "leaves"),
        "an optimizer of another shape": (State, (whole | {"optimizer": kept}, False), None, "other shapes"),
        "an optimizer of more parameters": (State, (whole | {"optimizer": {99: {}}}, False), None, "parameters"),
        "an optimizer of another kind": (State, (whole | {"optimizer": other}, False), None, "does not keep"),
        "a failure that is none": (Failed, (torch.zeros(3),), None, "reason"),
        "a goodbye with more": (Goodbye, (1,), None, "0 parts"),
        "a round that wants to stop twice": (Round, (2,), None, "stop"),
        "a round of nothing": (Round, (), None, "1 parts"),
    }
    (part,) = parts_of(agreement)
    for what, (body, wrong) in {
        "no tuple": (5, "3 parts"),
        "a step of one part": ((1,), "3 parts"),
        "a step of another exchange": (((WIRE,), {}, False), "2 parts"),
        "a step of a list": (([WIRE, LABELS], {}, False), "2 parts"),
        "a step without labels": (((WIRE, None), {}, False), "1-D integer"),
        "a step of nothing": ((None, {}, False), "2 parts"),
        "a payload of floats": (((WIRE.float(), LABELS), {}, False), "1-D uint8"),
        "a payload of two dimensions": (((WIRE.view(2, 50), LABELS), {}, False), "1-D uint8"),
        "a payload elsewhere": (((WIRE.to("meta"), LABELS), {}, False), "1-D uint8"),
        "an error in words": (((WIRE, LABELS), {"smashed": "0.5"}, False), "error"),
        "an error of NaN": (((WIRE, LABELS), {"smashed": math.nan}, False), "error"),
        "an error without an end": (((WIRE, LABELS), {"smashed": math.inf}, False), "error"),
        "an error below 0": (((WIRE, LABELS), {"smashed": -0.5}, False), "error"),
        "an error of no channel": (((WIRE, LABELS), {"lunch": 0.5}, False), "errors"),
        "an error alone": (((WIRE, LABELS), 0.5, False), "errors"),
        "an end of 2": (((WIRE, LABELS), {}, 2), "stop"),
        "labels of floats": (((WIRE, LABELS.float()), {}, False), "1-D integer"),
        "labels of two dimensions": (((WIRE, LABELS.view(2, 2)), {}, False), "1-D integer"),
        "labels elsewhere": (((WIRE, LABELS.to("meta")), {}, False), "labels"),
        "no labels": (((WIRE, LABELS[:0]), {}, False), "0 labels"),
        "more labels than a batch": (((WIRE, LABELS.repeat(5)), {}, False), "20 labels"),
    }.items():
        found[what] = Step, body, part, wrong
    found["a class that there is not"] = Evaluate, ((WIRE, LABELS + 10),), part, "10 to 10"
    found["a class below 0"] = Evaluate, ((WIRE, LABELS.int() - 1),), part, "-1 to -1"
    found["a test batch without labels"] = Evaluate, ((WIRE, None),), part, "1-D integer"
    return found


def malformed_u_shaped() -> dict[str, tuple]:
    """The same, of the exchange whose clients measure for themselves."""
    agreement, _ = known("exchange=u_shaped")
    (first, second), (_, scores) = parts_of(agreement), parts_of(agreement, "evaluation_rounds")

    def step(*body) -> tuple:
        return Step, (body, {}, False), second, ""

    found = {
        "labels that nobody asked for": (Step, ((WIRE, LABELS), {}, False), first, "1 parts"),
        "a second round of nothing": (Step, (None, {}, False), second, "3 parts"),
        "a loss in words": step(WIRE, "low", MEASURED),
        "a loss of a tensor": step(WIRE, torch.zeros(()), MEASURED),
        "a loss without an end": step(WIRE, 1e300, MEASURED),
        "no sums": step(WIRE, 2.5, None),
        "sums of other names": step(WIRE, 2.5, MEASURED | {"lunch": 1.0}),
        "sums without what is measured": step(WIRE, 2.5, {}),
        "sums of NaN": step(WIRE, 2.5, MEASURED | {"top1": math.nan}),
        "sums without an end": step(WIRE, 2.5, MEASURED | {"top1": 10**400}),
        "sums of tensors": step(WIRE, 2.5, MEASURED | {"top1": torch.zeros(())}),
    }
    for what, sums in {
        "scores of nothing": {},
        "scores without the loss": {"top1": 3.0, "top5": 4.0},
        "scores of Inf": SUMS | {"loss": math.inf},
        "scores without an end": SUMS | {"loss": 10**400},
    }.items():
        found[what] = Evaluate, ((sums,),), scores, ""
    return found


MALFORMED = {"labels_up": malformed(), "u_shaped": malformed_u_shaped()}


@pytest.mark.parametrize(
    "exchange, what", [(exchange, what) for exchange, bodies in MALFORMED.items() for what in bodies]
)
def test_a_malformed_body_is_one_sentence_that_names_the_client(exchange, what):
    agreement, _ = known() if exchange == "labels_up" else known("exchange=u_shaped")
    kind, body, beside, wrong = MALFORMED[exchange][what]
    context = () if beside is None else (beside,)
    with pytest.raises(PeerError, match=f"^client 1 sent a malformed {kind.kind}: .*{wrong}") as error:
        kind.parse(body, "client 1", agreement, *context)
    assert "\n" not in str(error.value)


HELD = {"numbers": torch.tensor([3]), "times": torch.tensor([1]), "rows": torch.tensor([2])}
HELD |= {"maps": torch.zeros(2, 8, dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("held", "wrong"),
    [
        ({"smashed": HELD}, None),
        (None, "not of the run's channels"),
        ({"features": HELD}, "not of the run's channels"),
        ({"smashed": HELD | {"rows": torch.tensor([3])}}, "its maps are not of so many rows"),
        ({"smashed": [HELD]}, "does not hold numbers and maps"),
    ],
)
def test_a_welcome_with_what_is_not_held_is_refused(held, wrong):
    agreement, _ = known()
    body = (TEN, 4, 1, 0, 0, {}, None, [], held)
    if wrong is None:
        assert Welcome.parse(body, "the server", agreement).latest is held
        return
    with pytest.raises(PeerError, match=f"^the server sent a malformed welcome: .*{wrong}"):
        Welcome.parse(body, "the server", agreement)


RATES = {"lr": 0.05, "momentum": 0.9}


def answers() -> dict[str, tuple]:
    agreement, _ = known()
    ((_, gradient),) = exchange_from(agreement.cfg).rounds
    found = {
        "a mean of another shape": (GradientsReply, ([torch.zeros(1)], None, RATES), None),
        "a mean with a directive in tensors": (GradientsReply, (None, torch.zeros(2), RATES), None),
        "a mean without a rate": (GradientsReply, (None, None, None), None),
        "weights with a number as directive": (WeightsReply, (None, 5, True), None),
        "weights that are 2 times the answer": (WeightsReply, (None, None, 2), None),
        "a result of NaN": (GoodbyeReply, (math.nan,), None),
        "a result in words": (GoodbyeReply, ("good",), None),
        "a part that there is not": (RoundReply, ("dance", 1, 5, None), None),
        "a part in a list": (RoundReply, (["train"], 1, 5, None), None),
        "an epoch after the last": (RoundReply, ("train", 1000, 5, None), None),
        "an epoch in words": (RoundReply, ("train", "first", 5, None), None),
        "steps below 0": (RoundReply, ("train", 1, -1, None), None),
        "a round's weights of other names": (RoundReply, ("train", 1, 5, {"segment": {}, "optimizer": {}}, None), None),
        "a round's weights in a tensor": (RoundReply, ("evaluate", 1, 5, torch.zeros(3), None), None),
    }
    for what, body in {
        "one part": (1,),
        "no gradient": ((0.5, None), None, 0.1, 0.1, RATES),
        "a loss in words": (("low", WIRE), None, 0.1, 0.1, RATES),
        "a gradient of floats": ((0.5, WIRE.float()), None, 0.1, 0.1, RATES),
        "an unknown directive": ((0.5, WIRE), "dance", 0.1, 0.1, RATES),
        "times in words": ((0.5, WIRE), None, "long", 0.1, RATES),
        "a rate that is no dict": ((0.5, WIRE), None, 0.1, 0.1, 0.1),
        "no learning rate": ((0.5, WIRE), None, 0.1, 0.1, {"momentum": 0.9}),
        "a rate of another name": ((0.5, WIRE), None, 0.1, 0.1, RATES | {"params": []}),
        "a rate of NaN": ((0.5, WIRE), None, 0.1, 0.1, {"lr": math.nan}),
        "a rate below nothing": ((0.5, WIRE), None, 0.1, 0.1, {"lr": -0.1}),
        "a rate in tensors": ((0.5, WIRE), None, 0.1, 0.1, {"lr": torch.zeros(2)}),
        "betas in words": ((0.5, WIRE), None, 0.1, 0.1, RATES | {"betas": ("a", "b")}),
    }.items():
        found[what] = StepReply, body, gradient
    return found


ANSWERS = answers()


@pytest.mark.parametrize("rates", [None, {"lr": 0.1}, {"lr": 0, "betas": (0.9, 0.999)}, {"lr": 1e-3, "momentum": 0.9}])
def test_what_an_honest_server_answers_is_fine(rates):
    agreement, _ = known()
    ((_, gradient),) = exchange_from(agreement.cfg).rounds
    reply = StepReply.parse(((0.5, WIRE), "save", 0.1, 0.1, rates), "the server", agreement, gradient)
    assert reply.rates == rates
    if rates:
        assert GradientsReply.parse((None, None, rates), "the server", agreement).rates == rates


@pytest.mark.parametrize("what", ANSWERS)
def test_a_malformed_answer_is_one_sentence_too(what):
    agreement, _ = known()
    kind, body, beside = ANSWERS[what]
    context = () if beside is None else (beside,)
    with pytest.raises(PeerError, match=f"^the server sent a malformed {kind.kind}: ") as error:
        kind.parse(body, "the server", agreement, *context)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, expected",
    [
        ([], torch.float32),
        (["precision=bf16"], torch.bfloat16),
        (["precision=bf16", "cut_precision=fp32"], torch.float32),
    ],
)
def test_the_precision_says_what_dtype_a_payload_is_of(options, expected):
    agreement, _ = known(*options)
    for channel in agreement.channels.values():
        assert channel.expected(2)[1] == expected


def goes_on() -> dict[str, tuple]:
    """By name: what a client is told to go on from, and what is wrong with it."""
    _, trainable = known()
    whole, segment = trainable.state(), state_of(trainable.segment)
    name = next(iter(segment))
    return {
        "nothing": (None, "no weights"),
        "a list": ([segment], "no weights"),
        "a segment of nothing": (whole | {"segment": None}, "no weights"),
        "no weights": ({}, "names"),
        "weights of another name": (segment | {"a": torch.zeros(2)}, "names"),
        "weights without one": ({key: value for key, value in segment.items() if key != name}, "names"),
        "weights of another shape": (segment | {name: torch.zeros(3, 3)}, name),
        "weights of another dtype": (segment | {name: segment[name].double()}, name),
        "weights elsewhere": (segment | {name: segment[name].to("meta")}, name),
        "weights in words": (segment | {name: "large"}, name),
        "a segment of another shape": (whole | {"segment": segment | {name: torch.zeros(3)}}, name),
        "no optimizer": ({"segment": segment}, "optimizer"),
        "an optimizer of more parameters": (whole | {"optimizer": {99: {}}}, "parameters"),
        "codecs of no channel": (whole | {"codecs": {"lunch": {}}}, "channels"),
        "sums of NaN": (whole | {"own": {"client": 1, "samples": 1, "loss": math.nan, "top1": 1}}, "numbers"),
        "an average of other names": (whole | {"average": {"a": torch.zeros(2)}}, "names"),
        "more left out than there is": (whole | {"left_out": torch.zeros(3)}, "left out"),
        "a function that is kept": (whole | {"kept": {"a": len}}, "keeps"),
        "a kept list": (whole | {"kept": [1]}, "keeps"),
        "a kept tensor elsewhere": (whole | {"kept": {"a": torch.zeros(2, device="meta")}}, "keeps"),
    }


GOES_ON = goes_on()


@pytest.mark.parametrize("what", GOES_ON)
def test_what_a_client_cannot_go_on_from_is_one_sentence(what):
    agreement, _ = known()
    state, wrong = GOES_ON[what]
    with (
        pytest.raises(PeerError, match=f"^the server sent a malformed state: .*{wrong}") as error,
        as_sent("the server", "state"),
    ):
        agreement.whole(state, {})
    assert "\n" not in str(error.value)


def test_what_is_frozen_need_not_be_sent():
    agreement, trainable = known()
    whole, segment = trainable.state(), state_of(trainable.segment)
    name, *others = segment
    frozen, sent = {name: segment[name] + 1}, {other: segment[other] for other in others}
    assert agreement.whole(sent, frozen) == frozen | sent
    assert agreement.whole(segment, frozen)[name] is segment[name]
    kept = {"kept": {"count": 3, "mean": [torch.ones(2)]}, "average": None}
    found = agreement.whole(whole | kept | {"segment": sent}, frozen)
    assert found == whole | kept | {"segment": frozen | sent}
