"""The finished runs below a folder, as report.py needs them."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from math import nan
from pathlib import Path
from statistics import fmean

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from tables import ROOT  # noqa: F401  makes splitlearn importable

import splitlearn.tasks  # noqa: F401  registers the networks
from splitlearn import config
from splitlearn.exchange.exchange import exchange_from
from splitlearn.saved import metrics
from splitlearn.tasks import Metric, task_from

ORDER = ["shallow", "medium", "deep", "none", "qu", "sp", "rt", "ms", "ms_best"]  # all others come after, by name
BOTTLENECK = {"bottleneck", "bottleneck_init", "bottleneck_batches"}
WAYS = ("up", "down")
CELL_KEYS = {"arch", "data", "cut", "compressor", "downlink", "seed", *BOTTLENECK}  # others that vary name the setting


@dataclass
class Point:
    """A run at one of its evaluations. Bytes and seconds are of the whole run until then."""

    epoch: int
    result: float  # the first metric of the test samples; a share in percent
    loss: float  # in training, mean over the epoch
    up: int
    both: int
    seconds: float
    link: float  # bytes both ways on one client's link, with labels, weights and evaluations

    def minutes(self, mbits: float) -> float:
        """Over links of this rate, estimated."""
        return (self.seconds + 8e-6 * self.link / mbits) / 60


class Run:
    """What a run's folder says.

    Raises:
        OSError, ValueError, KeyError: a file is not what a run writes.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        saved = folder / "config.yaml"  # Hydra's own is there before the run starts
        self.cfg = OmegaConf.load(saved if saved.exists() else folder / ".hydra" / "config.yaml")
        self.options, self.metric = config.shared(self.cfg), task_from(self.cfg).metrics[0]
        up, down = choice(self.cfg.compressor), choice(self.cfg.downlink)
        self.compressor = up if down == "none" else f"{up} both ways" if up == down else f"{up} up, {down} down"
        if self.cfg.get("bottleneck"):  # another network, which is compared with the unmodified one
            start = "" if self.cfg.bottleneck_init == "pca" else f" {self.cfg.bottleneck_init}"
            self.compressor += f", bottleneck {self.cfg.bottleneck}{start}"
        self.is_finished = (folder / "summary.json").exists()
        if self.is_finished:
            self.summary = json.loads((folder / "summary.json").read_text())
            self.points = points(folder, self.cfg, self.metric)

    def cell(self, varied: Iterable[str]) -> tuple[str, str, str]:
        """Setting (network, data, and the options that are not the same in all runs), cut, and compressor."""
        options = (f"{key}={self.options.get(key)}" for key in varied)
        return ", ".join([self.cfg.arch.name, self.cfg.data.name, *options]), str(self.cfg.cut), self.compressor

    def reach(self, target: float) -> Point | None:
        """Where the run first has this result, or a better one."""
        return next((point for point in self.points if not self.metric.is_better(target, near(point, target))), None)

    def progress(self) -> str:
        """How far a run that is not finished has come."""
        path = self.folder / "metrics.jsonl"
        num_epochs = path.read_text().count('{"kind": "epoch"') if path.exists() else 0
        return f"not finished: {num_epochs} of {self.cfg.epochs} epochs"


def near(point: Point, target: float) -> float:
    """A point's result, or the target where it is so near that sums of floats could differ by it."""
    return target if abs(point.result - target) < 1e-9 else point.result


def unit(metric: Metric) -> str:
    """What stands behind a result."""
    return " %" if metric.is_share else ""


def points(folder: Path, cfg: DictConfig, metric: Metric) -> list[Point]:
    """The evaluations of a run, from its metrics.jsonl."""
    found, results, num_clients = [], {}, config.num_in_epoch(cfg)
    keys = {way: [f"{spec.key}_bytes" for spec in exchange_from(cfg).channels if spec.way == way] for way in WAYS}
    up = down = seconds = link_up = link_down = 0
    for line in metrics(folder):
        if line["kind"] == "step":
            if line["clients"]:  # none where a step was skipped
                sent, received = (sum(line[key] for key in keys[way]) for way in WAYS)
                up, down = up + sent, down + received
                link_up += sent / len(line["clients"])
                link_down += received / len(line["clients"])
        elif line["kind"] == "evaluation":
            results[line["epoch"]] = line[metric.name] * (100 if metric.is_share else 1)
        elif line["kind"] == "epoch":
            seconds += line["seconds"]
            link_up += sum(line[f"{name}_bytes"] for name in ("labels_up", "weights_up", "evaluation_up")) / num_clients
            link_down += line["weights_down_bytes"] / num_clients
            link_up += line.get("bottleneck_up_bytes", 0) / num_clients
            link_down += line.get("bottleneck_down_bytes", 0) / num_clients
            if (result := results.get(line["epoch"])) is not None:
                link = link_up + link_down
                found.append(Point(line["epoch"], result, line.get("loss", nan), up, up + down, seconds, link))
    if not found:
        raise ValueError("no evaluation in metrics.jsonl")
    return found


