"""What an evaluation decides: whether its weights are kept as the best so far, and whether the run ends early."""

from __future__ import annotations

from typing import Any

from splitlearn.checkpoints import Writer, serialized, write_all
from splitlearn.errors import cannot_write


class Verdict:
    """
    Args:
        server: whose run it is.
    """

    def __init__(self, server: Any):
        self.server, self.cfg = server, server.cfg
        self._writer = Writer()

    @property
    def compares(self) -> bool:
        """Whether evaluations are compared with one another, so that all have to be over the same samples."""
        return self.cfg.checkpoint.best or self.cfg.early_stopping.patience is not None

    def hear(self) -> None:
        """An evaluation is over, and recorded."""
        recorder, epoch = self.server.recorder, self.server.progress.epoch
        if self.cfg.checkpoint.best and recorder.best_epoch == epoch:
            self._keep()
        if self.cfg.early_stopping.patience is not None and self._has_enough() and epoch < self.cfg.epochs:
            metric = self.server.task.metrics[0]
            patience = self.cfg.early_stopping.patience
            recorder.stopped_early = (
                f"stopped early after epoch {epoch}: in {patience} evaluation{'s' * (patience > 1)} no {metric.title}"
                f" was better than {metric.form(self.server.progress.mark)} (early_stopping.patience)"
            )
            self.server.client_states = self.server.own_states or self.server.client_states

    def _has_enough(self) -> bool:
        """Whether the last evaluations were no better than the best before."""
        progress, result = self.server.progress, self.server.recorder.result
        better = 1 if self.server.task.metrics[0].higher_is_better else -1
        if progress.mark is None or better * (result - progress.mark) > self.cfg.early_stopping.min_delta:
            progress.mark, progress.misses = result, 0
        else:
            progress.misses += 1
        return progress.misses >= self.cfg.early_stopping.patience

    def _keep(self) -> None:
        """Starts to write the weights, copied, beside the run's last ones; training goes on meanwhile."""
        recorder = self.server.recorder
        self.wait()
        recorder.best_weights = dict(recorder.last_evaluation)
        self._writer.start(
            self._write, {f"best_{name}": state for name, state in self.server.runstate.weights().items()}
        )

    def _write(self, files: dict[str, Any]) -> None:
        folder = self.server.recorder.folder
        write_all({folder / name: [serialized(state)] for name, state in files.items()})  # which belong together

    def wait(self) -> None:
        """Until the best weights are on the disk.

        Raises:
            UserError: they could not be written.
        """
        try:
            self._writer.wait()
        except OSError as error:
            folder = self.server.recorder.folder
            raise cannot_write(f"the best weights cannot be written to {folder}", folder, error) from None
