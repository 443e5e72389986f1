"""Trainings without a cut, held to plain programs, and as rows of a report."""

import copy
import importlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from runs import ROOT, metrics, summary
from simulation import Averaged, compose, cross_entropy, loader_of, optimizer_of, train_uncut

from splitlearn.errors import UserError
from splitlearn.segments.parts import Parts
from splitlearn.tasks.image_classification import networks

BENCHMARKS = ROOT / "scripts" / "benchmarks"
OPTIONS = ["num_clients=2", "batch_size=16", "data.max_train_samples=72", "data.max_test_samples=20", "seed=3"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def anchors(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("anchors")


def averaged(cfg) -> tuple[list[float], int]:
    """Mean losses of the epochs of federated averaging as a plain program, and the bytes of the network.

    With a codec of weights, what arrives of them is as in a run.
    """
    loaders = [loader_of(cfg, number, cfg.num_clients)[0] for number in range(cfg.num_clients)]
    torch.manual_seed(cfg.seed)
    models = [networks.build(cfg.arch.name, 10, cfg.data.image_size)] * cfg.num_clients
    models = [copy.deepcopy(model) for model in models]
    average = Averaged(cfg, Parts(models[:1]))
    optimizers, losses = [optimizer_of(model, cfg) for model in models], []
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(one, cfg.epochs) for one in optimizers]
    for epoch in range(1, cfg.epochs + 1):
        total = samples = 0
        for model, loader, optimizer, schedule in zip(models, loaders, optimizers, schedules, strict=True):
            loader.batch_sampler.start_at(epoch)
            for images, labels in loader:
                loss = cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total, samples = total + loss.item() * len(labels), samples + len(labels)
            schedule.step()
        mean = average({number: model.state_dict() for number, model in enumerate(models)}, epoch)
        for model in models:
            model.load_state_dict(copy.deepcopy(mean))
        losses.append(total / samples)
    return losses, sum(value.nbytes for value in mean.values())


@pytest.mark.parametrize("codec", [[], ["compressor@weights=uq", "weights.bits=3"]])
def test_federated_averaging_equals_a_plain_program_and_counts_its_weights(codec, tmp_path, anchors):
    cfg = compose(*OPTIONS, "epochs=3", *codec)
    anchors.train(anchors.FedAvg, cfg, tmp_path)
    lines, (losses, num_bytes) = metrics(tmp_path, "epoch"), averaged(cfg)
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-6)
    found, sent = summary(tmp_path), [line["weights_up_bytes"] for line in lines]
    if codec:
        assert all(2 * num_bytes / 11 < sent_in_epoch < 2 * num_bytes / 10 for sent_in_epoch in sent)
    else:
        assert sent == [2 * num_bytes] * 3 and found["all_bytes"]["down"] == 6 * num_bytes
    assert found["all_bytes"]["up"] == sum(sent) and found["samples"] == 3 * 72
    assert found["all_bytes"]["down"] == pytest.approx(sum(sent), rel=0.01)
    assert found["test_top1"] == metrics(tmp_path, "evaluation")[-1]["top1"]
    label = "FedAvg, weights uq bits=3" if codec else "FedAvg"
    assert json.loads((tmp_path / "anchor.json").read_text()) == {"method": label}


def test_one_that_was_stopped_goes_on_after_its_last_epoch(tmp_path, anchors, monkeypatch, capfd):
    options = ["accumulate=2", "topology.weighting=samples", "compressor@weights=uq", "weights.bits=4"]
    cfg = compose(*OPTIONS, "epochs=3", *options)
    anchors.train(anchors.FedAvg, cfg, tmp_path / "whole")
    evaluation, calls = anchors.FedAvg.evaluation, []

    def stops(self):
        calls.append(self)
        assert len(calls) < 2, "stopped"
        return evaluation(self)

    with monkeypatch.context() as patch:
        patch.setattr(anchors.FedAvg, "evaluation", stops)
        with pytest.raises(AssertionError, match="stopped"):
            anchors.train(anchors.FedAvg, cfg, tmp_path / "stopped")
    anchors.train(anchors.FedAvg, cfg, tmp_path / "stopped")
    assert "going on in epoch 2" in capfd.readouterr().out
    whole, stopped = (
        [{key: value for key, value in line.items() if key != "seconds"} for line in metrics(tmp_path / name)]
        for name in ("whole", "stopped")
    )
    assert whole == stopped and len(whole) == 6
    anchors.train(anchors.FedAvg, cfg, tmp_path / "stopped")
    assert "finished before" in capfd.readouterr().out
    for kind, its, why in (
        ("FedAvg", [*options[2:], "epochs=4"], "accumulate .there 2, now 1., epochs"),
        ("Images", [], "of another"),
    ):
        other = compose(*OPTIONS, *its) if its else cfg
        with pytest.raises(UserError, match=rf"holds another training \({why}"):
            anchors.train(getattr(anchors, kind), other, tmp_path / "stopped")


