"""What a run measures, and the one folder it goes to: metrics.jsonl, weights, summary.json, and boards."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import DictConfig, OmegaConf

from splitlearn.checkpoints import serialized, write_texts, write_whole
from splitlearn.errors import UserError, writing_to
from splitlearn.exchange.channel import Transfer
from splitlearn.exchange.exchange import Outcome, exchange_from
from splitlearn.measure.boards import Board, boards
from splitlearn.measure.display import Display
from splitlearn.measure.evaluation import as_csv, by_class, confusion_of, evaluation_of, told_apart
from splitlearn.measure.ledger import Ledger, Measured
from splitlearn.measure.lines import Lines
from splitlearn.measure.payloads import Growth, of_payloads
from splitlearn.measure.summary import headline_of, summary_of
from splitlearn.measure.tally import Tally
from splitlearn.segments import CutPoint
from splitlearn.tasks import task_from
from splitlearn.transport import guard

CONFUSION = "confusion.csv"  # of the last evaluation
PHASES = ("client compute", "codec", "network", "waiting", "server compute")
KEPT = ("step_number", "best", "best_epoch", "best_weights", "stopped_early", "last_evaluation", "claims", "at_start")
NOT_ON_BOARDS = ("epoch", "step", "clients", "samples_in_all", "by_client", "by_class")


class Recorder:
    """Takes the server's measurements, and writes and shows them.

    Bytes are those of the tensors that were sent, each booked once. A channel's saving is its tensors' bytes in memory
    over its payloads', headers included. Every line of metrics.jsonl has a "kind": step, evaluation or epoch. Whatever
    writes raises UserError if the disk is full.

    Args:
        cfg: the run's configuration.
        folder: where the files go; made if it is missing.
        display: shows progress to the user.
        origin: files that say what the run was started with: texts by their names in the folder.

    Attributes:
        ledger: the bytes.
    """

    def __init__(self, cfg: DictConfig, folder: Path, display: Display, origin: dict[str, str] | None = None):
        self.cfg, self.folder, self.display, self.origin = cfg, folder, display, origin or {}
        self.task, self.specs = task_from(cfg), exchange_from(cfg).channels
        self.ledger, self.growth = Ledger(self.specs), Growth(self.specs, cfg.get("backward"))
        self.seconds, self.refused = Counter(), Counter()  # by phase; and before this process
        self.last_evaluation: dict[str, float] = {}
        self.best, self.best_epoch = None, None  # result so far, and when
        self.claims: dict[str, float] = {}  # of defences
        self.at_start: dict[str, float] = {}  # rms of payloads, where it is measured
        self.best_weights: dict[str, float] | None = None  # the evaluation of those that are kept, see verdict.py
        self.stopped_early: str | None = None  # why
        self.step_number = 0
        self.unreadable: dict[str, int] = {}  # samples that are left out, by whose they are
        self.tally = Tally()  # of the epoch
        self._seconds_before = 0.0, 0.0  # of the run and of the epoch
        self._lines: Lines | None = None
        self._boards: list[Board] = []

    def open(self, state: dict[str, Any] | None) -> None:
        """Opens the files, to go on after `state`, of an interrupted run, or from the start.

        Raises:
            UserError: they cannot be written, or metrics.jsonl has not got all that was measured before.
        """
        with writing_to(self.folder):
            self._open(state)

    def _open(self, state: dict[str, Any] | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = Lines(self.folder / "metrics.jsonl", state and state["metrics_nbytes"])
        if state is not None:
            self._seconds_before = state["seconds_of_run"], state["seconds_of_epoch"]
            for name in KEPT:
                setattr(self, name, state.get(name, getattr(self, name)))  # older ones lack some
            self.ledger.load(state["ledger"])
            self.tally.load(state["tally"])
            for name in ("seconds", "refused"):
                getattr(self, name).update(state[name])
        # First what may fail: a start that does leaves the run that is there as it was.
        self._boards = boards(self.cfg, self.folder, state and self.step_number)
        texts = self.origin | {"config.yaml": OmegaConf.to_yaml(self.cfg, resolve=True)}
        weights = self.folder.glob("[!b]*_segment*.pt" if state else "*_segment*.pt")  # the best are still the best
        stale = self.folder / "summary.json", *weights, *([] if state else [self.folder / CONFUSION])
        write_texts(self.folder, texts, removed=stale)  # which are not this run's, or not its last
        self._lines = lines.open()

    def state(self) -> dict[str, Any]:
        """What `open` goes on from. The lines until here are on the disk then, even if the power fails."""
        now = time.perf_counter()
        with writing_to(self.folder):
            metrics_nbytes = self._lines.synced()
        return {
            "metrics_nbytes": metrics_nbytes,
            "seconds_of_run": now - self.started_at,
            "seconds_of_epoch": now - self.epoch_started_at,
            **{name: getattr(self, name) for name in KEPT},
            "ledger": self.ledger.state(),
            "seconds": dict(self.seconds),
            "tally": self.tally.state(),
            "refused": dict(self.refused + guard.refusals),
        }

    @property
    def result(self) -> float:
        """The last evaluation's first metric."""
        return self.last_evaluation[self.task.metrics[0].name]

    def describe(self, cuts: list[CutPoint], about: dict[str, Any], samples: str = "") -> None:
        """The first lines that the user sees. No samples where it depends on which clients will come."""
        self.cuts, self.about = cuts, about
        text = headline_of(self.cfg, self.task, self.specs, cuts)
        details = self.task.details(self.cfg, about)
        self.display.headline(text, "; ".join(filter(None, (details, samples))), str(self.folder))

    def start(self, num_steps: int) -> None:
        """Training starts, or goes on, in epochs of `num_steps` steps."""
        self.started_at, self.epoch_started_at = (time.perf_counter() - before for before in self._seconds_before)
        self.display.start(self.cfg.epochs, num_steps, self.step_number, self.cfg.num_clients)

    def resumed(self, epoch: int, had_finished: bool) -> None:
        """The run goes on from a checkpoint in `epoch`."""
        going_on = f"going on in epoch {epoch}, step {self.step_number + 1}"
        self.display.note("finished before" if had_finished else going_on)

    # Measurements

    def left_out(self, transfers: list[Transfer], targets_bytes: int, is_skipped: bool) -> None:
        """A client's part of a step was, since it is not finite and skipped, or since the client is gone."""
        self.ledger.totals["skipped"] += is_skipped
        self.ledger.trained(transfers, targets_bytes)

    def step(self, progress: Any, measured: list[Measured], learning_rate: float) -> None:
        """One step's measurements, one a client that took part."""
        self.step_number = progress.step
        line: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step}
        line["clients"] = [one.client for one in measured]
        for one in measured:
            self.ledger.trained(one.transfers, one.targets_bytes)
            self.ledger.totals.update(batches=1)
            self.tally.add(one.outcome)
        self.ledger.stepped()
        if not measured:
            return self._write("step", line, progress.step, "train")
        num_samples = sum(one.outcome.num_samples for one in measured)
        line["loss"] = fmean(one.outcome.loss for one in measured)
        sums = {name: sum(one.outcome.sums[name] for one in measured) for name in self.task.train_metrics}
        line.update(self.task.means(sums, num_samples))
        line["learning_rate"] = learning_rate
        for spec in self.specs:
            line |= of_payloads(spec, [t for one in measured for t in one.transfers if t.channel == spec.name])
        self._write("step", line, progress.step, "train")
        if note := self.growth.note(line, self.at_start):
            self.display.note(note)
        self.display.step(line, self.task, num_samples, self.ledger.of_run("up"), self.ledger.of_run("down"))

    def evaluation(self, epoch: int, outcomes: list[tuple[int | None, Outcome]], in_all: int | None) -> None:
        """What all batches of test samples came to (see evaluation_of)."""
        came_to = evaluation_of(outcomes, in_all, self.task)
        self.ledger.tested(len(came_to["clients"]))
        names = self.task.class_names(self.about)
        pairs = told_apart(outcome for _, outcome in outcomes) if names else None
        if pairs is not None:
            if (confusion := confusion_of(pairs, len(names))) is not None:
                came_to |= self.task.of_confusion(confusion)
                with writing_to(self.folder):
                    write_whole(self.folder / CONFUSION, as_csv(confusion, names).encode())
            came_to["by_class"] = by_class(pairs, names)
        self.last_evaluation = {"epoch": epoch, "step": self.step_number, **came_to}
        if self.best is None or self.task.metrics[0].is_better(self.result, self.best):
            self.best, self.best_epoch = self.result, epoch
        self._write("evaluation", self.last_evaluation, self.step_number, "test")

    def end_epoch(self, epoch: int, seconds: dict[str, float]) -> None:
        """Seconds of one epoch by phase."""
        now = time.perf_counter()
        line = {
            "epoch": epoch,
            "step": self.step_number,
            "seconds": now - self.epoch_started_at,
            "samples": self.tally.num_samples,
            **self.tally.means(self.task),
            **self.claims,
            **{f"{name}_bytes": total for name, total in self.ledger.traffic.items()},
            **{f"{phase.replace(' ', '_')}_s": seconds.get(phase, 0.0) for phase in PHASES},
        }
        self._write("epoch", line, self.step_number, "epoch")
        self.seconds.update(seconds)
        self.ledger.totals.update(samples=line["samples"])
        test = self.last_evaluation if self.last_evaluation.get("epoch") == epoch else None
        self.display.epoch(epoch, line, test, self.task, *map(self.ledger.of_epoch, ("up", "down")))
        self.tally = Tally()
        self.ledger.traffic.clear()
        self.epoch_started_at = now

    # Files

    def save(self, name: str, state: Any) -> None:
        """Writes weights into the folder."""
        with writing_to(self.folder):
            write_whole(self.folder / name, serialized(state))

    def finish(self) -> None:
        """Writes summary.json and shows it as a table.

        Raises:
            UserError: nothing was trained.
        """
        if not self.ledger.totals["batches"]:
            raise UserError(
                "nonfinite=skip left every batch out, so that nothing was trained: look for NaN in the data, or lower"
                " optimizer.lr"
            )
        summary = summary_of(self, time.perf_counter() - self.started_at, guard.refusals, PHASES)
        self.display.stop()
        with writing_to(self.folder):
            self._close_files()
            write_whole(self.folder / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
        self.display.summary(summary, self.task, self.specs)

    def close(self) -> None:
        """Ends the display and the files, also after an error."""
        self.display.stop()
        with suppress(OSError, UserError):  # it was raised before, by the first write that found no room
            self._close_files()

    def _close_files(self) -> None:
        while self._boards:
            self._boards.pop().close()
        if self._lines:
            self._lines.close()

    def _write(self, kind: str, line: dict[str, Any], step: int, group: str) -> None:
        values = {f"{group}/{name}": value for name, value in line.items() if name not in NOT_ON_BOARDS}
        with writing_to(self.folder):
            self._lines.write({"kind": kind, **line})
        for board in self._boards:
            board.add(values, step)
