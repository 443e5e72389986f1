"""Whole runs whose labels stay on the clients: all that works for labels_up works for them."""

import shutil
from pathlib import Path

import pytest
import torch
from runs import ROOT, metrics, slow, summary
from simulation import compose
from test_resume import assert_same
from test_scripts import cells

from splitlearn import local, saved
from splitlearn.checks import check
from splitlearn.errors import UserError
from splitlearn.exchange.channels import channels_of
from splitlearn.exchange.exchange import exchange_from

SMALL = ["exchange=u_shaped", "num_clients=2", "batch_size=8", "epochs=2", "data.max_train_samples=70"]
SMALL += ["data.max_test_samples=20", "compressor@features=ms", "compressor@feature_gradient=rt", "seed=3"]


def run(folder: Path, *overrides: str) -> Path:
    local.run(compose(*SMALL, *overrides), folder)
    return folder


@pytest.mark.parametrize(
    "overrides",
    [
        ["partition=dirichlet"],
        slow(["topology=sequential"]),
        slow(["topology.average=step", "partition=dirichlet"]),
        slow(["pipeline_depth=2"]),
    ],
    ids=" ".join,
)
def test_it_goes_on_bit_for_bit(overrides, tmp_path):
    often = ["checkpoint.every_steps=3", "checkpoint.keep=100"]
    whole = run(tmp_path / "whole", *overrides, *often)
    part = shutil.copytree(whole, tmp_path / "part")
    (part / "summary.json").unlink()
    for path in part.glob("checkpoints/*"):
        if path.name > "step-000000003.pt":
            path.unlink()
    assert_same(run(part, *overrides, *often), whole)


def test_codecs_are_of_all_four_channels():
    def codecs(*overrides: str) -> dict[str, str]:
        cfg = compose("exchange=u_shaped", *overrides)
        check(cfg)
        channels = channels_of(cfg, exchange_from(cfg))
        return {name: channel.codec.label for name, channel in channels.items()}

    klt, linked = codecs("codecs=klt")["smashed"], codecs("codecs=klt")["gradient"]
    assert codecs("codecs=klt") == {"smashed": klt, "features": klt, "feature_gradient": linked, "gradient": linked}
    assert "klt" in klt and "linked" in linked
    explicit = codecs("codecs=klt", "features_alike=false", "compressor@features=qu")
    assert "qu" in explicit["features"] and explicit["feature_gradient"] == "none"
    with pytest.raises(UserError, match=r"gives features the codec of compressor: leave compressor@features out"):
        codecs("codecs=klt", "compressor@features=qu")


@pytest.mark.parametrize("frozen", ["[block1,block2]", "[block1,block2,block3]"], ids=["features", "loss"])
def test_divergence_that_an_evaluation_sees_first_is_one_sentence(frozen, tmp_path, capfd):
    options = ["data.max_train_samples=16", "epochs=1", "compressor@features=none", "optimizer.lr=1e30"]
    with pytest.raises(UserError, match=r"^evaluation after epoch 1: .* not finite .*: training diverged; lower"):
        run(tmp_path, *options, f"freeze={frozen}")
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("run"), "partition=dirichlet")


@pytest.mark.slow
def test_in_an_open_run_with_all_there_it_is_the_same(trained, tmp_path):
    assert_same(run(tmp_path, "partition=dirichlet", "membership.open=true", "membership.quorum=2"), trained)


def test_four_channels_are_measured_and_no_labels(trained):
    found = summary(trained)
    for key in ("uplink", "features", "feature_gradient", "downlink"):
        assert found[key]["bytes"] == sum(line[f"{key}_bytes"] for line in metrics(trained, "step")) > 0
        assert found[key]["relative_error"] is not None
    assert found["by_client"].keys() == {"0", "1"}  # of sums; which sample was taken for what, no client has told
    assert "by_class" not in found and not (trained / "confusion.csv").exists()
    assert found["features"]["saving"] > 5 and found["uplink"]["saving"] > 10
    assert found["other_bytes"]["labels_up"] == 0
    assert found["other_bytes"]["evaluation_up"] > 0 and found["other_bytes"]["evaluation_down"] > 0
    epochs = metrics(trained, "epoch")
    for name in ("smashed_up", "features_down", "feature_gradient_up", "gradient_down"):
        assert sum(line[f"{name}_bytes"] for line in epochs) > 0
    assert list(found["cuts"]) == ["block2", "flatten"]


def test_it_is_exported_and_evaluated(trained, run_here, tmp_path):
    status, out = run_here(ROOT / "scripts" / "evaluate.py", str(trained))
    (row,) = (cells(line) for line in out.splitlines() if line.startswith("| as configured"))
    found = summary(trained)
    assert status == 0 and row[2:5] == [
        f"{found['test_top1']:.2%}",
        f"{found['test_top5']:.2%}",
        f"{found['test_loss']:.4f}",
    ]
    status, _ = run_here(ROOT / "scripts" / "export.py", str(trained), str(tmp_path / "model.pt"))
    loaded = saved.load(trained)
    state = torch.load(tmp_path / "model.pt")
    assert status == 0 and state.keys() == loaded.model().state_dict().keys()
    assert {"classifier.weight", "block1.0.weight"} <= loaded.client.keys() and "block3.0.weight" in loaded.server
