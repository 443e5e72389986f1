"""Texts of different lengths through a cut: what crosses, what is refused, and a run."""

import csv

import pytest
import torch
from runs import ROOT, metrics, summary
from simulation import compose

from splitlearn import local
from splitlearn.errors import PeerError, UserError
from splitlearn.exchange import network, ragged
from splitlearn.exchange.agreement import Agreement, Unfit
from splitlearn.exchange.channels import channels_of, know
from splitlearn.exchange.codecs import Codecs
from splitlearn.exchange.exchange import converse, exchange_from
from splitlearn.exchange.labels_up import Smashed
from splitlearn.exchange.passage import Passage
from splitlearn.tasks import SequenceClassification, task_from

TINY = ["task=sequence_classification", "arch.depth=2", "arch.width=16", "arch.heads=2", "data.max_length=12"]
ABOUT = {"num_classes": 3, "classes": ["a", "b", "c"], "vocab_size": 256, "tokenizer": "bytes"}
CPU = torch.device("cpu")
LENGTHS = torch.tensor([5, 1, 9, 12], dtype=torch.uint16)
WIRE = torch.zeros(9, dtype=torch.uint8)
LABELS = torch.tensor([0, 2, 1, 1], dtype=torch.uint8)


def batch(lengths=LENGTHS):
    """Tokens of texts of these lengths."""
    lengths = lengths.long()
    tokens = torch.randint(256, (len(lengths), int(lengths.max())), generator=torch.Generator().manual_seed(0))
    return tokens.where(torch.arange(tokens.shape[1]) < lengths.unsqueeze(1), -1)


class Ends:
    """Both ends of a cut, in one process."""

    def __init__(self, *overrides):
        self.cfg = compose(*TINY, "batch_size=4", *overrides)
        self.task, self.exchange = task_from(self.cfg), exchange_from(self.cfg)
        self.network = network.build(self.cfg, ABOUT)
        self.channels = [channels_of(self.cfg, self.exchange) for _ in range(2)]
        for channels in self.channels:
            know(channels, self.network, self.cfg)
        codecs = (Codecs(one, way) for one, way in zip(self.channels, ("up", "down"), strict=True))
        self.passages = [Passage(one, (0,), CPU, "client 0", 4) for one in codecs]
        self.agreement = Agreement(self.cfg, self.task, self.channels[1])
        self.agreement.know(self.network.client, ABOUT)

    def step(self, inputs, labels):
        client = self.exchange.client(self.network.client, self.passages[0], self.task, inputs, labels)
        return converse(client, self.exchange.server(self.network.server, self.passages[1], self.task))


# What crosses


def test_rows_are_put_back_where_they_were(noise):
    x = noise(4, 12, 3).requires_grad_()
    lengths = LENGTHS.long()
    rows = ragged.rows_of(x, lengths)
    assert rows.shape == (27, 1, 3) and torch.equal(rows[:5, 0], x[0, :5]) and torch.equal(rows[5, 0], x[1, 0])
    back = ragged.padded(rows, lengths)
    is_there = torch.arange(12) < lengths.unsqueeze(1)
    assert torch.equal(back[is_there], x[is_there]) and not back[~is_there].any()
    back.backward(noise(4, 12, 3, seed=1))
    assert torch.equal(x.grad[is_there], noise(4, 12, 3, seed=1)[is_there]) and not x.grad[~is_there].any()


@pytest.mark.parametrize("exchange", ["labels_up", "u_shaped"])
def test_no_padding_crosses_and_both_ends_book_the_same(exchange):
    ends = Ends(f"exchange={exchange}", "cut=1")
    ends.step(batch(), LABELS.long())
    transfers = ends.passages[1].transfers
    assert len(transfers) == (2 if exchange == "labels_up" else 4)
    header = 20 + 4 * 3 + 8 + 7 & ~7  # of three dimensions and one section
    for one in transfers:
        assert one.raw_bytes == 27 * 16 * 4
        assert one.num_bytes == one.raw_bytes + header + (8 if one.channel == "smashed" else 0)  # lengths, once
    assert sorted(map(repr, transfers)) == sorted(map(repr, ends.passages[0].transfers))


