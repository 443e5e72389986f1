"""Attacks beat a guess that sees nothing where nothing is defended, and do worse where something is."""

import json
import shutil
from dataclasses import replace
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from runs import ROOT, slow
from simulation import compose

from splitlearn import local
from splitlearn.checks import check
from splitlearn.compose import compose_group
from splitlearn.errors import UserError
from splitlearn.exchange import network
from splitlearn.privacy.attacks import images
from splitlearn.privacy.attacks.attack import Scene
from splitlearn.privacy.attacks.hijacking import Hijacked
from splitlearn.privacy.attacks.inversion import Inversion
from splitlearn.privacy.attacks.labels import LabelInference
from splitlearn.privacy.attacks.unsplit import UnSplit
from splitlearn.transport import Place
from splitlearn.worker import run_rank

pytest.importorskip("torchmetrics")
KEPT = ["observe.batches=4", "observe.every=2", "observe.inputs=true"]
SMALL = ["num_clients=2", "batch_size=32", "epochs=1", "data.max_train_samples=512", "cut=shallow", "seed=1", *KEPT]
HIJACKING = ["exchange=hijacking", "evaluate.on=server"]
QUICK = {"steps": 200, "classifier_steps": 60, "width": 16}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    local.run(compose(*SMALL, "compressor=none"), folder)
    return folder


@pytest.mark.slow
def test_inputs_come_back_from_a_shallow_cut(plain):
    found = Inversion(**QUICK).run(Scene.load(plain), seed=0)
    assert found.figures["ssim"] > found.guess["ssim"] + 0.3 and found.figures["psnr"] > found.guess["psnr"] + 8
    assert found.figures["recognised"] > found.guess["recognised"] + 0.3
    originals, reconstructions = found.pairs
    assert originals.shape == reconstructions.shape and originals.min() >= 0 and reconstructions.max() <= 1


@pytest.mark.slow
def test_tokens_come_back_from_a_shallow_cut(tmp_path):
    options = ["task=causal_lm", "arch.width=32", "arch.depth=2", "cut=shallow", "compressor=none", "num_clients=1"]
    options += ["task.context=32", "batch_size=8", "samples_per_epoch=64", "epochs=1", "data.max_test_samples=64"]
    local.run(compose(*options, *KEPT), tmp_path)
    found = Inversion(**QUICK).run(Scene.load(tmp_path), seed=0)
    assert found.guess["tokens"] < 0.3 and min(found.figures.values()) > 0.8


def test_tokens_of_texts_that_differ_in_length_come_back(tmp_path):
    rows = [f"{'xyz'[number % 3] * (1 + number % 4)}{'yabc'[number % 4] * (number % 7)}" for number in range(64)]
    lines = [f"{text},{number % 3}" for number, text in enumerate(rows)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *lines]))
    options = ["task=sequence_classification", f"data.root={tmp_path / 'texts.csv'}", "data.test_fraction=0.4"]
    options += ["arch.depth=1", "arch.width=16", "arch.heads=2", "data.max_length=12", "batch_size=8", "cut=0"]
    local.run(compose(*options, "num_clients=1", "epochs=1", "compressor=qu", *KEPT), tmp_path)
    scene = Scene.load(tmp_path)
    assert len({inputs.shape[1] for inputs, _ in scene.auxiliary}) > 1  # batches of other lengths
    found = Inversion(**QUICK).run(scene, seed=0)
    assert found.guess["tokens"] < 0.6 and min(found.figures.values()) > 0.8
    shadow = Inversion("shadow", steps=3, classifier_steps=3).run(scene, seed=0)
    assert max(shadow.figures.values()) < min(found.figures.values())
    for one in scene.seen:
        one["channels"]["smashed"] = one["channels"]["smashed"].bfloat16()  # as with precision=bf16
    assert min(Inversion(**QUICK).run(scene, seed=0).figures.values()) > 0.8
    for one in scene.seen:
        one["channels"]["smashed"] = torch.zeros(8, 16)  # as after a mean over positions
    with pytest.raises(UserError, match=r"^attack=inversion of texts needs a map with a row for each token"):
        Inversion().run(scene, seed=0)


