"""The rows of report.py's tables: the runs of one method at one cut, and how they compare with no compression."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from statistics import fmean

from report_runs import Point, Run, place

from splitlearn.tasks import Metric


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
    """The runs of one method at one cut, which differ in their seeds."""

    def __init__(self, runs: list[Run]):
        self.runs = runs
        self.races: list[Race] = []

    def compare(self, none: "Cell", best: bool, tolerance: float) -> None:
        """Finds out where the runs are as good as those without compression of the same seeds."""
        baselines = {run.seed: run for run in none.runs}
        for run in self.runs:
            if baseline := baselines.get(run.seed):
                results, metric = [point.result for point in baseline.points], run.metric
                target = (max if metric.higher_is_better else min)(results) if best else results[-1]
                target -= tolerance if metric.higher_is_better else -tolerance
                self.races.append(Race(target, baseline.reach(target), run.reach(target)))

    @property
    def metric(self) -> Metric:
        return self.runs[0].metric

    @property
    def is_anchor(self) -> bool:
        return self.runs[0].anchor is not None

    @property
    def finals(self) -> list[float]:
        """The result that each run ended with."""
        return [run.points[-1].result for run in self.runs]

    def crossed(self, field: str = "all") -> float:
        """Bytes that have crossed at the end, mean over the runs: all, all_up, all_down."""
        return fmean(getattr(run.points[-1], field) for run in self.runs)

    @property
    def crossed_each(self) -> float | None:
        """The same, of all, for each training sample of an epoch; None where it is not known how many these are."""
        if not all(run.num_samples for run in self.runs):
            return None
        return fmean(run.points[-1].all / run.num_samples for run in self.runs)

    @property
    def won(self) -> list[Race]:
        return [race for race in self.races if race.point]

    @property
    def target(self) -> float:
        return fmean(race.target for race in self.races)

    def of_runs(self, field: str) -> list[list[float]]:
        """A field of every run's points."""
        return [[getattr(point, field) for point in run.points] for run in self.runs]

    def course(self) -> list[list[Point]]:
        """The runs' points by epoch, of those epochs after which all have been evaluated, and where each ended."""
        by_epoch = [{point.epoch: point for point in run.points} for run in self.runs]
        common = [epoch for epoch in by_epoch[0] if all(epoch in points for points in by_epoch)]
        found, ends = (
            [[points[epoch] for points in by_epoch] for epoch in common],
            [run.points[-1] for run in self.runs],
        )
        return found if ends in found else [*found, ends]

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


Cells = dict[tuple[str, str, str], Cell]  # by setting, cut and method


def group(runs: list[Run], varied: list[str]) -> tuple[Cells, list[str]]:
    """In the order of the tables, and a sentence for each run that is like another one before it, with its seed.

    An anchor, which has no cut, stands beside the runs of each.
    """
    grouped, sentences = defaultdict(dict), {}
    for run in sorted(runs, key=Run.place):
        setting, cut, method = run.cell(varied)
        cuts = {key[1] for key in grouped if key[0] == setting} if run.anchor else set()
        for one in cuts or {cut}:
            first = grouped[setting, one, method].setdefault(run.seed, run)
            if first is not run:
                alike = f"its options, its row ({method}) and seed={run.seed} are those of {first.folder}"
                sentences[run.folder] = f"{run.folder} is left out: {alike}"

    def order(key: tuple[str, str, str]) -> tuple:
        return place(key[0]), place(key[1]), next(iter(grouped[key].values())).place()

    return {key: Cell([*grouped[key].values()]) for key in sorted(grouped, key=order)}, [*sentences.values()]


def gaps(runs: list[Run], varied: list[str]) -> list[str]:
    """A sentence for each method that lacks runs which the others of its setting suggest."""
    there = {(*run.cell(varied), run.seed) for run in runs if not run.anchor}
    sentences = []
    for setting in sorted({setting for setting, *_ in there}):
        cuts, methods, seeds = map(set, zip(*(key[1:] for key in there if key[0] == setting), strict=True))
        for method in sorted(methods):
            if missing := [
                f"cut={cut}, seed={seed}"
                for cut, seed in product(sorted(cuts), sorted(seeds))
                if (setting, cut, method, seed) not in there
            ]:
                sentences.append(f"{setting}: there is no run of {method} with {'; '.join(missing)}")
    return sentences


def spread(values: list[float]) -> str:
    """The mean, and with several values the least and the greatest."""
    ends = f" ({min(values):.2f} … {max(values):.2f})" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{ends}"
