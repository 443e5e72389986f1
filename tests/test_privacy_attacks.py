"""Attacks beat a guess that sees nothing where nothing is defended, and do worse where something is."""

import json

import pytest
import torch
from runs import ROOT
from simulation import compose

from splitlearn import local
from splitlearn.errors import UserError
from splitlearn.privacy.attacks.attack import Scene
from splitlearn.privacy.attacks.inversion import Inversion
from splitlearn.privacy.attacks.labels import LabelInference
from splitlearn.privacy.attacks.unsplit import UnSplit

pytest.importorskip("torchmetrics")
KEPT = ["observe.batches=4", "observe.every=2", "observe.inputs=true"]
SMALL = ["num_clients=2", "batch_size=32", "epochs=1", "data.max_train_samples=512", "cut=shallow", "seed=1", *KEPT]
QUICK = {"steps": 250, "classifier_steps": 60, "width": 32}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    local.run(compose(*SMALL, "compressor=none"), folder)
    return folder


def test_inputs_come_back_from_a_shallow_cut(plain):
    found = Inversion(**QUICK).run(Scene.load(plain), seed=0)
    assert found.figures["ssim"] > found.guess["ssim"] + 0.3 and found.figures["psnr"] > found.guess["psnr"] + 8
    assert found.figures["classified"] > found.guess["classified"] + 0.3
    originals, reconstructions = found.pairs
    assert originals.shape == reconstructions.shape and originals.min() >= 0 and reconstructions.max() <= 1


def test_the_same_seed_finds_the_same(plain):
    one, other = (Inversion(steps=5, classifier_steps=5).run(Scene.load(plain), seed=3) for _ in range(2))
    assert one.figures == other.figures


@pytest.mark.slow
def test_a_shadow_segment_does_worse_than_the_true_one(plain):
    scene = Scene.load(plain)
    shadow = Inversion(weights="shadow", **QUICK).run(scene, seed=0)
    assert shadow.figures["ssim"] < Inversion(**QUICK).run(Scene.load(plain), seed=0).figures["ssim"]


@pytest.mark.slow
def test_noise_makes_reconstructions_worse(plain, tmp_path):
    noise = ["defence=noise", "defence.noise.clip=20", "defence.noise.scale=0.1"]
    local.run(compose(*SMALL, "compressor=none", *noise), tmp_path)
    without, with_noise = (Inversion(**QUICK).run(Scene.load(one), seed=0).figures["ssim"] for one in (plain, tmp_path))
    assert with_noise < without - 0.1


@pytest.mark.parametrize("weights", ["unknown", "known"])
def test_inputs_are_found_without_any_data_like_them(plain, weights):
    found = UnSplit(weights=weights, rounds=15).run(Scene.load(plain), seed=0)
    assert found.figures["ssim"] > found.guess["ssim"] + 0.2 and found.figures["psnr"] > found.guess["psnr"] + 5


def test_labels_come_back_from_the_gradients_of_features(tmp_path):
    options = ["exchange=u_shaped", "compressor=none", "cut_back=last", "partition=dirichlet"]
    figures = []
    for name, defence in (("plain", []), ("longest", ["defence=maxnorm"])):
        local.run(compose(*SMALL, *options, *defence), tmp_path / name)
        found = LabelInference().run(Scene.load(tmp_path / name), seed=0)
        figures.append(found.figures)
    assert figures[0]["cosine"] > found.guess["cosine"] + 0.2 and figures[0]["clusters"] > found.guess["clusters"] + 0.2
    assert figures[1]["cosine"] < figures[0]["cosine"]


def test_the_script_writes_what_it_finds(plain, run_here):
    options = ["attack=inversion", "attack.steps=3", "attack.classifier_steps=3", "--seeds", "2"]
    status, out = run_here(ROOT / "scripts" / "attack.py", str(plain), *options)
    assert status == 0, out
    assert "| ssim" in out and " ± " in out and (plain / "attacks" / "inversion.png").exists()
    figures = json.loads((plain / "attacks" / "inversion.json").read_text())["figures"]
    assert figures.keys() == {"psnr", "ssim", "classified"} and figures["ssim"].keys() == {"mean", "spread", "guess"}


def test_what_cannot_be_attacked_is_one_sentence(plain, tmp_path, run_here):
    status, out = run_here(ROOT / "scripts" / "attack.py", str(plain), "attack=magic")
    assert status == "attack=magic: choose one of inversion, labels, unsplit", out
    status, out = run_here(ROOT / "scripts" / "attack.py", str(plain), "attack=inversion", "--epoch", "7")
    assert status.endswith("has nothing of what its server saw in epoch 7: there is 1"), out
    local.run(compose("num_clients=1", "epochs=1", "data.max_train_samples=8", "data.max_test_samples=8"), tmp_path)
    with pytest.raises(UserError, match=r"has nothing of what its server saw \(observe\.batches=20 keeps it\)"):
        Scene.load(tmp_path)
    assert torch.is_tensor(Scene.load(plain).inputs()[0])