@pytest.mark.parametrize("moments", [[], ["data.mean=null"]], ids=["normalised", "not"])
def test_pixels_are_what_there_was_before_they_were_normalised_if_they_were(moments):
    scene, pixels = SimpleNamespace(cfg=compose(*moments)), torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(images.pixels(pixels if moments else 2 * pixels - 1, scene), pixels)


def test_psnr_is_of_the_error_over_all_images_and_ssim_a_mean_over_them():
    scene, originals = SimpleNamespace(cfg=compose()), torch.rand(3, 3, 16, 16)
    found = originals * torch.tensor([1.0, 0.9, 0.2]).view(3, 1, 1, 1)
    likeness = [images.likeness(*pair, scene) for pair in zip(found.split(1), originals.split(1), strict=True)]
    both = images.likeness(found, originals, scene)
    error = (images.pixels(found, scene) - images.pixels(originals, scene)).square().mean()
    assert both["psnr"] == pytest.approx(-10 * error.log10().item(), rel=1e-4)
    assert both["ssim"] == pytest.approx(sum(one["ssim"] for one in likeness) / 3, rel=1e-4)


def test_the_same_seed_finds_the_same(plain):
    one, other = (Inversion(steps=5, classifier_steps=5).run(Scene.load(plain), seed=3) for _ in range(2))
    assert one.figures == other.figures


