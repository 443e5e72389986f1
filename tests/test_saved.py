"""What a run has left can be exported and evaluated."""

import csv
import json
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from runs import ROOT, summary
from simulation import compose
from test_scripts import cells

import splitlearn
from splitlearn import local, saved
from splitlearn.checkpoints import Checkpoints, write
from splitlearn.errors import UserError
from splitlearn.exchange import network
from splitlearn.tasks import task_from
from splitlearn.words import quoted

SMALL = ["num_clients=2", "epochs=1", "data.max_train_samples=48", "data.max_test_samples=20", "batch_size=8"]
EXPORT, EVALUATE = (ROOT / "scripts" / name for name in ("export.py", "evaluate.py"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    local.run(compose(*SMALL, "checkpoint.best=true"), folder)
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


@pytest.mark.parametrize("path", ["/proc/model.pt", "/proc/model.safetensors", "/dev/full/model.pt", "full.pt"])
def test_an_export_that_cannot_be_written_is_one_sentence(path, trained, run_here, tmp_path):
    (tmp_path / "full.pt").symlink_to("/dev/full")
    status, _ = run_here(EXPORT, str(trained), path)
    assert str(status).startswith(path if "full/" not in path else "/dev/full") and "\n" not in status


def test_no_test_samples_are_one_sentence(trained, run_here, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    cfg = OmegaConf.load(trained / "config.yaml")
    cfg.data.max_test_samples = 0
    OmegaConf.save(cfg, tmp_path / "run" / "config.yaml")
    status, _ = run_here(EVALUATE, "run")
    assert status == "data=digits holds no test samples: give another"


@pytest.fixture(scope="module")
def squeezed(tmp_path_factory):
    """A run with a bottleneck."""
    folder = tmp_path_factory.mktemp("squeezed")
    local.run(compose(*SMALL, "bottleneck=8"), folder)
    return folder


def test_a_bottleneck_is_exported_loads_back_and_is_evaluated(squeezed, trained, run_here, tmp_path):
    path = tmp_path / "model.pt"
    status, out = run_here(EXPORT, str(squeezed), str(path))
    assert status == 0 and 'splitlearn.with_bottleneck(model, "block2", 8, example)' in out
    run, state = saved.load(squeezed), torch.load(path)
    names = {f"bottleneck_block2.{layer}.{kind}" for layer in ("reduce", "expand") for kind in ("weight", "bias")}
    assert state.keys() == saved.load(trained).model().state_dict().keys() | names
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = task_from(run.cfg).network(run.cfg, run.about)
    model = splitlearn.with_bottleneck(plain, "block2", 8, images).eval()
    model.load_state_dict(state)
    built = run.network()
    with torch.no_grad():
        expected = built.server(built.client(images))
        assert torch.equal(model(images), expected) and torch.equal(run.model()(images), expected)

    status, out = run_here(EVALUATE, str(squeezed))
    assert status == 0 and "convnet cut=medium, bottleneck=8 after step 3" in out
    (ms, *_) = (cells(line) for line in out.splitlines() if line.startswith("| as conf"))
    found = summary(squeezed)
    assert ms[2:5] == [f"{found['test_top1']:.2%}", f"{found['test_top5']:.2%}", f"{found['test_loss']:.4f}"]


def test_a_run_with_a_bottleneck_starts_from_one_without_and_from_its_like(squeezed, trained, tmp_path):
    still = ["schedule=constant", "optimizer.lr=0", "optimizer.weight_decay=0", "bottleneck=8"]
    local.run(compose(*SMALL, *still, f"init_from={quoted(str(trained))}"), tmp_path / "fitted")
    local.run(compose(*SMALL, *still, f"init_from={quoted(str(squeezed))}"), tmp_path / "taken")
    pairs = {}
    for name, origin in (("fitted", trained), ("taken", squeezed)):
        found, expected = (dict(saved.load(run).model().named_parameters()) for run in (tmp_path / name, origin))
        assert all(torch.equal(found[key], value) for key, value in expected.items())
        pairs[name] = {key: value for key, value in found.items() if key.startswith("bottleneck")}
    assert len(pairs["fitted"]) == 4
    assert not torch.equal(*(pair["bottleneck_block2.reduce.weight"] for pair in pairs.values()))
    assert summary(tmp_path / "fitted")["other_bytes"]["bottleneck_up"] > 0
    assert summary(tmp_path / "taken")["other_bytes"]["bottleneck_up"] == 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            [],
            r"another network: bottleneck_block2\S+ is \(64,\) there and missing here, and 3 more .*bottleneck or",
        ),
        (["bottleneck=4"], r"bottleneck_block2.expand.weight is \(64, 8, 1, 1\) there and \(64, 4, 1, 1\) here"),
        (["bottleneck=8", "cut=shallow"], r"bottleneck_block2\S+ is \(64,\) there and missing here"),
    ],
)
def test_but_not_from_one_with_another(overrides, words, squeezed):
    built = network.build(compose(*SMALL, *overrides), {"num_classes": 10})
    with pytest.raises(UserError, match=words):
        network.load(built, saved.weights(squeezed), f"init_from={squeezed}")


