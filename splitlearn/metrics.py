"""What a run measures, and the one folder it goes to: metrics.jsonl, weights, summary.json, and boards."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import DictConfig, OmegaConf

from splitlearn.boards import Board, boards
from splitlearn.checkpoints import serialized, write_whole
from splitlearn.config import compressor_from
from splitlearn.display import Display
from splitlearn.errors import UserError, writing_to
from splitlearn.segments import CutPoint
from splitlearn.transport import guard

WAYS = ("up", "down")
PHASES = ("client compute", "codec", "network", "waiting", "server compute")


class Recorder:
    """Takes the server's measurements, and writes and shows them.

    Bytes are those of the tensors that were sent; a batch's uplink saving is its smashed data's bytes in memory over
    its payload's, header included. Every line of metrics.jsonl has a "kind": step, evaluation or epoch. Whatever writes
    raises UserError if the disk is full.

    Args:
        cfg: the run's configuration.
        folder: where the files go; made if it is missing.
        display: shows progress to the user.
    """

    def __init__(self, cfg: DictConfig, folder: Path, display: Display):
        self.cfg, self.folder, self.display = cfg, folder, display
        self.totals: Counter[str] = Counter()  # over the run
        self.seconds: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()  # before this process
        self.errors: dict[str, Counter[str]] = {"uplink_error": Counter(), "downlink_error": Counter()}
        self.last_evaluation: dict[str, float] = {}
        self.best_top1 = 0.0
        self.step_number = 0
        self._in_epoch: Counter[str] = Counter()
        self._lines = None
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
        path = self.folder / "metrics.jsonl"
        self._seconds_before = 0.0, 0.0  # of the run and of the epoch
        if state is None:
            (self.folder / "summary.json").unlink(missing_ok=True)
            path.write_bytes(b"")
        else:
            found, expected = path.stat().st_size if path.exists() else 0, state["metrics_nbytes"]
            if found < expected:
                raise UserError(
                    f"{path} has {found:,} of the {expected:,} bytes that it had at the checkpoint: put it back from a"
                    " copy, or start over with resume=never"
                )
            os.truncate(path, expected)  # what came later is measured again
            self._seconds_before = state["seconds_of_run"], state["seconds_of_epoch"]
            self.step_number, self.best_top1 = state["step_number"], state["best_top1"]
            self.last_evaluation = state["last_evaluation"]
            self.totals.update(state["totals"])
            self.seconds.update(state["seconds"])
            self._in_epoch.update(state["in_epoch"])
            self.refused.update(state.get("refused", {}))
            for name, total in state["errors"].items():
                self.errors[name].update(total)
        OmegaConf.save(self.cfg, self.folder / "config.yaml", resolve=True)
        self._lines = open(path, "a", buffering=1)  # noqa: SIM115
        self._boards = boards(self.cfg, self.folder, self.step_number)

    def state(self) -> dict[str, Any]:
        """What `open` goes on from. The lines until here are on the disk then, even if the power fails."""
        now = time.perf_counter()
        with writing_to(self.folder):
            os.fsync(self._lines.fileno())
        return {
            "metrics_nbytes": os.fstat(self._lines.fileno()).st_size,
            "seconds_of_run": now - self.started_at,
            "seconds_of_epoch": now - self.epoch_started_at,
            "step_number": self.step_number,
            "best_top1": self.best_top1,
            "last_evaluation": self.last_evaluation,
            "totals": dict(self.totals),
            "seconds": dict(self.seconds),
            "in_epoch": dict(self._in_epoch),
            "refused": dict(self.refused + guard.refusals),
            "errors": {name: dict(total) for name, total in self.errors.items()},
        }

    @property
    def final_top1(self) -> float:
        return self.last_evaluation["top1"]

    def describe(self, cut: CutPoint, num_classes: int, num_samples: int | None = None) -> None:
        """The first lines that the user sees. No number of samples where it depends on which clients will come."""
        self.cut, self.num_classes = cut, num_classes
        cfg = self.cfg
        shape = "×".join(map(str, cut.shape))
        samples = "" if num_samples is None else f", {num_samples:,} samples"
        up_to = "up to " if cfg.membership.open else ""
        self.display.headline(
            f"{cfg.arch.name} cut after {cut.path} ({shape}) · {cfg.data.name}{samples} ·"
            f" {cfg.topology.name}, {up_to}{cfg.num_clients} client{'s' * (cfg.num_clients > 1)} ·"
            f" up {compressor_from(cfg, 'compressor').label} · down {compressor_from(cfg, 'downlink').label}",
            str(self.folder),
        )

    def start(self, num_steps: int) -> None:
        """Training starts, or goes on, in epochs of `num_steps` steps."""
        self.started_at, self.epoch_started_at = (time.perf_counter() - before for before in self._seconds_before)
        self.display.start(self.cfg.epochs, num_steps, self.step_number)

    def resumed(self, epoch: int) -> None:
        """The run goes on from a checkpoint in `epoch`."""
        had_finished = epoch > self.cfg.epochs
        self.display.note(
            "finished before" if had_finished else f"going on in epoch {epoch}, step {self.step_number + 1}"
        )

    def skipped(self) -> None:
        """A client's part of a step was left out since it is not finite."""
        self.totals["skipped"] += 1

    def step(self, epoch: int, step: int, measured: list[dict[str, Any]], learning_rate: float) -> None:
        """One step's measurements, one dict a client that took part."""
        self.step_number = step
        if not measured:
            return self._write("step", {"epoch": epoch, "step": step, "clients": []}, step, "train")
        line = {
            "epoch": epoch,
            "step": step,
            "clients": [one["client"] for one in measured],
            "loss": fmean(one["loss"] for one in measured),
            "top1": _mean(measured, "top1"),
            "learning_rate": learning_rate,
            "uplink_bytes": sum(one["uplink_bytes"] for one in measured),
            "downlink_bytes": sum(one["downlink_bytes"] for one in measured),
        }
        for name, total in self.errors.items():
            found = [one[name] for one in measured if one.get(name) is not None]
            if found:
                line[name] = fmean(found)
                total.update(sum=sum(found), number=len(found))
        self._write("step", line, step, "train")
        # All clients send at the same time, each over its own link.
        self.totals.update({f"link_{way}_bytes": max(one[f"{way}link_bytes"] for one in measured) for way in WAYS})
        for one in measured:
            num_samples = one["num_samples"]
            self._in_epoch.update(samples=num_samples, loss=one["loss"] * num_samples, top1=one["top1"] * num_samples)
            self.totals.update(
                batches=1,
                uplink_bytes=one["uplink_bytes"],
                downlink_bytes=one["downlink_bytes"],
                raw_bytes=one["uplink_raw_bytes"],
                uplink_formula_bytes=one["uplink_formula_bits"] / 8,
                downlink_formula_bytes=one["downlink_formula_bits"] / 8,
            )
        self.display.step(line["loss"], line["top1"], self.totals["uplink_bytes"], self.totals["downlink_bytes"])

    def evaluation(self, epoch: int, result: dict[str, float]) -> None:
        self.last_evaluation = {"epoch": epoch, "step": self.step_number, **result}
        self.best_top1 = max(self.best_top1, result["top1"])
        self._write("evaluation", self.last_evaluation, self.step_number, "test")

    def end_epoch(self, epoch: int, traffic: Counter[str], seconds: Counter[str]) -> None:
        """Bytes by what they were, and seconds by phase, of one epoch."""
        now = time.perf_counter()
        samples = self._in_epoch.pop("samples", 0)  # 0, and nothing else in it, where every batch was left out
        line = {
            "epoch": epoch,
            "step": self.step_number,
            "seconds": now - self.epoch_started_at,
            **{name: total / samples for name, total in self._in_epoch.items()},
            **{f"{name}_bytes": total for name, total in traffic.items()},
            **{f"{phase.replace(' ', '_')}_s": seconds[phase] for phase in PHASES},
        }
        self._write("epoch", line, self.step_number, "epoch")
        self.totals.update({f"{name}_bytes": total for name, total in traffic.items()})
        self.seconds.update(seconds)
        is_evaluated = self.last_evaluation.get("epoch") == epoch
        self.display.epoch(epoch, line, self.last_evaluation if is_evaluated else None)
        self._in_epoch = Counter()
        self.epoch_started_at = now

    def save(self, name: str, state: Any) -> None:
        """Writes weights into the folder."""
        with writing_to(self.folder):
            write_whole(self.folder / name, serialized(state))

    def finish(self) -> None:
        """Writes summary.json and shows it as a table.

        Raises:
            UserError: nothing was trained.
        """
        total, last = self.totals, self.last_evaluation
        batches = total["batches"]
        if not batches:
            raise UserError(
                "nonfinite=skip left every batch out, so that nothing was trained: look for NaN in the data, or lower"
                " optimizer.lr"
            )
        summary = {
            **{f"test_{name}": last[name] for name in ("top1", "top5", "loss")},
            "best_test_top1": self.best_top1,
            "epochs": self.cfg.epochs,
            "steps": self.step_number,
            "skipped": total["skipped"],
            "refused": dict(self.refused + guard.refusals),
            "seconds": time.perf_counter() - self.started_at,
            "cut": self.cut.path,
            "map_shape": list(self.cut.shape),
            "pipeline_depth": self.cfg.pipeline_depth,
            "num_classes": self.num_classes,
        }
        for link in ("uplink", "downlink"):
            errors = self.errors[f"{link}_error"]
            summary[link] = {
                "compressor": compressor_from(self.cfg, "compressor" if link == "uplink" else "downlink").label,
                "bytes_per_batch": total[f"{link}_bytes"] / batches,
                "bytes": total[f"{link}_bytes"],
                "uncompressed_bytes": total["raw_bytes"],
                "saving": total["raw_bytes"] / total[f"{link}_bytes"],
                "saving_by_formula": total["raw_bytes"] / total[f"{link}_formula_bytes"],
                "relative_error": errors["sum"] / errors["number"] if errors else None,
            }
        summary["other_bytes"] = {
            name: total[f"{name}_bytes"] for name in ("labels_up", "weights_up", "weights_down", "evaluation_up")
        }
        if self.cfg.link.up_mbits or self.cfg.link.down_mbits:
            summary["seconds_over_link"] = summary["seconds"] + self.seconds_on_link()
        summary["seconds_per_batch"] = {phase: self.seconds[phase] / batches for phase in PHASES}
        self.display.stop()
        with writing_to(self.folder):
            self._close_files()
            write_whole(self.folder / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
        self.display.summary(summary)

    def seconds_on_link(self) -> float:
        """How long the run's bytes take on each client's link, if nothing else happens meanwhile."""
        total, num_clients = self.totals, self.cfg.num_clients
        total_bytes = {
            "up": total["link_up_bytes"]
            + (total["labels_up_bytes"] + total["weights_up_bytes"] + total["evaluation_up_bytes"]) / num_clients,
            "down": total["link_down_bytes"] + total["weights_down_bytes"] / num_clients,
        }
        rates = {way: self.cfg.link[f"{way}_mbits"] for way in WAYS}
        return sum(8e-6 * total_bytes[way] / rate for way, rate in rates.items() if rate)

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
        values = {f"{group}/{name}": value for name, value in line.items() if name not in ("epoch", "step", "clients")}
        with writing_to(self.folder):
            self._lines.write(json.dumps({"kind": kind, **line}) + "\n")
        for board in self._boards:
            board.add(values, step)


def _mean(measured: list[dict[str, Any]], name: str) -> float:
    """Over all samples of a step."""
    return sum(one[name] * one["num_samples"] for one in measured) / sum(one["num_samples"] for one in measured)
