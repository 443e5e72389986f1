"""What docs/extending.md shows, from files outside the package: all but the attack train, and that attacks."""

import json
import re
import sys

import pytest
from runs import ROOT, TINY, metrics, summary

from splitlearn import checks, local
from splitlearn.compose import compose
from splitlearn.errors import UserError

NUM_CLIENTS = 2
SAMPLES = 64  # of TINY
DIABETES = 353
NAMED = re.compile(r"`([\w/]+\.(?:py|yaml))`:\n\n```(?:python|yaml)\n(.*?)```", re.S)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The files that the page shows, in a folder of their own."""
    for name, text in NAMED.findall((ROOT / "docs" / "extending.md").read_text()):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return tmp_path / "mine"


@pytest.fixture
def train(mine, tmp_path, monkeypatch):
    """train("key=value", …): folder of a run, which has them."""
    folder = tmp_path / "run"
    monkeypatch.syspath_prepend(mine)  # which the ranks' processes take over

    def run(*overrides):
        own = f"hydra.searchpath=[file://{mine}/conf]"
        cfg = compose(own, *TINY, f"num_clients={NUM_CLIENTS}", "optimizer.lr=0.02", *overrides)
        checks.check(cfg)
        local.run(cfg, folder)
        return folder

    return run


def losses(folder):
    return [line["loss"] for line in metrics(folder, "epoch")]


def test_an_exchange(train):
    folder = train("exchange=forward_only", "topology.average=never", "compressor=none", "cut=shallow", "epochs=3")
    found, steps = summary(folder), metrics(folder, "step")
    assert losses(folder)[-1] < losses(folder)[0]
    assert found["uplink"]["uncompressed_bytes"] == 3 * SAMPLES * 4 * 32 * 16 * 16 and "downlink" not in found
    assert found["uplink"]["bytes"] == sum(step["uplink_bytes"] for step in steps)
    assert all("downlink_bytes" not in step for step in steps)
    assert found["other_bytes"]["labels_up"] == 3 * SAMPLES  # a byte each
    assert found["other_bytes"]["weights_down"] == found["other_bytes"]["evaluation_down"] == 0


def test_a_defence(train):
    with pytest.raises(UserError, match=r"^defence\.shuffle: the map at this cut has no places to shuffle"):
        train("defence=shuffle", "cut=flatten")
    folder = train("defence=shuffle", "cut=shallow", "compressor=none", "epochs=3")
    assert losses(folder)[-1] < losses(folder)[0]


def test_an_attack(mine, train, run_here):
    folder = train("cut=shallow", "compressor=none", "observe.batches=4", "observe.inputs=true")
    own = ["--config-dir", str(mine / "conf"), "attack=probe"]
    status, out = run_here(ROOT / "scripts" / "attack.py", str(folder), *own, "attack.strength=0.1")
    assert status == 0 and "probe on what is kept of epoch 1, 2 batches" in out, out
    found = json.loads((folder / "attacks" / "probe.json").read_text())
    assert found["options"] == {"_target_": "probe.Probe", "strength": 0.1}
    assert found["figures"]["accuracy"]["mean"] > found["figures"]["accuracy"]["guess"] + 0.3
    status, out = run_here(ROOT / "scripts" / "attack.py", str(folder), *own, "attack.stregnth=1")
    assert status == "attack.stregnth is unknown: did you mean attack.strength? Choose one of attack.strength"
    status, out = run_here(ROOT / "scripts" / "attack.py", str(folder), *own[:2], "attack=prob")
    assert status == "attack=prob: choose one of hijacking, inversion, labels, probe, unsplit"
    status, out = run_here(ROOT / "scripts" / "attack.py", str(folder), "--config-dir", "nowhere", "attack=probe")
    assert status == "nowhere has no folder attack with options of your own"


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["_target_: probe.Prob"], "attack._target_=probe.Prob cannot be imported: {mine}/probe.py has no Prob"),
        (["_target_: collections.Counter"], "attack._target_=collections.Counter is no Attack: derive the class from"),
        (["_target_: no_run.NoRun"], "attack._target_=no_run.NoRun has to have run too (see docs/extending.md)"),
        (["defaults: [labels]"], "attack.strength=many must be a number, at least 0"),
        (
            ["# @package other", "_target_: probe.Probe"],
            "{mine}/conf/attack/mine.yaml is no file of attack",
        ),
        (["_target_: [unfinished"], "{mine}/conf/attack/mine.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_in_an_attack_of_ones_own_is_one_sentence(lines, sentence, mine, run_here, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(mine)
    lacking = "class NoRun(Attack):\n    def __init__(self, strength): pass"
    (mine / "no_run.py").write_text(f"from splitlearn.privacy.attacks.attack import Attack\n{lacking}\n")
    (mine / "conf" / "attack" / "mine.yaml").write_text("\n".join([*lines, "strength: 1.0", ""]))
    words = ["--config-dir", str(mine / "conf"), "attack=mine", *["attack.strength=many"] * ("defaults" in lines[0])]
    status, out = run_here(ROOT / "scripts" / "attack.py", str(tmp_path), *words)
    assert str(status).startswith(sentence.format(mine=mine)) and "Traceback" not in out, (status, out)


@pytest.mark.slow
def test_a_topology(train):
    folder = train("topology=periodic", "epochs=4")
    epochs = metrics(folder, "epoch")
    assert losses(folder)[-1] < losses(folder)[0]
    segments = [epoch["weights_up_bytes"] for epoch in epochs]
    assert segments == [epoch["weights_down_bytes"] for epoch in epochs]
    assert segments[0] == segments[2] == 0 and segments[1] == segments[3] > 0
    assert len(list(folder.glob("client_segment*.pt"))) == 1


def test_a_task(train, run_here):
    folder = train("task=diabetes", "task.hidden=16", "compressor=qu", "compressor.bits=8")
    found = summary(folder)
    (test,) = metrics(folder, "evaluation")
    assert found["map_shape"] == [16] and found["num_features"] == 10
    assert found["test_mae"] == found["best_test_mae"] == test["mae"] < 0.82  # always guessing the mean is 0.83
    assert found["uplink"]["uncompressed_bytes"] == DIABETES * 4 * 16
    assert found["other_bytes"]["labels_up"] == 4 * DIABETES
    status, out = run_here(ROOT / "scripts" / "export.py", str(folder), "model.pt")
    assert status == 0 and "model.pt: MLP after step" in out


def test_a_task_with_the_servers_own_test_samples(train):
    found = summary(train("task=diabetes", "evaluate.on=server"))
    assert found["tested"] == {"samples": 89, "samples_in_all": 89, "clients": []}
    assert found["test_mae"] < 0.83 and found["other_bytes"]["evaluation_up"] == 0


@pytest.mark.parametrize("flag", [["--config-dir", "mine/conf"], ["--config-dir=mine/conf"], ["-cd", "mine/conf"]])
def test_a_mistake_beside_the_house_is_told_as_one_in_it(flag, mine, run_here, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(mine))
    status, out = run_here(ROOT / "launch.py", *flag, "task=diabetes", "task.hiden=3")
    assert status == 1
    assert out.splitlines()[-1].startswith("task.hiden is unknown: did you mean task.hidden? Choose one of hidden;")
