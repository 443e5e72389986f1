"""A run that was interrupted anywhere ends as if it had not been, bit for bit."""

import os
import shutil
import signal
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from runs import LAUNCH, ROOT, TINY, children, job_folders, left_over, metrics, slow, started, torchrun, wait_for
from simulation import compose

from splitlearn import checkpoints, local
from splitlearn.errors import UserError
from splitlearn.measure.display import Display
from splitlearn.measure.recorder import Recorder
from splitlearn.roles.progress import Progress
from splitlearn.roles.server import Server

SMALL = ["num_clients=2", "batch_size=8", "epochs=2", "data.max_train_samples=70", "data.max_test_samples=9", "seed=3"]
OFTEN = ["checkpoint.every_steps=1", "checkpoint.keep=1000"]
TIMES = {"seconds", "client_compute_s", "codec_s", "network_s", "waiting_s", "server_compute_s"}


def results(folder: Path, without: set[str]) -> tuple[list[dict], list[dict]]:
    """Every line of the metrics, without times, and all weights."""
    lines = [
        {key: value for key, value in line.items() if key not in TIMES | without}
        for kind in ("step", "evaluation", "epoch")
        for line in metrics(folder, kind)
    ]
    return lines, [torch.load(path) for path in sorted(folder.glob("*_segment*.pt"))]


def assert_same(found: Path, expected: Path, without: set[str] = frozenset()) -> None:
    lines, weights = results(found, without)
    expected_lines, expected_weights = results(expected, without)
    assert lines == expected_lines
    assert len(weights) == len(expected_weights) >= 2
    for one, other in zip(weights, expected_weights, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def as_after(step: int, whole: Path, part: Path) -> Path:
    """A copy of a run's folder, as it was after a step."""
    shutil.copytree(whole, part)
    for path in (part / "checkpoints").iterdir():
        if int(path.stem.split("-")[1]) > step:
            path.unlink()
    for path in (part / "summary.json", *part.glob("[cs]*_segment*.pt")):  # the best stay from before
        path.unlink()
    return part


@pytest.mark.parametrize(
    "overrides",
    [
        slow(["compressor=rt", "compressor@downlink=qu", "downlink.rounding=stochastic", "partition=dirichlet"]),
        slow(["topology.average=step", "partition=dirichlet", "optimizer=adam"]),
        slow(["topology.average=never", "partition=dirichlet", "evaluate.every=2"]),
        slow(["topology=sequential", "partition=dirichlet", "compressor=rt"]),
        slow(["compressor=klt", "compressor.refresh=5", "compressor@downlink=linked", "pipeline_depth=2"]),
        slow(["topology=sequential", "compressor=klt", "compressor.refresh=3", "compressor@downlink=klt"]),
        slow(["compressor=klt", "compressor.refresh=4", "compressor.weighted=0.3", "compressor@downlink=linked"]),
        slow(
            [
                "exchange=u_shaped",
                "compressor=klt",
                "compressor@downlink=linked",
                "compressor@features=klt",
                "features.refresh=5",
                "compressor@feature_gradient=linked",
            ]
        ),
        slow(["membership.sample=1", "compressor=klt", "compressor@downlink=klt"]),
        ["membership.sample=1", "compressor=rt", "early_stopping.patience=5", "checkpoint.best=true"],
        slow(["membership.sample=1", "topology.average=never", "optimizer=adam"]),
        slow(["membership.sample=1", "topology=sequential"]),
        slow(["accumulate=3", "schedule=one_cycle", "warmup.epochs=1.5", "clip_norm=1", "partition=dirichlet"]),
        slow(["bottleneck=8", "partition=dirichlet", "compressor=rt"]),
        ["defence=[noise,drop,nopeek]", "compressor=klt", "compressor.refresh=4", "compressor@downlink=linked"],
        slow(["precision=bf16", "data.augment=crop_flip", "cut_precision=fp32"]),  # channels last, and images in memory
        [
            *("task=causal_lm", "arch.dropout=0.1", "arch.depth=3", "arch.width=16", "arch.heads=2"),
            *("task.context=8", "samples_per_epoch=26", "epochs=2", "batch_size=8", "compressor=rt"),
        ],
        slow(
            [
                *("task=sequence_classification", "arch.dropout=0.1", "arch.depth=2", "arch.width=16", "arch.heads=2"),
                *("exchange=u_shaped", "cut=1", "compressor=rt", "compressor@features=klt", "features.refresh=3"),
            ]
        ),
        slow(["bottleneck=[8,32]", "exchange=u_shaped", "topology=sequential"]),
        ["delta=uint8", "compressor=klt", "compressor.refresh=5", "compressor@downlink=linked", "pipeline_depth=2"],
        slow(["delta=bf16", "topology=sequential", "compressor=rt"]),
        ["compressor@weights=uq", "weights.bits=3", "topology.weighting=samples", "partition=dirichlet"],
        slow(
            [
                *("delta=bf16", "task=sequence_classification", "arch.dropout=0.1", "arch.depth=2", "arch.width=16"),
                *(
                    "arch.heads=2",
                    "exchange=u_shaped",
                    "cut=1",
                    "compressor=uq",
                    "samples_per_epoch=13",
                    "batch_size=4",
                ),
            ]
        ),
    ],
    ids=lambda overrides: " ".join(overrides[:2]),
)
def test_going_on_from_any_step_changes_nothing(overrides, tmp_path, reviews):
    texts = reviews if "task=sequence_classification" in overrides else []
    cfg = compose(*SMALL, *OFTEN, *texts, *overrides)
    whole = tmp_path / "whole"
    local.run(cfg, whole)
    steps = [line["step"] for line in metrics(whole, "step")]
    per_epoch = len(steps) // 2
    found = sorted(int(path.stem.split("-")[1]) for path in (whole / "checkpoints").iterdir())
    if cfg.accumulate == 1:
        assert found == steps
    else:  # within an epoch, where the optimizers step
        in_epochs = [(step - 1) % per_epoch + 1 for step in found]
        assert in_epochs == 2 * [*range(cfg.accumulate, per_epoch, cfg.accumulate), per_epoch]
    for last in (found[1] if cfg.accumulate == 1 else found[0], per_epoch):
        part = as_after(last, whole, tmp_path / f"from{last}")
        local.run(cfg, part)
        assert_same(part, whole)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2], ids=["server", "client"])