@pytest.fixture
def trained_on(trained, tmp_path):
    """The same run, as if it had gone on for an epoch that spoiled the weights, and did not become the best."""
    folder = shutil.copytree(trained, tmp_path / "trained_on")
    found = summary(folder)
    (folder / "summary.json").write_text(json.dumps({**found, "steps": 2 * found["steps"], "test_top1": 0.0}))
    for path in folder.glob("[cs]*_segment.pt"):
        torch.save({name: torch.zeros_like(tensor) for name, tensor in torch.load(path).items()}, path)
    return folder


def test_the_best_weights_are_exported_and_evaluated(trained, trained_on, run_here, tmp_path):
    status, out = run_here(EXPORT, str(trained_on), str(tmp_path / "model.pt"), "--best")
    assert status == 0 and "convnet after step 3" in out
    state, expected = torch.load(tmp_path / "model.pt"), saved.load(trained).model().state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    (ms, *_), (spoiled, *_) = (
        [cells(line) for line in run_here(EVALUATE, str(trained_on), *best)[1].splitlines() if line.startswith("| as")]
        for best in (["--best"], [])
    )
    assert ms[2] == f"{summary(trained)['best_weights']['top1']:.2%}" and ms[3:5] != spoiled[3:5]


def test_of_a_run_that_has_not_finished_too(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "summary.json").unlink()
    run, expected = saved.load(folder, best=True), saved.load(trained)
    assert run.step == 3 and all(torch.equal(run.client[name], expected.client[name]) for name in expected.client)


@pytest.mark.parametrize("script", [EXPORT, EVALUATE])
def test_best_weights_that_were_not_kept_are_one_sentence(script, trained, run_here, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "summary.json").write_text(json.dumps({**summary(folder), "best_weights": None}))
    status, out = run_here(script, str(folder), *(["model.pt"] if script == EXPORT else []), "--best")
    assert "holds no best weights: a run keeps them with checkpoint.best=true" in f"{status}{out}" and status != 0


def test_evaluation_repeats_the_runs_own(trained, run_here):
    status, out = run_here(EVALUATE, str(trained))
    assert status == 0
    ms, none = (cells(line) for line in out.splitlines() if line.startswith(("| as conf", "| no comp")))
    found = summary(trained)
    assert ms[1] == found["uplink"]["compressor"] and none[1] == "none"
    assert ms[2:5] == [f"{found['test_top1']:.2%}", f"{found['test_top5']:.2%}", f"{found['test_loss']:.4f}"]
    assert float(none[5].replace(",", "")) > 10 * float(ms[5].replace(",", ""))


def test_another_run_starts_from_its_weights_at_another_cut(trained, tmp_path):
    start = tmp_path / "a start (1)"
    shutil.copytree(trained, start)
    options = [*SMALL, "schedule=constant", "exchange=u_shaped", "cut=shallow", "compressor=qu"]
    cfg = compose(*options, "optimizer.lr=0", "optimizer.weight_decay=0", f"init_from={quoted(str(start))}")
    local.run(cfg, tmp_path / "run")
    found, expected = saved.load(tmp_path / "run").model(), saved.load(trained).model()
    assert all(torch.equal(one, two) for one, two in zip(found.parameters(), expected.parameters(), strict=True))
    assert any(not torch.equal(one, two) for one, two in zip(found.buffers(), expected.buffers(), strict=True))
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").init_from == str(start)
    shutil.rmtree(start)  # it goes on without
    cfg.epochs = 2
    local.run(cfg, tmp_path / "run")
    assert summary(tmp_path / "run")["epochs"] == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["arch=resnet18"], r"init_from=.* holds another network: .* missing here, and \d+ more differ; start from"),
        (["data=image_folder"], r"another network: classifier.bias is \(10,\) there and \(7,\) here, and 1 more"),
    ],
)
def test_a_run_does_not_start_from_another_network(overrides, words, trained):
    cfg = compose(*SMALL, *overrides)
    built = network.build(cfg, {"num_classes": 7 if "data=image_folder" in overrides else 10})
    with pytest.raises(UserError, match=words):
        network.load(built, saved.weights(trained), f"init_from={trained}")


