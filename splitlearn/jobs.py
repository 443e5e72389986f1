"""A sweep's jobs: what became of each, as its folder says it, and the table of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from splitlearn.measure.costs import size
from splitlearn.measure.summary import saving_both_ways, sent_both_ways
from splitlearn.tasks import task_from
from splitlearn.tasks.task import Metric

FAILED = "failed.txt"  # in a job's folder: why


@dataclass
class Job:
    """A job of a sweep, as its folder has it.

    Attributes:
        number: from 0; None where its folder does not say it.
        overrides: what it was given, {"cut": "deep"}.
        summary: of its run; None if that has not finished.
        failure: why it did not, where the user can mend it.
    """

    number: int | None
    folder: Path
    overrides: dict[str, str]
    summary: dict[str, Any] | None
    failure: str | None

    @property
    def name(self) -> str:
        return self.folder.name if self.number is None else str(self.number)

    @classmethod
    def read(cls, folder: Path) -> Job:
        about = OmegaConf.load(folder / ".hydra" / "hydra.yaml").hydra
        pairs = (word.partition("=") for word in about.overrides.task)
        failed, finished = folder / FAILED, folder / "summary.json"
        failure = failed.read_text(encoding="utf-8") if failed.exists() else None
        failure = "there was no room to say why" if failure == "" else failure
        if failure and finished.exists() and finished.stat().st_mtime > failed.stat().st_mtime:
            failure = None  # of another process, meanwhile
        try:
            summary = None if failure else json.loads(finished.read_text())
        except (FileNotFoundError, ValueError):
            summary = None
        number = OmegaConf.select(about, "job.num")  # None where it is missing
        if number is None and folder.name.isdecimal():  # as conf/config.yaml names it
            number = int(folder.name)
        return cls(number, folder, {key: value for key, _, value in pairs}, summary, failure)


def table(jobs: list[Job]) -> Table:
    """A row a job: what it was given that others were not, and what came of it."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    varied = [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]
    firsts = [_first_metric(job) if job.summary else None for job in jobs]
    titles = list(dict.fromkeys(first.title for first in firsts if first)) or ["result"]
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    shown.add_column("job", overflow="fold")
    for name in varied:  # on a narrow terminal a header, rather than its values, goes over several lines
        widest = max(len(_short(job.overrides.get(name, "–"))) for job in jobs)
        shown.add_column(name, overflow="fold", min_width=min(widest, 8))
    for name in (*titles, "best", "sent", "uplink", "both ways", "time"):
        shown.add_column(name, justify="right", no_wrap=True)
    for job, first in zip(jobs, firsts, strict=True):
        given = [escape(_short(job.overrides.get(key, "–"))) for key in varied]
        if not (found := job.summary):
            shown.add_row(
                escape(job.name), *given, "failed" if job.failure else "not finished", *["–"] * (len(titles) + 4)
            )
            continue
        result, best = (first.form(found[f"{which}test_{first.name}"]) for which in ("", "best_"))
        results = [result if title == first.title else "–" for title in titles]  # tasks may be what is varied
        uplink = f"{found['uplink']['saving']:.2f} ×" if "uplink" in found else "–"
        sent = size(sent_both_ways(found)) if "all_bytes" in found else "–"  # of a run by an older version
        figures = sent, uplink, f"{saving_both_ways(found):.2f} ×", f"{found['seconds']:.1f} s"
        shown.add_row(escape(job.name), *given, *results, best, *figures)
    return shown


def _first_metric(job: Job) -> Metric:
    return task_from(OmegaConf.load(job.folder / ".hydra" / "config.yaml")).metrics[0]


def _short(value: str) -> str:
    """A number that a search has drawn has many digits."""
    try:
        return f"{float(value):.4g}" if len(value) > 8 else value
    except ValueError:
        return value
