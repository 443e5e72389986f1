"""An evaluation says over how many samples of how many clients it is."""

import csv

import pytest
import torch
from runs import TINY, metrics, summary
from simulation import compose
from test_recorder import CUTS, FIRST, MEASURED, TEN

from splitlearn.exchange.exchange import Outcome
from splitlearn.measure.display import Display
from splitlearn.measure.evaluation import (
    as_csv,
    by_class,
    confusion_of,
    evaluation_of,
    over_in_words,
    parts_in_words,
    told_apart,
)
from splitlearn.measure.recorder import Recorder
from splitlearn.tasks.image_classification import ImageClassification


def outcome(num_samples, correct):
    return Outcome(num_samples, {"top1": float(correct), "top5": float(num_samples), "loss": 2.0 * num_samples})


def test_means_are_over_the_samples_and_not_over_the_clients():
    found = evaluation_of([(0, outcome(10, 10)), (2, outcome(30, 10)), (0, outcome(5, 5))], 360, ImageClassification())
    assert found["top1"] == 25 / 45 and found["loss"] == 2.0
    assert (found["samples"], found["samples_in_all"], found["clients"]) == (45, 360, [0, 2])


def test_each_client_has_its_own_means():
    found = evaluation_of([(0, outcome(10, 10)), (2, outcome(30, 10)), (0, outcome(5, 5))], 360, ImageClassification())
    assert found["by_client"] == {
        "0": {"top1": 1.0, "top5": 1.0, "loss": 2.0, "samples": 15},
        "2": {"top1": 1 / 3, "top5": 1.0, "loss": 2.0, "samples": 30},
    }


def sorted_out(truth, taken_for):
    return Outcome(len(truth), told_apart=torch.tensor([truth, taken_for]).T)


def test_a_class_is_as_right_as_its_samples_and_one_without_samples_is_left_out():
    names = ["cat", "dog, big", "eel"]
    pairs = told_apart([sorted_out([0, 0, 0], [0, 1, 0]), sorted_out([1, 0], [1, 2])])
    confusion = confusion_of(pairs, 3)
    assert confusion.tolist() == [[2, 1, 1], [0, 1, 0], [0, 0, 0]]
    assert by_class(pairs, names) == {"cat": 0.5, "dog, big": 1.0}
    rows = list(csv.reader(as_csv(confusion, names).splitlines()))
    assert rows == [["class", *names], ["cat", "2", "1", "1"], ["dog, big", "0", "1", "0"], ["eel", "0", "0", "0"]]


def test_where_labels_are_not_known_of_all_there_is_no_confusion_matrix():
    assert told_apart([sorted_out([0], [0]), outcome(3, 3)]) is None


def test_of_very_many_classes_there_is_an_accuracy_by_class_and_no_matrix(tmp_path):
    names = [str(number) for number in range(200_000)]  # whose matrix would have 320 GB
    recorder = Recorder(compose(*TINY, "num_clients=1"), tmp_path, Display())
    recorder.open(None)
    recorder.describe(CUTS, {"num_classes": len(names), "classes": names})
    recorder.start(num_steps=1)
    recorder.step(FIRST, [MEASURED], 0.1)
    one = outcome(4, 2)
    one.told_apart = torch.tensor([[7, 7], [7, 0], [199_999, 199_999], [3, 2]])
    recorder.evaluation(1, [(0, one)], 4)
    recorder.end_epoch(1, {})
    recorder.finish()
    assert summary(tmp_path)["by_class"] == {"3": 0.0, "7": 0.5, "199999": 1.0}
    assert not (tmp_path / "confusion.csv").exists()


def test_it_is_shown_in_two_lines_at_most():
    (top1, _), by_client = ImageClassification.metrics, {str(one): {"top1": one / 100} for one in (7, 91, 30)}
    shares = {name: number / 10 for number, name in enumerate("abcdefgh")}
    assert parts_in_words({"by_client": by_client, "by_class": shares}, top1) == [
        "accuracy by client: 7.00% (client 7) to 91.00% (client 91)",
        "accuracy by class: worst a 0.00%, b 10.00%, c 20.00% · best h 70.00%, g 60.00%, f 50.00%",
    ]
    (line,) = parts_in_words({"by_client": {"0": {"top1": 1.0}}, "by_class": {"a": 0.1, "b": 0.2}}, top1)
    assert line == "accuracy by class: worst a 10.00% · best b 20.00%"
    assert parts_in_words({"by_client": {"0": {"top1": 1.0}}}, top1) == []


@pytest.mark.parametrize(
    "samples, in_all, clients, words",
    [
        (360, 360, [0, 1], "over 360 test samples, 2 clients"),
        (45, 360, [3], "over 45 of 360 test samples, 1 of 2 clients"),
        (1360, None, [0], "over 1,360 test samples, 1 of 2 clients"),
    ],
)
def test_it_is_said_in_words(samples, in_all, clients, words):
    assert over_in_words({"samples": samples, "samples_in_all": in_all, "clients": clients}, 2) == words
    assert over_in_words({"samples": 9, "samples_in_all": 9, "clients": [0]}, 1) == "over 9 test samples, 1 client"


@pytest.mark.parametrize("in_all", [40, 320])
def test_an_epochs_line_says_it_where_it_is_not_all_of_them_and_the_last_line_always(in_all, tmp_path, capfd):
    recorder = Recorder(compose(*TINY, "num_clients=8"), tmp_path, Display())
    recorder.open(None)
    recorder.describe(CUTS, TEN)
    recorder.start(num_steps=1)
    recorder.step(FIRST, [MEASURED], 0.1)
    recorder.evaluation(1, [(5, outcome(40, 10))], in_all)
    recorder.end_epoch(1, {})
    recorder.finish()
    epoch, last = (line for line in capfd.readouterr().out.splitlines() if "25.00%" in line)
    assert ("over 40 of 320 test samples, 1 of 8 clients" in epoch) == (in_all == 320)
    assert f"over 40{' of 320' * (in_all == 320)} test samples, 1 of 8 clients" in last
    over = {"samples": 40, "samples_in_all": in_all, "clients": [5]}
    assert summary(tmp_path)["tested"] == over
    (line,) = metrics(tmp_path, "evaluation")
    assert line.items() >= over.items()
