"""What a run has left can be exported and evaluated."""

import pytest
import torch
from runs import ROOT, summary
from simulation import compose
from test_scripts import cells

from splitlearn import local, saved
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
    client, server = run.segments()
    with torch.no_grad():
        assert torch.equal(run.model()(images), server(client(images)))


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
    ms, none = (cells(line) for line in out.splitlines() if line.startswith(("| ms", "| none")))
    assert ms[1] == f"{summary(trained)['test_top1']:.2%}"
    assert float(ms[3]) == pytest.approx(summary(trained)["test_loss"], abs=2e-2)  # other batches
    assert float(none[4].replace(",", "")) > 10 * float(ms[4].replace(",", ""))


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


@pytest.mark.parametrize("script", [EXPORT, EVALUATE])
def test_a_folder_without_a_run_is_one_sentence(script, run_here, tmp_path):
    status, out = run_here(script, str(tmp_path), *(["model.pt"] if script == EXPORT else []))
    assert "holds no run: there is no config.yaml" in f"{status}{out}" and status != 0