def test_what_a_text_has_not_got_is_nobodys_business():
    model = Ends().network.model.eval()
    short, long = batch(torch.tensor([5])), batch(torch.tensor([5, 12]))
    long[0, :5] = short
    assert torch.allclose(model(short)[0], model(long)[0], atol=1e-6)


@pytest.mark.parametrize(
    "overrides, shapes",
    [
        (["cut=0"], [(12, 16)]),
        (["cut=2"], [(12, 16)]),
        (["cut=mean"], [(16,)]),
        (["exchange=u_shaped", "cut=1"], [(12, 16), (12, 16)]),
        (["exchange=u_shaped", "cut=1", "cut_back=mean"], [(12, 16), (16,)]),
    ],
)
def test_a_cut_is_ragged_where_it_has_a_row_for_each_position(overrides, shapes):
    cuts = Ends(*overrides).network.cuts
    assert [cut.shape for cut in cuts] == shapes
    assert [cut.is_ragged for cut in cuts] == [len(shape) == 2 for shape in shapes]


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (
            [*TINY, "arch=gpt"],
            "^arch=gpt gives no classes: task=sequence_classification needs one that tells texts apart",
        ),
        ([*TINY[:1], "arch=convnet"], "^arch=convnet takes images: task=sequence_classification needs"),
        (["task=causal_lm", "arch=encoder"], "^arch=encoder gives classes: task=causal_lm needs a network of tokens"),
        ([*TINY, "cut=7"], "^cut=7 is after block 7, and there are 2 blocks"),
        (
            [*TINY, "cut=blocks.0.attention"],
            "^cut=blocks.0.attention is not possible: .*Valid cuts: .*blocks.0, blocks.1",
        ),
        ([*TINY, "bottleneck=4"], "^bottleneck=4 is for samples of one shape"),
    ],
)
def test_what_does_not_fit_is_one_sentence(overrides, expected):
    with pytest.raises(UserError, match=expected):
        network.check(compose(*overrides))


# What others send


@pytest.mark.parametrize(
    "lengths, expected",
    [
        (None, "no 1-D uint16"),
        ([5, 1], "no 1-D uint16"),
        (LENGTHS.long(), "no 1-D uint16"),
        (LENGTHS.view(2, 2), "no 1-D uint16"),
        (LENGTHS.to("meta"), "no plain tensor"),
        (LENGTHS[:0], "0 lengths, where a batch has 1 to 4"),
        (torch.cat([LENGTHS, LENGTHS]), "8 lengths, where a batch has 1 to 4"),
        (torch.tensor([0, 3], dtype=torch.uint16), "from 0 to 3; samples have 1 to 12"),
        (torch.tensor([13, 3], dtype=torch.uint16), "from 3 to 13; samples have 1 to 12"),
    ],
)
def test_malformed_lengths_are_refused_before_anything_is_computed(lengths, expected):
    agreement = Ends().agreement
    assert Smashed.parse((WIRE, LABELS, LENGTHS), agreement).lengths is LENGTHS
    with pytest.raises(Unfit, match=expected):
        Smashed.parse((WIRE, LABELS, lengths), agreement)
    with pytest.raises(Unfit, match="does not have 3 parts"):
        Smashed.parse((WIRE, LABELS), agreement)


@pytest.mark.parametrize("options", [["cut=mean"], ["task=image_classification", "data=digits", "arch=convnet"]])
def test_where_all_are_of_one_shape_no_lengths_cross(options):
    cfg = compose(*TINY[:1], "cut=medium", *options) if len(options) > 1 else compose(*TINY, *options)
    task, channels = task_from(cfg), channels_of(cfg, exchange_from(cfg))
    about = ABOUT if len(options) == 1 else {"num_classes": 10, "classes": list("0123456789")}
    know(channels, network.build(cfg, about), cfg)
    agreement = Agreement(cfg, task, channels)
    agreement.about = about
    assert len(Smashed.parse((WIRE, LABELS), agreement).body()) == 2
    with pytest.raises(Unfit, match="does not have 2 parts"):
        Smashed.parse((WIRE, LABELS, LENGTHS), agreement)


