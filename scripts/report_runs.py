"""The runs below a folder, as report.py needs them, and which of them the others are compared with."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import isfinite, nan
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from report_labels import NO_RESULT, codec_of, is_bf16, way_of
from yaml import YAMLError

from splitlearn import config
from splitlearn.errors import UserError
from splitlearn.exchange.exchange import exchange_from
from splitlearn.measure.ledger import of_training
from splitlearn.saved import metrics
from splitlearn.tasks import Metric, Task, task_from

ORDER = [
    "shallow",
    "medium",
    "deep",
    "none",
    "bf16",
    "int8",
    "qu",
    "sp",
    "rt",
    "ms",
    "ms_best",
]  # all others after, by name
WAYS = ("up", "down")
METHOD_KEYS = {"exchange", "defence", "topology.name", "topology._target_", "cut_back", "features", "feature_gradient"}
BOTTLENECK = {"bottleneck", "bottleneck_init", "bottleneck_batches"}
CODEC_KEYS = {"compressor", "downlink", "weights", "features_alike", "cut_precision", *BOTTLENECK}
PLACE_KEYS = {"arch.cuts", "cut", "seed"}
CELL_KEYS = PLACE_KEYS | METHOD_KEYS | CODEC_KEYS  # others that vary name the setting, or the row
METRIC = "metric"  # an option of a run beside those of its configuration
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, YAMLError)
UNREADABLE += (OmegaConfBaseException, HydraException, UserError)


@dataclass
class Point:
    """A run at one of its evaluations. Bytes and seconds are of the whole run until then."""

    epoch: int
    result: float  # the first metric of the test samples; a share in percent
    loss: float  # in training, mean over the epoch
    up: int  # payloads
    both: int
    all_up: int  # all that crossed for training
    all_down: int
    seconds: float
    link: float  # bytes both ways on one client's link, with labels, weights and evaluations

    @property
    def all(self) -> int:
        return self.all_up + self.all_down

    def minutes(self, mbits: float) -> float:
        """Over links of this rate, estimated."""
        return (self.seconds + 8e-6 * self.link / mbits) / 60


class Run:
    """What a run's folder says, or that of a training without a cut, which anchor.json gives a name.

    Attributes:
        anchor: that name; None of a run.
        kind: network and data, as the task calls them, and what its first metric is called.
        way: exchange and topology, "" where they are labels_up and parallel.
        codec: in words.
        leaks: what attacks on it came to; see `leaks_of`.
        differs: options in which it is not like the runs that it is compared with; see `find_base`.

    Raises:
        one of UNREADABLE: a file is not what a run writes, or names a class that is not there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        saved = folder / "config.yaml"  # Hydra's own is there before the run starts
        self.cfg = OmegaConf.load(saved if saved.exists() else folder / ".hydra" / "config.yaml")
        task, length = task_from(self.cfg), f"{self.cfg.epochs} epochs"  # as schedules have it
        self.metric, self.cut, self.seed = task.metrics[0], str(self.cfg.cut), self.cfg.seed
        self.kind = *headline(task, self.cfg), self.metric.title
        self.options = {key: "all" if value == length else value for key, value in config.shared(self.cfg).items()}
        self.options[METRIC] = self.metric.title
        about = folder / "anchor.json"
        self.anchor = json.loads(about.read_text())["method"] if about.exists() else None
        for key in NO_RESULT | ({"precision"} if is_bf16(self.cfg) and not self.anchor else set()):  # the codec says it
            self.options.pop(key, None)
        self.way, self.codec = ("", "") if self.anchor else (way_of(self.cfg), codec_of(self.cfg))
        self.is_base, self.differs = not (self.way or self.anchor), ""
        self.is_finished = (folder / "summary.json").exists()
        if self.is_finished:
            self.summary = json.loads((folder / "summary.json").read_text())
            self.points = points(folder, self.cfg, self.metric)
            self.leaks = leaks_of(folder)
            self.num_samples = max(line.get("samples", 0) for line in metrics(folder, "epoch"))
            if self.cfg.get("samples_per_epoch") or self.cfg.membership.get("sample"):
                self.num_samples = 0  # not known: no epoch has them all

    @property
    def method(self) -> str:
        """What its row is called: by the codec alone where exchange and topology are those of the base."""
        way = "" if self.is_base else self.way
        return (self.anchor or " · ".join(filter(None, [way, self.codec]))) + self.differs

    def cell(self, varied: Iterable[str]) -> tuple[str, str, str]:
        """Setting (network, data, and the options that are not the same in all runs), cut, and method."""
        network, data, _ = self.kind
        options = (f"{key}={self.options.get(key, OmegaConf.select(self.cfg, key))}" for key in varied)
        return ", ".join([network, data, *options]), self.cut, self.method

    def place(self) -> tuple:
        """In the order of the rows: smaller messages, fewer messages, anchors."""
        return bool(self.anchor), not self.is_base, self.way, *place(self.codec), self.method

    def reach(self, target: float) -> Point | None:
        """Where the run first has this result, or a better one."""
        return next((point for point in self.points if not self.metric.is_better(target, near(point, target))), None)

    def progress(self) -> str:
        """How far a run that is not finished has come."""
        path = self.folder / "metrics.jsonl"
        num_epochs = path.read_text().count('{"kind": "epoch"') if path.exists() else 0
        return f"not finished: {num_epochs} of {self.cfg.epochs} epochs"