@pytest.fixture
def folder(tmp_path):
    """Images of ten classes, six of each to train on and two to test on."""
    draw = np.random.default_rng(0)
    for part, number in (("train", 6), ("test", 2)):
        for label in range(10):
            (tmp_path / "data" / part / str(label)).mkdir(parents=True)
            for index in range(number):
                pixels = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / str(label) / f"{index}.jpg")
    return tmp_path / "data"


@pytest.mark.parametrize("samples", ["null", "12", "99"])
def test_the_server_trains_on_as_many_images_in_as_many_steps_as_all_clients_together(samples, folder, anchors):
    options = [
        "data=image_folder",
        f"data.root={folder}",
        "batch_size=8",
        "num_clients=2",
        f"samples_per_epoch={samples}",
    ]
    (cfg,) = anchors.settings(options)
    clients, server = anchors.FedAvg(cfg), anchors.Images(cfg)
    assert server.data[0].num_train == sum(data.num_train for data in clients.data) == (24 if samples == "12" else 60)
    assert server.num_steps == clients.num_steps


def test_it_is_evaluated_after_every_epoch_whatever_the_exchange(tmp_path, anchors):
    cfg = compose(*OPTIONS, "epochs=2", "exchange=send_once", "exchange.local_epochs=1")
    anchors.train(anchors.FedAvg, cfg, tmp_path)
    assert [line["epoch"] for line in metrics(tmp_path, "evaluation")] == [1, 2]


def test_images_that_are_sent_once_are_files_and_a_row_of_the_report(tmp_path, folder, run_here):
    options = ["data=image_folder", f"data.root={folder}", "batch_size=8", "epochs=2", "num_clients=2"]
    for name, seeds in (("images", "seed=1"), ("fedavg", "seed=1,2")):
        out = str(tmp_path / "all" / name)
        status, text = run_here(BENCHMARKS / "anchors.py", name, "--out", out, *options, seeds)
        assert status == 0, text
    lines = metrics(tmp_path / "all" / "images" / "seed-1", "epoch")
    size = sum(path.stat().st_size for path in folder.glob("train/*/*"))
    assert lines[0]["images_up_bytes"] == size and lines[0]["labels_up_bytes"] == 60
    assert "images_up_bytes" not in lines[1] and lines[1]["samples"] == 60
    losses, _ = train_uncut(compose(*options[:2], "batch_size=16", "epochs=2", "seed=1"))
    sizes = [16, 16, 16, 12]
    expected = [sum(loss * n for loss, n in zip(losses[at : at + 4], sizes, strict=True)) / 60 for at in (0, 4)]
    assert [line["loss"] for line in lines] == pytest.approx(expected, rel=1e-6)
    status, text = run_here(ROOT / "scripts" / "report.py", str(tmp_path / "all"))
    assert status == 0, text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    named = {row[1]: row for row in rows[2:]}
    assert named["each image once, as its file"][6:8] == ["0 B", f"{(size + 60) / 60:.0f} B"]
    assert named["FedAvg"][2] == "2" and named["FedAvg"][5] == named["FedAvg"][6]


@pytest.mark.parametrize(
    "name, overrides, sentence",
    [
        ("images", [], "these images are in no files of their own, whose bytes would count: use data=image_folder"),
        ("fedavg", ["bottleneck=8"], "bottleneck=8 is not offered of a network that is not cut: use bottleneck=null"),
        (
            "images",
            ["early_stopping.patience=2"],
            "early_stopping.patience=2 is not offered of a network that is not cut",
        ),
        ("fedavg", ["optimizer.lr=1e9", "epochs=4"], "training diverged; lower optimizer.lr"),
        ("fedavg", ["epochs=0"], "epochs=0 must be a whole number, at least 1"),
        ("fedavg", ["epoch=1"], "epoch is unknown: did you mean"),
    ],
)
def test_what_cannot_be_is_one_sentence(name, overrides, sentence, tmp_path, run_here):
    status, _ = run_here(BENCHMARKS / "anchors.py", name, "--out", str(tmp_path / "out"), *OPTIONS, *overrides)
    assert sentence in str(status) and "\n" not in str(status)
    assert not (tmp_path / "out" / "seed-3" / "summary.json").exists()