def test_what_there_is_to_start_from(trained, tmp_path):
    with pytest.raises(UserError, match="init_from: nowhere holds no run"):
        saved.weights("nowhere")
    with pytest.raises(UserError, match="init_from= is blank: name the folder of a run"):
        saved.weights("")
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    state = torch.load(run / "client_segment.pt")
    (run / "client_segment.pt").unlink()
    torch.save(state, run / "client_segment_0.pt")
    torch.save({name: value + 2 for name, value in state.items()}, run / "client_segment_1.pt")
    weights, name = saved.weights(run), next(iter(state))
    torch.testing.assert_close(weights[name], state[name] + 1)  # their mean
    cfg = OmegaConf.load(run / "config.yaml")
    cfg.topology.average = "never"
    OmegaConf.save(cfg, run / "config.yaml")
    with pytest.raises(UserError, match="each client has a network of its own"):
        saved.weights(run)


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


def test_a_run_whose_classes_weighed_the_same_knows_how_many_samples_of_each_it_had(trained, run_here, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.task.class_weights = "balanced"
    OmegaConf.save(cfg, folder / "config.yaml")
    (folder / "summary.json").write_text(json.dumps({**summary(trained), "num_train_of_class": [4] * 9 + [12]}))
    run, task = saved.load(folder), task_from(cfg)
    task.check_about(run.about)
    task.know(run.about)
    assert task.class_weights.tolist() == pytest.approx([1.2] * 9 + [0.4])
    status, out = run_here(EVALUATE, str(folder))
    assert status == 0 and f"{summary(trained)['test_loss']:.4f}" in out
    (folder / "summary.json").write_text(json.dumps(summary(trained)))  # as before it said so
    assert run_here(EVALUATE, str(folder)) == (0, out)


@pytest.mark.parametrize("content", ["", '{"test_top1": 0.'])
def test_a_torn_summary_is_that_of_a_run_that_has_not_finished(content, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    cfg = OmegaConf.load(trained / "config.yaml")
    assert saved.finished_result(tmp_path / "run", cfg) == summary(trained)["test_top1"]
    (tmp_path / "run" / "summary.json").write_text(content)
    assert saved.finished_result(tmp_path / "run", cfg) is None
    assert saved.load(tmp_path / "run").step == 3


def test_classes_and_clients_are_told_apart_as_the_run_did(trained, run_here):
    found = summary(trained)
    header, *rows = csv.reader((trained / "confusion.csv").read_text().splitlines())
    counts = {name: [int(count) for count in row] for name, *row in rows}
    assert header == ["class", *counts] and sum(map(sum, counts.values())) == found["tested"]["samples"] == 20
    right = {name: row[number] for number, (name, row) in enumerate(counts.items())}
    assert sum(right.values()) / 20 == pytest.approx(found["test_top1"])
    assert found["by_class"] == {name: right[name] / sum(row) for name, row in counts.items() if any(row)}
    assert [its["samples"] for its in found["by_client"].values()] == [10, 10]
    assert sum(its["top1"] for its in found["by_client"].values()) / 2 == pytest.approx(found["test_top1"])
    (line,) = saved.metrics(trained, "evaluation")
    assert (line["by_client"], line["by_class"]) == (found["by_client"], found["by_class"])

    status, out = run_here(EVALUATE, str(trained))
    assert status == 0
    table = [cells(line) for line in out.splitlines() if line.startswith("| ")]
    start = [row[0] for row in table].index("is \\ taken for")
    shown = {name: [int(cell) if cell != "·" else 0 for cell in row] for name, *row, _ in table[start + 1 :]}
    assert shown == counts
    by_client = table[[row[0] for row in table].index("client") + 1 : start]
    assert [float(row[2].rstrip("%")) / 100 for row in by_client] == pytest.approx(
        [its["top1"] for its in found["by_client"].values()], abs=5e-5
    )


def test_clients_of_their_own_segments_are_tested_with_these_as_in_the_run(run_here, tmp_path):
    local.run(compose(*SMALL, "topology.average=never", "epochs=3", "optimizer.lr=0.1"), tmp_path / "run")
    found = summary(tmp_path / "run")
    expected = [pytest.approx(its["top1"], abs=5e-5) for its in found["by_client"].values()]

    def evaluated(*options: str) -> tuple[str, list[float]]:
        status, out = run_here(EVALUATE, "run", *options)
        assert status == 0, out
        table = [cells(line) for line in out.splitlines() if line.startswith("| ")]
        start = [row[0] for row in table].index("client")
        return out, [float(row[2].rstrip("%")) / 100 for row in table[start + 1 : start + 3]]

    out, by_client = evaluated()
    assert by_client == expected and f"| {found['test_loss']:.4f} |" in out
    assert "20 test samples of digits, each client's with its own segment\n" in out
    for client in range(2):
        out, by_client = evaluated("--client", f"{client}")
        assert f"20 test samples of digits, with the segment of client {client}\n" in out
        assert by_client[client] == expected[client] and f"| {found['test_loss']:.4f} |" not in out


@pytest.fixture
def started(trained, tmp_path):
    """The same run, with what it was started with."""
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.create([*SMALL]), folder / ".hydra" / "overrides.yaml")
    return folder


@pytest.mark.parametrize(
    "overrides",
    [["cut=deep"], ["exchange=u_shaped"], ["arch=vgg_slim"], ["bottleneck=8"], ["+data.max_length=9"]],
)
def test_another_network_than_the_runs_is_refused(overrides, started, run_here):
    status, _ = run_here(EVALUATE, str(started), *overrides)
    assert status.startswith(f"{started} is evaluated with the network that it has trained: leave out ")
    assert overrides[0].split("=")[0].lstrip("+") in status and "\n" not in status


def test_values_that_launch_refuses_are_refused_here_too(started, run_here):
    status, _ = run_here(EVALUATE, str(started), "precision=bf17")
    assert status == "precision=bf17 is unknown: choose one of fp32, bf16, fp16"


def test_overrides_of_what_is_not_the_network_may_stand_behind_an_option(started, run_here):
    status, out = run_here(EVALUATE, str(started), "--client", "0", "compressor=qu", "compressor.bits=4")
    assert status == 0 and "qu" in out


def test_options_of_a_codec_go_with_it_and_a_runs_own_files_are_found(started, run_here, tmp_path):
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "mine.yaml").write_text("{_target_: torch.optim.SGD, lr: 0.125}")
    words = [*SMALL, "optimizer=mine", "compressor=qu", "compressor.bits=4"]
    OmegaConf.save(OmegaConf.create(words), started / ".hydra" / "overrides.yaml")
    source = {"path": str(tmp_path / "conf"), "schema": "file", "provider": "command-line"}
    runtime = {"config_sources": [source], "choices": {"compressor": "qu"}}
    OmegaConf.save({"hydra": {"runtime": runtime}}, started / ".hydra" / "hydra.yaml")
    status, out = run_here(EVALUATE, str(started), "compressor=none")
    assert status == 0, f"{status}{out}"
    (row,) = (cells(line) for line in out.splitlines() if line.startswith("| as c"))
    assert row[1] == "none"