def test_a_killed_rank_is_started_again_by_torchrun_and_nothing_is_lost(victim, tmp_path):
    options = [*TINY, "epochs=8", "checkpoint.every_steps=1"]
    local.run(compose(*options), tmp_path / "whole")
    command = torchrun(3)
    command[-1:-1] = ["--max-restarts", "1"]
    with started([*command, *options], tmp_path) as process:
        wait_for(tmp_path / "out.txt", "epoch 3/8")
        os.kill(sorted(children(process.pid))[victim], signal.SIGKILL)  # they are started in order
        assert process.wait(120) == 0, (tmp_path / "out.txt").read_text()
    assert (tmp_path / "out.txt").read_text().count("going on in epoch") == 1
    (folder,) = job_folders(tmp_path / "outputs")
    assert_same(folder, tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, slow(signal.SIGTERM)])
def test_a_run_that_is_asked_to_end_goes_on_later(number, tmp_path, run_here):
    options = [*TINY, "epochs=6"]
    local.run(compose(*options), tmp_path / "whole")
    with started([*LAUNCH, *options, "checkpoint.every_epochs=100", "hydra.run.dir=part"], tmp_path) as process:
        wait_for(tmp_path / "out.txt", "epoch 2/6")
        os.kill(process.pid, number)
        assert process.wait(60) == 128 + number
        assert not left_over(process.pid)
    out = (tmp_path / "out.txt").read_text()
    assert "with a checkpoint: go on with resume=" in out and "Traceback" not in out
    before = (tmp_path / "part" / "metrics.jsonl").read_text()
    status, out = run_here(ROOT / "launch.py", "resume=part")
    assert status == 0, out
    assert (tmp_path / "part" / "metrics.jsonl").read_text().startswith(before)  # times and all
    assert_same(tmp_path / "part", tmp_path / "whole")


@pytest.mark.parametrize(
    "overrides",
    [
        ["topology.average=never", "partition=dirichlet", "schedule=constant"],
        slow(["topology=sequential", "schedule=step", "schedule.step_size=1"]),
        slow(["exchange=u_shaped", "optimizer=adam", "schedule=constant"]),
        slow(["pipeline_depth=2", "schedule=multistep", "schedule.milestones=[2]"]),
    ],
    ids=lambda overrides: overrides[0],
)
def test_more_epochs_are_as_if_there_had_been_so_many_from_the_start(overrides, tmp_path):
    options = [*SMALL, *overrides, "data.max_train_samples=40"]
    local.run(compose(*options, "epochs=3"), tmp_path / "whole")
    local.run(compose(*options, "epochs=1"), tmp_path / "part")
    local.run(compose(*options, "epochs=3"), tmp_path / "part")
    assert_same(
        tmp_path / "part", tmp_path / "whole", without={"weights_up_bytes"}
    )  # handed in at the end of one epoch


def test_a_finished_run_is_not_trained_again_nor_another_one_in_its_folder(tmp_path, capfd):
    top1 = local.run(compose(*TINY), tmp_path)
    capfd.readouterr()
    assert local.run(compose(*TINY), tmp_path) == top1
    assert "finished before, with a test accuracy of" in capfd.readouterr().out
    with pytest.raises(UserError, match=r"compressor.bits \(then 2, now 3\).*resume=never"):
        local.run(compose(*TINY, "compressor.bits=3"), tmp_path)