def headline(task: Task, cfg: DictConfig) -> tuple[str, str]:
    """What people call a run's network and data; their names where the task asks for more than kept runs say."""
    try:
        return task.headline(cfg)
    except UNREADABLE:
        return cfg.arch.name, cfg.data.name


def place(name: str) -> tuple[int, str]:
    return ORDER.index(name) if name in ORDER else len(ORDER), name


def near(point: Point, target: float) -> float:
    """A point's result, or the target where it is so near that sums of floats could differ by it."""
    return target if abs(point.result - target) < 1e-9 else point.result


def unit(metric: Metric) -> str:
    """What stands behind a result."""
    return " %" if metric.is_share else ""


def points(folder: Path, cfg: DictConfig, metric: Metric) -> list[Point]:
    """The evaluations of a run, from its metrics.jsonl."""
    found, results, num_clients = [], {}, config.num_in_epoch(cfg)
    at_once = dict.fromkeys(("labels", "weights"), config.num_at_once(cfg))  # of clients; all in the others
    keys = {way: [f"{spec.key}_bytes" for spec in exchange_from(cfg).channels if spec.way == way] for way in WAYS}
    seconds = link = 0
    sent, crossed = dict.fromkeys(WAYS, 0), dict.fromkeys(WAYS, 0)
    for line in metrics(folder):
        if line["kind"] == "step":
            if line["clients"]:  # none where a step was skipped
                payloads = {way: sum(line[key] for key in keys[way]) for way in WAYS}
                sent = {way: sent[way] + payloads[way] for way in WAYS}
                link += sum(payloads.values()) / len(line["clients"])
        elif line["kind"] == "evaluation":
            results[line["epoch"]] = line[metric.name] * (100 if metric.is_share else 1)
            at_once["evaluation"] = len(line.get("clients", ())) or num_clients
        elif line["kind"] == "epoch":
            seconds += line["seconds"]
            crossed = {way: crossed[way] + of_training(line, way) for way in WAYS}
            beside = product(("labels", "weights", "evaluation", "bottleneck"), WAYS)
            link += sum(line.get(f"{what}_{way}_bytes", 0) / at_once.get(what, num_clients) for what, way in beside)
            if (result := results.get(line["epoch"])) is not None:
                if not isfinite(result):
                    raise ValueError(f"test {metric.title} is {result} after epoch {line['epoch']}: training diverged")
                both, loss = sum(sent.values()), line.get("loss", nan)
                point = line["epoch"], result, loss, sent["up"], both, crossed["up"], crossed["down"], seconds, link
                found.append(Point(*point))
    if not found:
        raise ValueError("no evaluation in metrics.jsonl")
    return found


