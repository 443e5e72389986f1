"""What is said of a run: its first line, and summary.json at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from splitlearn.config import compressor_from, num_at_once, num_in_epoch
from splitlearn.exchange.changes import changes_of
from splitlearn.exchange.channel import ChannelSpec
from splitlearn.measure.ledger import of_training
from splitlearn.segments import CutPoint
from splitlearn.segments.bottleneck import in_words
from splitlearn.tasks import Task

PARTS = ("by_client", "by_class")  # of the last evaluation


def headline_of(cfg: DictConfig, task: Task, specs: Sequence[ChannelSpec], cuts: list[CutPoint]) -> str:
    """Network, cuts, data, clients and codecs in a line."""

    def word(spec: ChannelSpec) -> str:  # its way, where no other goes that way
        return spec.way if sum(other.way == spec.way for other in specs) == 1 else spec.title

    network, data = task.headline(cfg)
    where = " and ".join(map(in_words, cuts))
    up_to = "up to " if cfg.membership.open else ""
    in_epoch = f", {num} in each epoch" if (num := cfg.membership.sample) else ""
    codecs = " · ".join(f"{word(spec)} {compressor_from(cfg, spec.config).label}" for spec in specs)
    if changes := changes_of(cfg):
        codecs += f" · weights {changes.codec.label}"
    return (
        f"{network} cut after {where} · {data} · {cfg.topology.name},"
        f" {up_to}{cfg.num_clients} client{'s' * (cfg.num_clients > 1)}{in_epoch} · {codecs}"
    )


def summary_of(recorder: Any, seconds: float, refusals: Counter[str], phases: tuple[str, ...]) -> dict[str, Any]:
    """The summary of a recorder's run, which took so long."""
    cfg, task, totals = recorder.cfg, recorder.task, recorder.ledger.totals
    summary = {
        **{f"test_{name}": recorder.last_evaluation[name] for name in task.evaluated},
        **{f"test_{name}": value for name, value in of_confusion(task, recorder.last_evaluation).items()},
        f"best_test_{task.metrics[0].name}": recorder.best,
        "tested": {name: recorder.last_evaluation[name] for name in ("samples", "samples_in_all", "clients")},
        **{name: recorder.last_evaluation[name] for name in PARTS if name in recorder.last_evaluation},
        "best_epoch": recorder.best_epoch,
        "best_weights": recorder.best_weights,
        "epochs": recorder.last_evaluation["epoch"],
        "stopped_early": recorder.stopped_early,
        "steps": recorder.step_number,
        "samples": totals["samples"],
        "skipped": totals["skipped"],
        "unreadable": recorder.unreadable,
        "refused": dict(recorder.refused + refusals),
        "seconds": seconds,
        "cut": recorder.cuts[0].path,
        "map_shape": list(recorder.cuts[0].shape),
        "cuts": {cut.path: list(cut.shape) for cut in recorder.cuts},
        "bottleneck": {cut.path: list(cut.channels) for cut in recorder.cuts if cut.channels},
        "pipeline_depth": cfg.pipeline_depth,
        "claims": recorder.claims,
        **recorder.about,
    }
    for spec in recorder.specs:
        total = recorder.ledger.channels[spec.name]
        summary[spec.key] = {
            "compressor": compressor_from(cfg, spec.config).label,
            "channels": summary["bottleneck"].get(recorder.cuts[spec.cut].path),
            "bytes_per_batch": total["bytes"] / max(total["payloads"], 1),  # none where nothing before it is trained
            "bytes": total["bytes"],
            "basis_bytes": total["basis_bytes"],
            "uncompressed_bytes": total["raw_bytes"],
            "saving": total["raw_bytes"] / total["bytes"] if total["bytes"] else 1.0,
            "saving_by_formula": total["raw_bytes"] / total["formula_bytes"] if total["formula_bytes"] else 1.0,
            "relative_error": total["error"] / total["errors"] if total["errors"] else None,
        }
    names = [f"{what}_{way}" for what in ("labels", "weights", "evaluation", "bottleneck") for way in ("up", "down")]
    names.remove("labels_down")
    if cfg.get("delta"):
        summary["delta_bytes"] = recorder.ledger.delta_bytes
    summary["other_bytes"] = {name: totals[f"{name}_bytes"] for name in names}
    summary["all_bytes"] = {way: of_training(totals, way) for way in ("up", "down")}
    if cfg.link.up_mbits or cfg.link.down_mbits:
        summary["seconds_over_link"] = seconds + seconds_on_link(cfg, totals)
    summary["seconds_per_batch"] = {phase: recorder.seconds[phase] / totals["batches"] for phase in phases}
    return summary


def of_confusion(task: Task, evaluation: dict[str, Any]) -> dict[str, float]:
    """Those metrics of an evaluation that are known where the server has the labels."""
    names = [metric.name for metric in task.confusion_metrics]
    return {name: evaluation[name] for name in names if name in evaluation}


def sent_both_ways(summary: dict[str, Any]) -> int:
    """Of a run's summary.json: bytes of all that has crossed for training."""
    return sum(summary["all_bytes"].values())


def saving_both_ways(summary: dict[str, Any]) -> float:
    """Of a run's summary.json: bytes of the tensors of all channels, both ways, over those of their payloads."""
    channels = _channels(summary)
    return sum(one["uncompressed_bytes"] for one in channels) / sum(one["bytes"] for one in channels)


def _channels(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in summary.values() if isinstance(one, dict) and "uncompressed_bytes" in one]


def seconds_on_link(cfg: DictConfig, totals: Counter[str]) -> float:
    """How long a run's bytes take on each client's link, if nothing else happens meanwhile."""

    def num_bytes(way: str) -> float:
        of_turns = totals[f"labels_{way}_bytes"] + totals[f"weights_{way}_bytes"]
        of_all = totals[f"bottleneck_{way}_bytes"]
        return totals[f"link_{way}_bytes"] + of_turns / num_at_once(cfg) + of_all / num_in_epoch(cfg)

    return sum(8e-6 * num_bytes(way) / rate for way in ("up", "down") if (rate := cfg.link[f"{way}_mbits"]))