@pytest.mark.parametrize(
    "lengths, labels, expected",
    [
        ([5, 1, 9, 11], 4, "shape"),  # fewer rows than came
        ([5, 1, 9, 12], 3, "client 0 sent 4 lengths of 3 samples"),
        ([5, 1, 9], 4, "client 0 sent 3 lengths of 4 samples"),
        ([9, 9, 9], 3, None),  # of other samples, but as many rows: nobody can tell
    ],
)
def test_lengths_that_are_not_the_maps_are_refused(lengths, labels, expected):
    ends = Ends()
    client = ends.exchange.client(ends.network.client, ends.passages[0], ends.task, batch(), LABELS.long())
    server = ends.exchange.server(ends.network.server, ends.passages[1], ends.task)
    sent = next(client)
    next(server)
    changed = Smashed(sent.wire, LABELS[:labels], torch.tensor(lengths, dtype=torch.uint16))
    if expected is None:
        assert server.send(changed).loss > 0
        return
    with pytest.raises(PeerError, match=expected):
        server.send(changed)


# What is measured


def test_f1_is_of_the_second_of_two_classes_and_of_more_the_mean():
    task = SequenceClassification()
    assert task.of_confusion(torch.tensor([[5, 3], [1, 6]]))["f1"] == pytest.approx(2 * 6 / (9 + 7))
    three = torch.tensor([[4, 1, 0], [2, 3, 0], [0, 0, 0]])  # of the third there is none
    assert task.of_confusion(three)["f1"] == pytest.approx((8 / 11 + 6 / 9) / 2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a run on texts that are told apart by a letter."""
    folder = tmp_path_factory.mktemp("run")
    rows = [("xyz"[number % 3] * (1 + number % 4) + "y" * (number % 7), "abc"[number % 3]) for number in range(96)]
    with open(folder / "texts.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    options = ["num_clients=2", "batch_size=8", "epochs=6", "optimizer.lr=0.02", "cut=1", "data.test_fraction=0.25"]
    local.run(compose(*TINY, f"data.root={folder / 'texts.csv'}", *options, "compressor=qu"), folder / "run")
    return folder / "run"


def test_a_run_learns_and_says_how_well(finished):
    found = summary(finished)
    assert found["test_top1"] > 0.9 and 0.9 < found["test_f1"] <= 1 and found["by_class"].keys() == {*"abc"}
    assert found["best_test_top1"] == max(line["top1"] for line in metrics(finished, "evaluation"))
    assert metrics(finished, "evaluation")[-1]["f1"] == found["test_f1"]
    assert (finished / "confusion.csv").read_text().startswith("class,a,b,c\n")
    assert found["map_shape"] == [12, 16] and found["tokenizer"] == "bytes"
    assert found["uplink"]["uncompressed_bytes"] == found["downlink"]["uncompressed_bytes"]
    with open(finished.parent / "texts.csv", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    assert found["uplink"]["uncompressed_bytes"] < 6 * 64 * sum(map(len, texts)) < 6 * 64 * 12 * len(texts)


def test_it_can_be_evaluated_anew_and_exported(finished, run_here, tmp_path):
    status, out = run_here(ROOT / "scripts" / "evaluate.py", str(finished))
    assert status == 0 and f"F1 {summary(finished)['test_f1']:.2%}" in out
    status, _ = run_here(ROOT / "scripts" / "export.py", str(finished), str(tmp_path / "encoder.pt"))
    assert status == 0 and Ends().network.model.load_state_dict(torch.load(tmp_path / "encoder.pt"))


def test_the_server_can_test_on_its_own(reviews, tmp_path):
    options = ["num_clients=2", "batch_size=8", "epochs=1", "exchange=u_shaped", "evaluate.on=server"]
    local.run(compose(*TINY, *reviews, *options), tmp_path / "run")
    found = summary(tmp_path / "run")
    assert found["tested"]["samples"] == 40 and 0 <= found["test_f1"] <= 1