def test_a_folder_without_a_run_is_one_sentence(run_here):
    status, out = run_here(ROOT / "launch.py", "resume=nowhere")
    assert status == 1 and "resume=nowhere: no run was started in that folder" in out and "Traceback" not in out


# Files


def state(step: int) -> dict:
    return {"step": step, "weights": torch.arange(1000.0) + step}


@pytest.fixture
def kept(tmp_path) -> checkpoints.Checkpoints:
    kept = checkpoints.Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (1, 2, 3):
        kept.save(step, state(step))
    kept.wait()
    return kept


def test_the_newest_stay_and_the_newest_is_read(kept):
    assert sorted(path.name for path in kept.folder.iterdir()) == ["step-000000002.pt", "step-000000003.pt"]
    latest = kept.latest()
    assert latest["step"] == 3 and torch.equal(latest["weights"], state(3)["weights"])


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "foreign"])
def test_a_damaged_one_is_told_of_and_the_one_before_is_used(kept, damage):
    path = kept.folder / "step-000000003.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"torn": content[:-100], "flipped": content, "empty": b"", "foreign": b"x" * 5000}[damage])
    with pytest.warns(UserWarning, match=r"step-000000003.pt: .*the checkpoint before it is used"):
        assert kept.latest()["step"] == 2


@pytest.mark.parametrize("keep", [1, 2])
def test_what_comes_after_a_damaged_one_is_kept_and_that_one_can_be_looked_at(keep, tmp_path):
    kept = checkpoints.Checkpoints(tmp_path / "checkpoints", keep)
    kept.folder.mkdir()
    for step in (1, 20):
        checkpoints.write(kept.folder / f"step-{step:09}.pt", state(step))
    damaged = kept.folder / "step-000000020.pt"
    damaged.write_bytes(content := damaged.read_bytes()[:-100])
    for step in (2, 3):
        with pytest.warns(UserWarning) if step == 2 else nullcontext():
            assert kept.latest()["step"] == step - 1
        kept.save(step, state(step))
        kept.wait()
    assert kept.latest()["step"] == 3 and len(list(kept.folder.glob("*.pt"))) == keep
    assert damaged.with_suffix(".damaged").read_bytes() == content
    kept.clear()
    assert not list(kept.folder.iterdir())


def test_what_a_killed_process_left_unfinished_is_not_read_and_goes(kept):
    (kept.folder / "step-000000004.unfinished").write_bytes(b"half")
    assert kept.latest()["step"] == 3
    kept.save(5, state(5))
    kept.wait()
    assert not list(kept.folder.glob("*.unfinished"))


def test_code_in_a_checkpoint_is_not_run(kept, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    checkpoints.write(kept.folder / "step-000000009.pt", {"evil": Evil()})
    with pytest.warns(UserWarning, match="step-000000009.pt"):
        assert kept.latest()["step"] == 3
    assert not (tmp_path / "owned").exists()


def test_where_none_is_whole_nothing_is_deleted_and_the_run_does_not_start_over(kept):
    for path in kept.folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    cfg = compose(*TINY, "num_clients=1")
    recorder = Recorder(cfg, kept.folder.parent, Display())
    server = Server(cfg, torch.device("cpu"), recorder, kept)
    with pytest.raises(UserError, match=r"no checkpoint of the run is whole .*3.pt: torn .*2.pt: .*resume=never$"):
        server.runstate.find()
    assert len(list(kept.folder.iterdir())) == 2
    cfg.resume = "never"
    server.runstate.find()
    assert len(list(kept.folder.iterdir())) == 2  # as long as something may still refuse the run
    server.runstate.begin()
    assert server.progress == Progress() and not list(kept.folder.iterdir())
    recorder.close()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder would be")
    kept = checkpoints.Checkpoints(tmp_path / "checkpoints", keep=2)
    kept.save(1, state(1))
    with pytest.raises(UserError, match=r"a checkpoint cannot be written to .*something else is in its place"):
        kept.wait()


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for a megabyte."""
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path]).returncode:
        pytest.skip("needs to mount a tmpfs")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_disk_without_room_is_one_sentence_and_the_last_whole_checkpoint_stays(small_disk):
    kept = checkpoints.Checkpoints(small_disk / "checkpoints", keep=1)
    kept.save(1, {"step": 1, "weights": torch.zeros(150_000)})
    kept.save(2, {"step": 2, "weights": torch.zeros(150_000)})
    with pytest.raises(UserError, match=r"a checkpoint cannot be written to .*No space left.*make room"):
        kept.wait()
    assert [path.name for path in kept.folder.iterdir()] == ["step-000000001.pt"]
    assert kept.latest()["step"] == 1


def test_a_checkpoint_that_cannot_be_made_is_not_lost_silently(kept):
    kept.save(4, {"step": lambda: 4})
    with pytest.raises(AttributeError, match="pickle"):
        kept.wait()
