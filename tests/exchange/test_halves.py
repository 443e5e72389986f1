"""Exchanges of one's own whose halves are not what they say: one sentence, which names class and half."""

import re
from dataclasses import dataclass

import pytest
from simulation import compose
from test_exchanges import EXCHANGES, Pair, batches

from splitlearn import checks
from splitlearn.errors import UserError
from splitlearn.exchange.exchange import Exchange, Outcome, converse
from splitlearn.exchange.halves import check_declarations, client_half, server_half
from splitlearn.exchange.labels_up import LabelsUp, Smashed
from splitlearn.exchange.parts import Nothing, Part, Wire


class ReturnsAtOnce(LabelsUp):
    def client(self, *given):
        return None


class SendsNothing(LabelsUp):
    def client(self, *given):
        return
        yield


class SendsSomethingElse(LabelsUp):
    def client(self, *given):
        yield Nothing()


class SendsTwice(LabelsUp):
    def client(self, *given):
        message = next(super().client(*given))
        yield message
        yield message


class AnswersAtOnce(LabelsUp):
    def server(self, *given):
        yield Nothing()


class AnswersSomethingElse(LabelsUp):
    def server(self, *given):
        yield
        yield Nothing()


class AnswersTwice(LabelsUp):
    def server(self, *given):
        half = super().server(*given)
        next(half)
        answer = half.send((yield))
        yield answer
        yield answer


class Answers(LabelsUp):
    """`comes_to` as the Outcome."""

    comes_to = None

    def server(self, *given):
        half = super().server(*given)
        next(half)
        yield half.send((yield))
        return self.comes_to


class AnswersWithoutSums(Answers):
    comes_to = Outcome(8, {"loss": 1.0}, 0.1)


class AnswersOfNoSamples(Answers):
    comes_to = Outcome(0, {"top1": 1.0}, 0.1)


def stepped(exchange, **options):
    pair = Pair()
    images, labels = batches(1)[0]
    up, down = pair.passages(0, **options)
    client = client_half(exchange, pair.network.client, up, pair.task, images, labels)
    return converse(client, server_half(exchange, pair.network.server, down, pair.task))


@pytest.mark.parametrize(
    ("exchange", "told"),
    [
        (ReturnsAtOnce, "client's half is None, and not a generator"),
        (SendsNothing, "client's half ends where it is to yield a Smashed"),
        (SendsSomethingElse, "client's half yields a Nothing where it is to yield a Smashed"),
        (SendsTwice, "client's half yields more messages than its rounds have"),
        (AnswersAtOnce, "server's half yields a Nothing where it is to yield nothing"),
        (AnswersSomethingElse, "server's half yields a Nothing where it is to yield a Gradient"),
        (AnswersTwice, "server's half yields more answers than its rounds have"),
        (Answers, "server's half returns None, and not the Outcome of the batch"),
        (AnswersWithoutSums, "server's half returns an Outcome whose sums have no top1"),
        (AnswersOfNoSamples, "server's half returns an Outcome of 0 samples"),
    ],
)
def test_a_half_that_breaks_its_word_is_told_of(exchange, told):
    assert stepped(LabelsUp()).num_samples == 8
    with pytest.raises(UserError, match=re.escape(f"exchange test_halves.{exchange.__name__}: the {told}")):
        stepped(exchange())


@dataclass
class Odd(Part):
    number: int


@dataclass
class NoPart:
    wire: Wire


HALVES = dict.fromkeys(Exchange.__abstractmethods__, LabelsUp.client)


def own(base=LabelsUp, **declared):
    return type("Own", (base,), HALVES | {"__module__": __name__} | declared)


@pytest.mark.parametrize(
    ("exchange", "told"),
    [
        (own(rounds=()), "rounds must be a tuple of pairs"),
        (own(rounds=((Smashed,),)), "rounds must be a tuple of pairs"),
        (own(rounds=(Smashed, Nothing)), "rounds must be a tuple of pairs"),
        (own(rounds=((Odd, Nothing),)), "what comes as Odd.number cannot be checked"),
        (own(rounds=((NoPart, Nothing),)), r"rounds has <class '.*NoPart'>, which is no dataclass derived from Part"),
        (own(rounds=((Smashed, None),)), "rounds has None, which is no dataclass derived from Part"),
        (own(channels="smashed"), "channels must be a tuple of ChannelSpec"),
        (own(channels=()), "channels must be a tuple of ChannelSpec, with one at least"),
        (own(Exchange), "name must be a text"),
        (own(Exchange, name="own"), "channels must be a tuple of ChannelSpec"),
        (own(Exchange, name="own", channels=LabelsUp.channels), "rounds must be a tuple of pairs"),
    ],
)
def test_what_halves_cannot_be_held_to_is_refused_before_anything_starts(exchange, told):
    check_declarations(LabelsUp())
    with pytest.raises(UserError, match=rf"exchange test_halves\.Own: {told}"):
        check_declarations(exchange())


@pytest.mark.parametrize(("key", "base"), [("exchange", "Exchange"), ("topology", "Topology"), ("task", "Task")])
def test_a_class_of_another_kind_is_refused(key, base):
    with pytest.raises(
        UserError, match=rf"{key}\._target_=builtins.dict is no {base}: derive the class from .*\.{base}$"
    ):
        checks.check(compose(f"{key}._target_=builtins.dict"))


class Wants(LabelsUp):
    def __init__(self, rate, every):
        self.rate, self.every = rate, every


def test_options_without_a_default_are_asked_for():
    told = r"=test_halves\.Wants has options without a default: add \+exchange\.rate=… \+exchange\.every=…"
    with pytest.raises(UserError, match=told):
        checks.check(compose("exchange._target_=test_halves.Wants"))
    checks.check(compose("exchange._target_=test_halves.Wants", "+exchange.rate=1", "+exchange.every=2"))


def test_a_channel_that_there_is_not_is_told_of():
    with pytest.raises(UserError, match="the exchange uses a channel smash, and has smashed, gradient alone"):
        Pair().passages(0)[0]["smash"]


def test_in_evaluation_it_is_held_to_the_rounds_of_evaluation():
    class Silent(LabelsUp):
        def client_evaluation(self, *given):
            yield Nothing()

    assert stepped(LabelsUp(), in_evaluation=True).sums.keys() == {"loss", "top1", "top5"}
    with pytest.raises(UserError, match="client's half yields a Nothing where it is to yield a Smashed"):
        stepped(Silent(), in_evaluation=True)


@pytest.mark.parametrize("name", EXCHANGES)
def test_halves_that_are_not_driven_to_their_end_are_closed(name):
    pair = Pair(f"exchange={name}")
    closed, begin = [], pair.exchange.client

    def client(*given):
        try:
            yield from begin(*given)
        finally:
            closed.append("client")

    pair.exchange.client = client
    half = client_half(pair.exchange, pair.network.client, pair.passages(0)[0], pair.task, *batches(1)[0])
    next(half)
    half.close()
    assert closed == ["client"]