def test_data_of_other_classes_than_the_runs_are_one_sentence(started, run_here):
    status, _ = run_here(EVALUATE, str(started), "data.classes=[ant,bee,cow,dog,eel,fox,gnu,hen,ibex,jay]")
    assert status.startswith("data=digits does not fit what the run has learned: it has 10 classes")
    assert "and has ant, bee, cow, dog, eel, …" in status and "\n" not in status


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


def test_or_in_another(started, run_here):
    status, out = run_here(EVALUATE, str(started), "codecs=bf16")
    assert status == 0, out
    sizes = [int(cells(line)[5].replace(",", "")) for line in out.splitlines() if line.startswith(("| as c", "| no c"))]
    assert sizes == [pytest.approx(2 * 64 * 8 * 8, rel=0.01)] * 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.yaml", b"", "cannot be read, or is not whole"),
        ("config.yaml", b"cut: [", "cannot be read, or is not whole"),
        ("client_segment.pt", b"PK\x03\x04 and no more", "is not there, or not whole"),
        ("server_segment.pt", None, "is not there, or not whole"),
    ],
)
def test_a_copy_of_a_run_that_is_not_whole_is_one_sentence(name, content, words, trained, run_here, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / name
    path.unlink() if content is None else path.write_bytes(content)
    assert run_here(EVALUATE, "run") == (f"run/{name} {words}: copy the run's folder again", "")


@pytest.mark.parametrize("script", [EXPORT, EVALUATE])
def test_a_folder_without_a_run_is_one_sentence(script, run_here, tmp_path):
    status, out = run_here(script, str(tmp_path), *(["model.pt"] if script == EXPORT else []))
    assert "holds no run: there is no config.yaml" in f"{status}{out}" and status != 0
