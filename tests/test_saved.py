"""What a run has left can be exported and evaluated."""

import json
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from runs import ROOT, summary
from simulation import compose
from test_scripts import cells

from splitlearn import local, saved
from splitlearn.checkpoints import Checkpoints, write
from splitlearn.errors import UserError

SMALL = ["num_clients=2", "epochs=1", "data.max_train_samples=48", "data.max_test_samples=20", "batch_size=8"]
EXPORT, EVALUATE = (ROOT / "scripts" / name for name in ("export.py", "evaluate.py"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    local.run(compose(*SMALL), folder)
    return folder


def test_the_uncut_network_predicts_what_the_segments_do(trained):
    run = saved.load(trained)
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    built = run.network()
    with torch.no_grad():
        assert torch.equal(run.model()(images), built.server(built.client(images)))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_export_loads_into_the_uncut_network(trained, suffix, run_here, tmp_path):
    path = tmp_path / f"model{suffix}"
    load = torch.load
    if suffix == ".safetensors":
        load = pytest.importorskip("safetensors.torch").load_file
    status, out = run_here(EXPORT, str(trained), str(path))
    assert status == 0 and "convnet after step 3" in out
    state, expected = load(path), saved.load(trained).model().state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_evaluation_repeats_the_runs_own(trained, run_here):
    status, out = run_here(EVALUATE, str(trained))
    assert status == 0
    ms, none = (cells(line) for line in out.splitlines() if line.startswith(("| as conf", "| no comp")))
    found = summary(trained)
    assert ms[1] == found["uplink"]["compressor"] and none[1] == "none"
    assert ms[2:5] == [f"{found['test_top1']:.2%}", f"{found['test_top5']:.2%}", f"{found['test_loss']:.4f}"]
    assert float(none[5].replace(",", "")) > 10 * float(ms[5].replace(",", ""))


def test_a_run_that_has_not_finished_gives_its_last_checkpoint(trained, tmp_path):
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text((trained / "config.yaml").read_text())
    with pytest.raises(UserError, match="holds a run without weights"):
        saved.load(unfinished)
    (unfinished / "checkpoints").symlink_to(trained / "checkpoints")
    run, finished = saved.load(unfinished), saved.load(trained)
    assert run.step == finished.step == 3
    assert all(torch.equal(run.client[name], finished.client[name]) for name in finished.client)
    assert all(torch.equal(run.server[name], finished.server[name]) for name in finished.server)


def test_a_run_whose_clients_come_and_go_gives_their_average(trained, tmp_path):
    (tmp_path / "config.yaml").write_text((trained / "config.yaml").read_text())
    kept = Checkpoints(trained / "checkpoints", keep=1).latest()
    (tmp_path / "checkpoints").mkdir()
    (average,) = kept["clients"]["states"]
    write(tmp_path / "checkpoints" / "step-000000003.pt", {**kept, "clients": {"states": [average], "members": {}}})
    assert saved.load(tmp_path).client.keys() == saved.load(trained).client.keys()


def test_a_run_whose_classes_had_no_names_yet_is_loaded(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    found = summary(trained)
    del found["classes"], found["tested"]
    (tmp_path / "run" / "summary.json").write_text(json.dumps(found))
    assert saved.load(tmp_path / "run").model().state_dict().keys() == saved.load(trained).model().state_dict().keys()


@pytest.mark.parametrize("content", ["", '{"test_top1": 0.'])
def test_a_torn_summary_is_that_of_a_run_that_has_not_finished(content, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    cfg = OmegaConf.load(trained / "config.yaml")
    assert saved.finished_result(tmp_path / "run", cfg) == summary(trained)["test_top1"]
    (tmp_path / "run" / "summary.json").write_text(content)
    assert saved.finished_result(tmp_path / "run", cfg) is None
    assert saved.load(tmp_path / "run").step == 3


def test_evaluation_is_in_the_runs_precision(trained, run_here, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    cfg = OmegaConf.load(trained / "config.yaml")
    sizes = []
    for cfg.precision, cfg.cut_precision in (("fp32", None), ("bf16", None), ("bf16", "fp32")):
        OmegaConf.save(cfg, tmp_path / "run" / "config.yaml")
        status, out = run_here(EVALUATE, str(tmp_path / "run"))
        assert status == 0
        (none,) = (cells(line) for line in out.splitlines() if line.startswith("| no comp"))
        sizes.append(int(none[5].replace(",", "")))
    assert sizes[0] == sizes[2] == pytest.approx(2 * sizes[1], rel=0.01)


@pytest.mark.parametrize("script", [EXPORT, EVALUATE])
def test_a_folder_without_a_run_is_one_sentence(script, run_here, tmp_path):
    status, out = run_here(script, str(tmp_path), *(["model.pt"] if script == EXPORT else []))
    assert "holds no run: there is no config.yaml" in f"{status}{out}" and status != 0
