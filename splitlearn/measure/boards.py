"""Where measurements can be looked at, beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow, by config."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from omegaconf import DictConfig

from splitlearn.config import shared
from splitlearn.errors import UserError, writing_to

REMEMBERED = ("events.out.tfevents.*", "wandb_id", "mlflow_id")  # in a run's folder


class Board(Protocol):
    def add(self, values: dict[str, float], step: int) -> None:
        """Shows values, {"train/loss": …}, after a step."""

    def close(self) -> None: ...


def boards(cfg: DictConfig, folder: Path, step: int | None) -> list[Board]:
    """Those that `log` asks for, of the run in `folder`, which goes on after `step`; None: it starts.

    Raises:
        UserError: one is not installed, or does not start.
    """
    kinds = {"wandb": WandB, "mlflow": MLflow, "tensorboard": TensorBoard}  # first what may not start
    found = []
    with _anew(folder) if step is None else nullcontext():
        for name, kind in kinds.items():
            if cfg.log[name]:
                try:
                    found.append(kind(cfg, folder, step))
                except ImportError:
                    raise UserError(f"log.{name}={cfg.log[name]} needs a package: pip install {name}") from None
                except Exception as error:  # theirs have no common class
                    raise UserError(f"log.{name}={cfg.log[name]} does not start: {error}") from None
    return found


@contextmanager
def _anew(folder: Path) -> Iterator[None]:
    """Removes what boards have of an earlier run in the folder, unless one does not start."""
    with writing_to(folder), TemporaryDirectory(dir=folder, prefix=".boards-") as away:
        stale = [path for pattern in REMEMBERED for path in folder.glob(pattern)]
        moved = {path: path.rename(Path(away) / path.name) for path in stale}
        try:
            yield
        except UserError:
            for path, at in moved.items():
                at.rename(path)
            raise


class TensorBoard:
    def __init__(self, cfg: DictConfig, folder: Path, step: int | None):
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self._writer = SummaryWriter(folder, purge_step=None if step is None else step + 1)

    def add(self, values: dict[str, float], step: int) -> None:
        with writing_to(self.folder):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        with writing_to(self.folder):
            self._writer.close()


class WandB:
    """Weights & Biases, in the project log.wandb. Its WANDB_MODE=offline works without their servers."""

    def __init__(self, cfg: DictConfig, folder: Path, step: int | None):
        import wandb

        number = _remembered(folder / "wandb_id", lambda: secrets.token_hex(4))
        settings = wandb.Settings(silent=True)
        self._run = wandb.init(
            project=cfg.log.wandb, id=number, resume="allow", dir=folder, config=shared(cfg), settings=settings
        )
        self._run.define_metric("*", step_metric="step")  # one that goes on overwrites what is measured again

    def add(self, values: dict[str, float], step: int) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow, in the experiment log.mlflow, where MLFLOW_TRACKING_URI or mlflow itself says."""

    def __init__(self, cfg: DictConfig, folder: Path, step: int | None):
        import mlflow

        self._client = mlflow.MlflowClient()
        experiment = self._client.get_experiment_by_name(cfg.log.mlflow)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(cfg.log.mlflow)

        def start() -> str:
            run_id = self._client.create_run(experiment_id, run_name=folder.name).info.run_id
            for name, value in shared(cfg).items():
                self._client.log_param(run_id, name, value)
            return run_id

        self._run_id = _remembered(folder / "mlflow_id", start)

    def add(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run_id, name, value, step=step, synchronous=True)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def _remembered(path: Path, make) -> str:
    """What the file says, so that a run that goes on is the same there; made and written where there is none."""
    if not path.exists():
        path.write_text(make())
    return path.read_text()
