"""Runs that send changes: what they say of their memory, and what they refuse."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import metrics, summary
from simulation import compose
from torch.utils.data import DataLoader

from splitlearn import local
from splitlearn.errors import UserError
from splitlearn.exchange import network
from splitlearn.exchange.channels import channels_of, know
from splitlearn.exchange.exchange import exchange_from
from splitlearn.roles.client import Client
from splitlearn.roles.fit import check_latest, dropout_note, latest_notes
from splitlearn.tasks import task_from

ENCODER = ["task=sequence_classification", "arch.depth=2", "arch.width=16", "arch.heads=2", "cut=1"]


def server_of(*overrides: str, num_samples: int = 1000) -> SimpleNamespace:
    cfg = compose("delta=bf16", *overrides)
    task, channels = task_from(cfg), channels_of(cfg, exchange_from(cfg))
    know(channels, network.build(cfg, task.default_about(cfg)), cfg)
    members = {0: SimpleNamespace(num_numbered=num_samples), 1: SimpleNamespace(num_numbered=num_samples)}
    roster = SimpleNamespace(members=members, is_open=False)
    return SimpleNamespace(cfg=cfg, task=task, channels=channels, roster=roster)


@pytest.mark.parametrize(
    ("overrides", "megabytes"),
    [
        (["arch=convnet", "cut=medium"], 2000 * 2 * 64 * 8 * 8 / 1e6),
        (["arch=convnet", "cut=medium", "delta=uint8"], 2000 * 64 * (8 * 8 + 4) / 1e6),
        ([*ENCODER, "compressor=uq", "data.root=x", "data.max_length=24"], 2000 * 2 * 24 * 16 / 1e6),
    ],
    ids=["maps", "uint8", "texts"],
)
def test_its_memory_is_stated_and_more_than_allowed_is_refused(overrides, megabytes):
    server = server_of(*overrides)
    kind = server.cfg.delta
    assert latest_notes(server)[0].startswith(f"delta={kind} holds the smashed data of each training sample: up to ")
    assert f"up to {megabytes:,.1f} MB in the server's memory" in latest_notes(server)[0]
    arguments = server.roster.members, server.channels, server.task
    server.cfg.delta_gb = megabytes / 1e3 * 1.001
    check_latest(*arguments, server.cfg)
    server.cfg.delta_gb = megabytes / 1e3 * 0.999
    with pytest.raises(UserError, match=rf"^delta={kind} may take the server .* 2,000 samples, more than delta_gb="):
        check_latest(*arguments, server.cfg)


def test_without_it_there_is_nothing_to_say():
    server = server_of("delta=null", "delta_gb=1e-9")
    assert latest_notes(server) == []
    check_latest(server.roster.members, server.channels, server.task, server.cfg)


def test_data_whose_transform_is_ones_own_are_pointed_out():
    server = server_of("data=cifar10", "data.transform=[torchvision.transforms.v2.RandomVerticalFlip]")
    assert "data.transform has to be the same for a sample each time" in latest_notes(server)[1]


def test_dropout_before_the_cut_is_pointed_out():
    cfg = compose(*ENCODER, "data.root=x", "arch.dropout=0.1")
    assert "the client's part has dropout" in dropout_note(network.build(cfg, task_from(cfg).default_about(cfg)))
    cfg.arch.dropout = 0.0
    assert dropout_note(network.build(cfg, task_from(cfg).default_about(cfg))) is None


def test_dropout_behind_the_cut_is_not():
    cfg = compose("arch=vgg16", "cut=medium", "data=cifar10")
    assert dropout_note(network.build(cfg, {"num_classes": 10})) is None


def test_a_loader_that_does_not_tell_is_refused(monkeypatch):
    cfg = compose("delta=bf16", "num_clients=1")
    client = Client(cfg, 0, None, None)
    data = SimpleNamespace(train=DataLoader([1, 2]), num_numbered=0)
    monkeypatch.setattr(client.task, "load", lambda *_: data)
    with pytest.raises(UserError, match=r"^delta=bf16 has to know which samples a batch has, and this task's loader"):
        client.load_data()


def test_a_run_sends_less_of_an_error_and_says_what_it_holds(reviews, tmp_path):
    options = ["compressor=uq", "compressor.bits=1.5", "num_clients=2", "epochs=3", "batch_size=8", "log.error_every=1"]
    options += ["optimizer.lr=1e-4", "checkpoint.every_epochs=null", "evaluate.every=9"]
    for delta in ("null", "uint8"):
        local.run(compose(*ENCODER, *reviews, *options, f"delta={delta}"), tmp_path / delta)
    plain, changes = (summary(tmp_path / delta) for delta in ("null", "uint8"))
    assert "delta_bytes" not in plain
    path = next(one.partition("=")[2] for one in reviews if one.startswith("data.root="))
    texts = [line.rpartition(",")[0].strip('"') for line in Path(path).read_text().splitlines()[1:]]
    assert changes["delta_bytes"] == sum(min(24, len(text)) for text in texts) * (16 + 4)
    more = changes["uplink"]["bytes"] - plain["uplink"]["bytes"]
    assert 0 < more < 0.12 * plain["uplink"]["bytes"]  # of batches this small
    errors = [line["uplink_error"] for line in metrics(tmp_path / "uint8", "step")]
    assert max(errors[-3:]) < 0.5 * min(errors[:3])