@pytest.mark.slow
def test_a_shadow_segment_does_worse_than_the_true_one(plain):
    scene = Scene.load(plain)
    shadow = Inversion(weights="shadow", **QUICK).run(scene, seed=0)
    assert shadow.figures["ssim"] < Inversion(**QUICK).run(Scene.load(plain), seed=0).figures["ssim"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "defence",
    [
        ["defence=noise", "defence.noise.clip=20", "defence.noise.scale=0.1"],
        ["defence=nopeek", "defence.nopeek.weight=100"],
        ["defence=drop", "defence.drop.what=patches", "defence.drop.share=0.9"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_defences_make_reconstructions_worse(defence, tmp_path):
    found = []
    for name, overrides in (("without", []), ("with", defence)):
        local.run(compose(*SMALL, "compressor=none", "epochs=6", "observe.every=12", *overrides), tmp_path / name)
        found.append(Inversion(**QUICK).run(Scene.load(tmp_path / name), seed=0).figures["ssim"])
    assert found[1] < found[0] - 0.1


@pytest.mark.parametrize("weights", [slow("unknown"), "known"])
def test_inputs_are_found_without_any_data_like_them(plain, weights):
    found = UnSplit(weights=weights, rounds=15).run(Scene.load(plain), seed=0)
    assert found.figures["ssim"] > found.guess["ssim"] + 0.2 and found.figures["psnr"] > found.guess["psnr"] + 5


@pytest.mark.slow
def test_a_server_that_steers_the_clients_reads_what_an_honest_one_does_not(tmp_path):
    options = ["compressor=none", *HIJACKING, "exchange.width=16", "num_clients=1", "batch_size=16"]
    options += ["epochs=4", "evaluate.every=4", "observe.every=30", "optimizer=adam", "optimizer.lr=1e-3"]
    local.run(compose(*SMALL, *options), tmp_path)
    scene = Scene.load(tmp_path)
    found = Hijacked().run(scene, seed=0)
    assert found.figures["ssim"] > found.guess["ssim"] + 0.1 and found.figures["psnr"] > found.guess["psnr"] + 1
    assert not any(name.startswith("auxiliary.") for name in scene.network.model.state_dict())


def test_hijacking_is_told_of_and_refused_where_it_cannot_be(plain):
    with pytest.raises(UserError, match=r"exchange=hijacking does not go with evaluate\.on=clients"):
        check(compose("exchange=hijacking"))
    with pytest.raises(UserError, match="exchange=hijacking is for images"):
        network.check(compose("task=causal_lm", *HIJACKING))
    with pytest.raises(UserError, match="this one's server trained the task"):
        Hijacked().run(Scene.load(plain), seed=0)
    built = network.build(compose(*HIJACKING), {"num_classes": 10})
    assert any(note.startswith("exchange=hijacking attacks the clients") for note in built.notes)


@pytest.mark.parametrize(("overrides", "said"), [(HIJACKING, "attacks the clients"), (KEPT, "inputs=true")])
def test_what_is_for_one_machine_is_refused_by_a_client_on_another(overrides, said, tmp_path):
    elsewhere = Place(1, 1, "192.0.2.1", 29500, is_fleet=False)
    with pytest.raises(UserError, match=f"{said}.*it is for research, with all ranks on one machine"):
        run_rank(compose(*overrides, "tls.enabled=false"), elsewhere, tmp_path, token=b"t" * 32)


def of_gradients(rows, labels):
    """What label inference finds in (N, …) gradients of samples with (N,) labels."""
    seen = [{"targets": labels, "channels": {"gradient": rows}}]
    return LabelInference().run(Scene(compose(), None, None, 1, seen, [], False), seed=0)


def test_gradients_that_tell_nothing_of_labels_are_worth_a_guess():
    found = []
    for seed in range(6):
        draws = torch.Generator().manual_seed(seed)
        rows, labels = torch.randn(64, 30, generator=draws), torch.randint(10, (64,), generator=draws)
        found.append(of_gradients(rows, labels))
    for name in ("norm_auc", "cosine", "clusters"):
        figure, guess = (fmean(getattr(one, which)[name] for one in found) for which in ("figures", "guess"))
        assert abs(figure - guess) < 0.04, (name, figure, guess)
    telling = of_gradients(rows + 20 * torch.eye(10, 30)[labels] * (1 + labels.view(-1, 1)), labels)
    assert all(figure > telling.guess[name] + 0.1 for name, figure in telling.figures.items()), telling
    assert of_gradients(rows, labels) == found[-1]


def test_labels_are_looked_for_where_gradients_crossed(tmp_path):
    aligned = ["exchange=aligned", "exchange.align_every=3", "observe.batches=3", "observe.every=1"]
    local.run(compose(*SMALL, *aligned, "compressor=none"), tmp_path)
    scene = Scene.load(tmp_path)
    with_one = [one for one in scene.seen if one["batch"] == 1]
    assert len(scene.seen) == 6 and len(with_one) == 2  # of each client the first
    found = LabelInference().run(scene, seed=0)
    assert found == LabelInference().run(replace(scene, seen=with_one), seed=0) and found.num_batches == 2
    others = replace(scene, seen=[one for one in scene.seen if one["batch"] > 1])
    with pytest.raises(UserError, match=r"exchange=aligned sent none with the batches that are kept of epoch 1$"):
        LabelInference().run(others, seed=0)
    others.cfg = compose("exchange=local_loss")
    with pytest.raises(UserError, match=r"^nothing crossed as .* or gradient: exchange=local_loss sends none$"):
        LabelInference().run(others, seed=0)


@pytest.mark.slow
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
    options = ["attack=inversion", "--seeds", "2", "attack.steps=3", "attack.classifier_steps=3"]
    status, out = run_here(ROOT / "scripts" / "attack.py", str(plain), *options)
    assert status == 0, out
    assert "| ssim" in out and " ± " in out and (plain / "attacks" / "inversion.png").exists()
    figures = json.loads((plain / "attacks" / "inversion.json").read_text())["figures"]
    assert figures.keys() == {"psnr", "ssim", "recognised"} and figures["ssim"].keys() == {"mean", "spread", "guess"}


def test_a_sweep_is_attacked_once(plain, tmp_path, run_here):
    shutil.copytree(plain, tmp_path / "cut-shallow", ignore=shutil.ignore_patterns("attacks"))
    options = ["attack=unsplit", "attack.rounds=1"]
    written = []
    for more in ([], [], ["attack.rounds=2"]):
        status, out = run_here(ROOT / "scripts" / "attack.py", str(tmp_path), *options, *more)
        assert status == 0 and "cut-shallow\nunsplit on what is kept of epoch 1, 8 batches" in out, out
        written.append((tmp_path / "cut-shallow" / "attacks" / "unsplit.json").stat().st_mtime_ns)
    assert written[0] == written[1] < written[2]


def test_the_rest_of_a_sweep_is_attacked_where_one_run_cannot_be(plain, tmp_path, run_here):
    for name in ("a", "b", "c"):
        shutil.copytree(plain, tmp_path / name, ignore=shutil.ignore_patterns("attacks"))
    for path in (tmp_path / "a" / "observed").rglob("*.pt"):
        path.unlink()
    (tmp_path / "b" / "config.yaml").write_text((plain / "config.yaml").read_text().replace("LabelsUp", "Missing"))
    options = str(tmp_path), "attack=unsplit", "attack.rounds=1"
    status, out = run_here(ROOT / "scripts" / "attack.py", *options)
    assert status == 0 and out.count("not attacked: ") == 2 and "c\nunsplit on what is kept of epoch 1" in out, out
    assert f"not attacked: {tmp_path / 'a'} has nothing of what its server saw" in out
    assert "not attacked: exchange._target_=splitlearn.exchange.labels_up.Missing cannot be imported: " in out
    shutil.rmtree(tmp_path / "c")
    status, _ = run_here(ROOT / "scripts" / "attack.py", *options)
    assert status == f"no run in {tmp_path} could be attacked"


def test_an_attacker_knows_what_the_defences_do(plain):
    scene = Scene.load(plain)
    inputs = [x for x, _ in scene.auxiliary][:2]
    without = torch.cat(scene.smashed(inputs))
    scene.cfg = OmegaConf.merge(scene.cfg, {"defence": compose("defence=drop", "defence.drop.share=0.5").defence})
    dropped = torch.cat(scene.smashed(inputs))
    is_left = dropped.flatten(2).abs().sum(2) > 0
    assert 0.4 < is_left.float().mean() < 0.6
    torch.testing.assert_close(dropped[is_left], 2 * without[is_left])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            "unsplit attack.steps=5",
            "attack.steps is unknown: did you mean attack.input_steps or attack.weight_steps",
        ),
        ("labels attack.steps=5", "attack.steps is unknown: attack=labels has no options"),
        ("inversion attack.steps=abc", "attack.steps=abc must be a whole number, at least 1"),
        ("inversion attack.steps=0", "attack.steps=0 must be a whole number, at least 1"),
        ("inversion attack.lr=nan", "attack.lr=nan must be a number, at least 0"),
        ("inversion attack.weights=3", "attack.weights=3 must be a text"),
    ],
)
def test_options_that_an_attack_does_not_take_are_one_sentence(options, sentence):
    with pytest.raises(UserError) as told:
        compose_group("attack", f"attack={options}".split())
    assert str(told.value).startswith(sentence)


