import sys

import pytest
from simulation import compose

from splitlearn.errors import UserError
from splitlearn.measure.boards import boards


def show(log: dict[str, object], folder, step: int, values: dict[str, float]) -> None:
    cfg = compose()
    cfg.log.update({"tensorboard": False, **log})
    (board,) = boards(cfg, folder, step - 1 or None)
    board.add(values, step)
    board.close()


def test_tensorboard_shows_a_run_that_goes_on(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (1, 2):
        show({"tensorboard": True}, tmp_path, step, {"train/loss": 1 / step, "test/top1": 0.5})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    assert len(events.Scalars("test/top1")) == 2


def test_a_run_that_starts_over_is_alone_on_its_boards(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (1, 2):
        show({"tensorboard": True}, tmp_path, step, {"train/loss": 1 / step})
    (tmp_path / "wandb_id").write_text("before")
    monkeypatch.setitem(sys.modules, "wandb", None)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"log.wandb=mine needs a package"):
        boards(compose("log.wandb=mine"), tmp_path, None)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    show({"tensorboard": True}, tmp_path, 1, {"train/loss": 5.0})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 5.0)]
    assert [path.name.split(".")[0] for path in tmp_path.iterdir()] == ["events"]


def test_wandb_keeps_the_run_that_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (1, 2):
        show({"wandb": "project"}, tmp_path, step, {"train/loss": 1 / step})
    number = (tmp_path / "wandb_id").read_text()
    files = [path.name for path in tmp_path.glob("wandb/offline-run-*/*.wandb")]
    assert files and set(files) == {f"run-{number}.wandb"}


def test_mlflow_keeps_the_run_that_goes_on(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    for step in (1, 2):
        show({"mlflow": "experiment"}, tmp_path, step, {"train/loss": 1 / step})
    client = mlflow.MlflowClient()
    run_id = (tmp_path / "mlflow_id").read_text()
    assert [(one.step, one.value) for one in client.get_metric_history(run_id, "train/loss")] == [(1, 1.0), (2, 0.5)]
    assert client.get_run(run_id).data.params["compressor.bits"] == "2"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"log.{name}=mine needs a package: pip install {name}"):
        boards(compose(f"log.{name}=mine"), tmp_path, None)
