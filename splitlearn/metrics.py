"""What a run measures, and the one folder it goes to: metrics.jsonl, TensorBoard events, weights, summary.json."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from splitlearn.config import compressor_from
from splitlearn.display import Display
from splitlearn.segments import CutPoint

PHASES = ("client compute", "codec", "network", "waiting", "server compute")


class Recorder:
    """Takes the server's measurements, and writes and shows them.

    Bytes are those of the tensors that were sent; a batch's uplink saving is its smashed data's bytes in memory over
    its payload's, header included. Every line of metrics.jsonl has a "kind": step, evaluation or epoch.

    Args:
        cfg: the run's configuration.
        folder: where the files go; made if it is missing.
        display: shows progress to the user.
    """

    def __init__(self, cfg: DictConfig, folder: Path, display: Display):
        self.cfg, self.folder, self.display = cfg, folder, display
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        self._lines = open(folder / "metrics.jsonl", "w", buffering=1)  # noqa: SIM115
        self._board = None
        if cfg.log.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(folder)
        self.totals: Counter[str] = Counter()  # over the run
        self.seconds: Counter[str] = Counter()
        self.errors: dict[str, list[float]] = {"uplink_error": [], "downlink_error": []}
        self.evaluations: list[dict[str, float]] = []
        self.started_at = self.epoch_started_at = time.perf_counter()
        self._in_epoch: Counter[str] = Counter()
        self._recorded_traffic: Counter[str] = Counter()
        self.step_number = 0

    @property
    def final_top1(self) -> float:
        return self.evaluations[-1]["top1"]

    def describe(self, cut: CutPoint, cfg: DictConfig, num_samples: int) -> None:
        self.cut = cut
        shape = "×".join(map(str, cut.shape))
        self.display.headline(
            f"{cfg.arch.name} cut after {cut.path} ({shape}) · {cfg.data.name}, {num_samples:,} samples ·"
            f" {cfg.topology.name}, {cfg.num_clients} client{'s' * (cfg.num_clients > 1)} ·"
            f" up {compressor_from(cfg, 'compressor').label} · down {compressor_from(cfg, 'downlink').label}",
            str(self.folder),
        )

    def start(self, num_steps: int) -> None:
        self.display.start(self.cfg.epochs, num_steps)

    def step(
        self, epoch: int, step: int, measured: list[dict[str, Any]], learning_rate: float, traffic: Counter[str]
    ) -> None:
        """One step's measurements, one dict a client that took part."""
        self.step_number = step
        line = {
            "epoch": epoch,
            "step": step,
            "loss": fmean(one["loss"] for one in measured),
            "top1": _mean(measured, "top1"),
            "learning_rate": learning_rate,
            "uplink_bytes": sum(one["uplink_bytes"] for one in measured),
            "downlink_bytes": sum(one["downlink_bytes"] for one in measured),
        }
        for name, values in self.errors.items():
            found = [one[name] for one in measured if one.get(name) is not None]
            if found:
                line[name] = fmean(found)
                values.extend(found)
        self._write("step", line, step, "train")
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
        self.evaluations.append({"epoch": epoch, "step": self.step_number, **result})
        self._write("evaluation", self.evaluations[-1], self.step_number, "test")

    def end_epoch(self, epoch: int, traffic: Counter[str], seconds: Counter[str]) -> None:
        """Bytes by what they were, and seconds by phase, of one epoch."""
        now = time.perf_counter()
        samples = self._in_epoch.pop("samples")
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
        evaluated = self.evaluations[-1] if self.evaluations and self.evaluations[-1]["epoch"] == epoch else None
        self.display.epoch(epoch, line, evaluated)
        self._in_epoch = Counter()
        self.epoch_started_at = now

    def save(self, name: str, state: Any) -> None:
        """Writes weights into the folder."""
        torch.save(state, self.folder / name)

    def finish(self) -> None:
        """Writes summary.json and shows it as a table."""
        total, last = self.totals, self.evaluations[-1]
        batches = total["batches"]
        summary = {
            **{f"test_{name}": last[name] for name in ("top1", "top5", "loss")},
            "best_test_top1": max(evaluation["top1"] for evaluation in self.evaluations),
            "epochs": self.cfg.epochs,
            "steps": self.step_number,
            "seconds": time.perf_counter() - self.started_at,
            "cut": self.cut.path,
            "map_shape": list(self.cut.shape),
        }
        for link in ("uplink", "downlink"):
            error = self.errors[f"{link}_error"]
            summary[link] = {
                "compressor": compressor_from(self.cfg, "compressor" if link == "uplink" else "downlink").label,
                "bytes_per_batch": total[f"{link}_bytes"] / batches,
                "bytes": total[f"{link}_bytes"],
                "uncompressed_bytes": total["raw_bytes"],
                "saving": total["raw_bytes"] / total[f"{link}_bytes"],
                "saving_by_formula": total["raw_bytes"] / total[f"{link}_formula_bytes"],
                "relative_error": fmean(error) if error else None,
            }
        summary["other_bytes"] = {
            name: total[f"{name}_bytes"] for name in ("labels_up", "weights_up", "weights_down", "evaluation_up")
        }
        summary["seconds_per_batch"] = {phase: self.seconds[phase] / batches for phase in PHASES}
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        self.close()
        self.display.summary(summary)

    def close(self) -> None:
        """Ends the display and the files, also after an error."""
        self.display.stop()
        self._lines.close()
        if self._board:
            self._board.close()

    def _write(self, kind: str, line: dict[str, Any], step: int, group: str) -> None:
        self._lines.write(json.dumps({"kind": kind, **line}) + "\n")
        if self._board:
            for name, value in line.items():
                if name not in ("epoch", "step"):
                    self._board.add_scalar(f"{group}/{name}", value, step)


def _mean(measured: list[dict[str, Any]], name: str) -> float:
    """Over all samples of a step."""
    return sum(one[name] * one["num_samples"] for one in measured) / sum(one["num_samples"] for one in measured)