def test_inputs_that_are_neither_images_nor_texts_are_not_read(plain):
    scene = Scene.load(plain)
    for one in scene.seen:
        one["inputs"] = one["inputs"].flatten(1)
    for attack in (Inversion(), UnSplit()):
        with pytest.raises(UserError, match="inputs of 3072 are neither"):
            attack.run(scene, 0)


def test_what_cannot_be_attacked_is_one_sentence(plain, tmp_path, run_here):
    status, out = run_here(ROOT / "scripts" / "attack.py", str(plain), "attack=magic")
    assert status == "attack=magic: choose one of hijacking, inversion, labels, unsplit", out
    status, out = run_here(ROOT / "scripts" / "attack.py", str(plain), "attack=inversion", "--seeds", "0")
    assert status == 2 and "--seeds 0 must be at least 1" in out
    status, out = run_here(ROOT / "scripts" / "attack.py", str(plain), "attack=inversion", "--epoch", "7")
    assert status.endswith("has nothing of what its server saw in epoch 7: there is 1"), out
    local.run(compose("num_clients=1", "epochs=1", "data.max_train_samples=8", "data.max_test_samples=8"), tmp_path)
    with pytest.raises(UserError, match=r"has nothing of what its server saw \(observe\.batches=20 keeps it\)"):
        Scene.load(tmp_path)
    assert torch.is_tensor(Scene.load(plain).inputs()[0])