def choice(node: DictConfig) -> str:
    """A compressor as one would choose it on the command line: "ms_best", "qu bits=4"."""
    offered = {
        name.removesuffix(".yaml"): entry.node for name, entry in ConfigStore.instance().repo["compressor"].items()
    }

    def changes(name: str) -> list[str]:
        return [f"{key}={value}" for key, value in node.items() if offered[name].get(key) != value]

    name = min(offered, key=lambda name: (offered[name]["_target_"] != node["_target_"], len(changes(name))))
    return " ".join([name, *changes(name)])


@dataclass
class Race:
    """A run against that without compression of the same seed: each where it first has the result to reach.

    Attributes:
        target: that result.
        none: there is always such a point.
        point: None if the run never has it.
    """

    target: float
    none: Point
    point: Point | None


class Cell:
    """The runs of one compressor at one cut, which differ in their seeds."""

    def __init__(self, runs: list[Run]):
        self.runs = runs
        self.races: list[Race] = []

    def compare(self, none: "Cell", best: bool, tolerance: float) -> None:
        """Finds out where the runs are as good as those without compression of the same seeds."""
        baselines = {run.cfg.seed: run for run in none.runs}
        for run in self.runs:
            if baseline := baselines.get(run.cfg.seed):
                results, metric = [point.result for point in baseline.points], run.metric
                target = (max if metric.higher_is_better else min)(results) if best else results[-1]
                target -= tolerance if metric.higher_is_better else -tolerance
                self.races.append(Race(target, baseline.reach(target), run.reach(target)))

    @property
    def metric(self) -> Metric:
        return self.runs[0].metric

    @property
    def won(self) -> list[Race]:
        return [race for race in self.races if race.point]

    @property
    def target(self) -> float:
        return fmean(race.target for race in self.races)

    def of_runs(self, field: str) -> list[list[float]]:
        """A field of every run's points."""
        return [[getattr(point, field) for point in run.points] for run in self.runs]

    def mean(self, value: Callable[[dict], float]) -> float:
        """Over the runs' summaries."""
        return fmean(value(run.summary) for run in self.runs)

    def sent_by_none(self, link: str) -> float:
        return fmean(getattr(race.none, link) for race in self.races)

    def savings(self, link: str) -> list[float]:
        """Of the runs that get there."""
        return [getattr(race.none, link) / getattr(race.point, link) for race in self.won]

    def is_never(self) -> bool:
        """Whether the table says INF."""
        return 2 * len(self.won) <= len(self.races)

    def minutes(self, mbits: float) -> str:
        """Until the result is reached, in the table's words."""
        if not self.races:
            return "–"
        return "INF" if self.is_never() else f"{fmean(race.point.minutes(mbits) for race in self.won):.1f}"

    def saving(self, link: str) -> str:
        """The table's words."""
        if not self.races:
            return "–"
        share = f", {len(self.won)} of {len(self.races)}" if 0 < len(self.won) < len(self.races) else ""
        return ("INF" if self.is_never() else spread(self.savings(link))) + share


Cells = dict[tuple[str, str, str], Cell]  # by setting, cut and compressor


def load(folder: Path) -> tuple[list[Run], list[str]]:
    """All runs below a folder, and a sentence for each that is not finished or cannot be read."""
    runs, troubles = [], []
    for path in sorted({path.parent for name in ("config.yaml", ".hydra") for path in folder.rglob(name)}):
        if path.name == ".hydra":
            continue
        try:
            run = Run(path)
        except (OSError, ValueError, KeyError) as error:
            troubles.append(f"{path.relative_to(folder)} cannot be read: {type(error).__name__}: {error}")
            continue
        runs.append(run)
        if not run.is_finished:
            troubles.append(f"{path.relative_to(folder)} is {run.progress()}")
    return runs, troubles


def varying(runs: list[Run]) -> list[str]:
    """Options, beside those of a cell, in which runs of the same network and data differ."""
    values = defaultdict(set)
    for run in runs:
        for key, value in run.options.items():
            values[run.cfg.arch.name, run.cfg.data.name, key].add(str(value))
    return sorted({key for (*_, key), found in values.items() if len(found) > 1 and key.split(".")[0] not in CELL_KEYS})


def group(runs: list[Run], varied: list[str]) -> Cells:
    """In the order of the tables."""
    grouped = defaultdict(list)
    for run in runs:
        grouped[run.cell(varied)].append(run)

    def place(name: str) -> tuple[int, str]:
        return ORDER.index(name) if name in ORDER else len(ORDER), name

    return {key: Cell(grouped[key]) for key in sorted(grouped, key=lambda key: tuple(map(place, key)))}


def gaps(runs: list[Run], varied: list[str]) -> list[str]:
    """A sentence for each run that the others of its setting suggest, and that is not there."""
    there = {(*run.cell(varied), run.cfg.seed) for run in runs}
    sentences = []
    for setting in sorted({setting for setting, *_ in there}):
        axes = zip(*(key[1:] for key in there if key[0] == setting), strict=True)
        for cut, compressor, seed in sorted(product(*map(set, axes))):
            if (setting, cut, compressor, seed) not in there:
                sentences.append(f"{setting}: there is no run of {compressor} with cut={cut}, seed={seed}")
    return sentences


def spread(values: list[float]) -> str:
    """The mean, and with several values the least and the greatest."""
    ends = f" ({min(values):.2f} … {max(values):.2f})" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{ends}"