def leaks_of(folder: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """What the attacks on a run came to: by attack and figure, the mean over their seeds, and that of the guess."""
    found = {}
    for path in sorted((folder / "attacks").glob("*.json")):
        for name, figure in json.loads(path.read_text())["figures"].items():
            found[path.stem, name] = figure["mean"], figure["guess"]
    return found


def run_folders(folder: Path) -> list[Path]:
    """Those below a folder in which a run has been started; a config.yaml alone may be anything's."""
    found = {path.parent for path in folder.rglob("config.yaml") if (path.parent / "metrics.jsonl").exists()}
    return sorted(found | {path.parent for path in folder.rglob(".hydra")})


def load(folder: Path) -> tuple[list[Run], list[str]]:
    """All runs below a folder, and a sentence for each that is not finished or cannot be read."""
    runs, troubles = [], []
    for path in run_folders(folder):
        try:
            run = Run(path)
        except UNREADABLE as error:
            why = f"{type(error).__name__}: {error}".split("\n")[0]
            troubles.append(f"{path.relative_to(folder)} cannot be read: {why}")
            continue
        runs.append(run)
        if not run.is_finished:
            troubles.append(f"{path.relative_to(folder)} is {run.progress()}")
    find_base(runs)
    return runs, troubles


def find_base(runs: list[Run]) -> None:
    """Finds out, of each kind, which runs are the base of others, and how these differ from it.

    They are those of labels_up and parallel; without any, those whose exchange and topology most have.
    """
    for kind in {run.kind for run in runs}:
        own = [run for run in runs if run.kind == kind]
        if ways := Counter(run.way for run in own if not run.anchor):
            way = "" if "" in ways else min(ways, key=lambda way: (-ways[way], way))
            for run in own:
                run.is_base = run.way == way and not run.anchor
        base = [run for run in own if run.is_base]
        trained = [run for run in own if not run.anchor]
        for run in trained if len({is_bf16(run.cfg) for run in trained}) > 1 else ():
            if is_bf16(run.cfg):
                run.codec = "bf16" if run.codec == "none" else f"{run.codec} of bf16"
        settings, of_all = options_of(setting_runs(own)), options_of(own)
        agreed = {key for key, values in settings.items() if len(values) == 1}
        agreed |= {key for key, values in of_all.items() if key not in settings and len(values) > 1}  # on not having it
        for run in own if base else ():
            different = [key for key in run.options if key in agreed]
            different = [key for key in different if str(run.options[key]) not in settings.get(key, ())]
            run.differs = "".join(f", {key}={run.options[key]}" for key in different)


def setting_runs(own: list[Run]) -> list[Run]:
    """Those of one kind whose options are the settings, as the others are compared with them.

    They are those without compression among the base; without any, all of the base; without it, all.
    """
    base = [run for run in own if run.is_base]
    return [run for run in base if run.codec == "none"] or base or own


def options_of(runs: list[Run]) -> dict[str, set[str]]:
    """The values of all options that are not a cell's."""
    values = defaultdict(set)
    for run in runs:
        for key, value in run.options.items():
            if not any(f"{key}.".startswith(f"{own}.") for own in CELL_KEYS):
                values[key].add(str(value))
    return values


def varying(runs: list[Run]) -> list[str]:
    """Options, beside those of a cell, in which runs differ that others are compared with, or that have no such."""
    kinds = {run.kind for run in runs}
    found = {METRIC} if len({kind[:2] for kind in kinds}) < len(kinds) else set()
    for kind in kinds:
        values = options_of(setting_runs([run for run in runs if run.kind == kind]))
        found |= {key for key, of_key in values.items() if len(of_key) > 1}
    return sorted(found)
