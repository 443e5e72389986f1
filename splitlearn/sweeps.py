"""A sweep as a whole: its one folder, which way is better, and what is shown of its jobs at the end.

How it works: Hydra calls `Sweep` in the process that starts the sweep, before its first job. What became of the jobs,
whichever launcher ran them, wherever, is read from their folders.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override
from rich.markup import escape

from splitlearn.console import Console, complain
from splitlearn.errors import Busy, UserError, typed
from splitlearn.jobs import FAILED, Job, table
from splitlearn.tasks import task_from
from splitlearn.words import quoted

WIDTH = 160  # of the table at most, also where a terminal is narrower: it would lose columns there
REPORT = Path(__file__).parents[1] / "scripts" / "report.py"
current: Sweep | None = None  # of this process


class Sweep(Callback):
    """Hydra's callback, before a run or a sweep.

    Attributes:
        folder: of the sweep.
        started_at: when, by the clock of the folder's file system.
        is_search: whether results say which jobs come next.
        has_failed: a job has, in this process, whether its folder says so or not.
    """

    has_failed = False

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        _told(lambda: _touch(Path(config.hydra.run.dir), "hydra.run.dir"))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        global current
        _told(lambda: self._begin(config))
        current = self

    def _begin(self, config: DictConfig) -> None:
        _check_names(config)
        self.folder = one_folder(config)
        self.started_at = _touch(self.folder, "hydra.sweep.dir")
        with flag_override(config.hydra, ["struct", "readonly"], [False, False]):  # which it locks from 1.4 on
            config.hydra.sweep.dir = str(self.folder)
            # Each job's configuration is composed anew, maybe a second later, maybe on another machine.
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(self.folder))}")
            self.is_search = "direction" in config.hydra.sweeper
            if self.is_search:
                config.hydra.sweeper.direction = _direction(config)
                config.hydra.sweeper.max_failure_rate = 1.0  # as in any other sweep

    # At the end

    def jobs(self) -> list[Job]:
        """Those that this sweep has started, in order."""
        found = [
            path.parents[1]
            for path in self.folder.rglob(".hydra/hydra.yaml")
            if path.stat().st_mtime >= self.started_at
        ]
        return sorted(map(Job.read, found), key=lambda job: (job.number is None, job.number, job.folder))

    def has_failures(self) -> bool:
        return any(job.failure for job in self.jobs())

    def without_room(self, error: OSError) -> UserError:
        """The error that a file of the sweep's own cannot be written."""
        return UserError(
            f"{self.folder} cannot be written to ({error.strerror}): make room there, then give the same command with"
            f" {typed('hydra.sweep.dir', self.folder)}"
        )

    def show(self) -> bool:
        """Prints the table of the jobs; returns whether all have a result."""
        jobs = self.jobs()
        if not jobs:
            return not self.has_failed
        console = Console(highlight=False, width=WIDTH)
        console.print(table(jobs))
        for job in jobs:
            if why := job.failure:
                console.print(f"[red]job {escape(job.name)} failed:[/] ", end="")
                console.print(why, markup=False, soft_wrap=True)
        if any(job.summary for job in jobs) and REPORT.exists():
            console.print(f"tables and curves: python scripts/report.py {self.folder}", markup=False, soft_wrap=True)
        if failed := sum(job.failure is not None for job in jobs):
            complain(f"{failed} job{'s' * (failed > 1)} of the sweep failed")
        return not self.has_failed and all(job.summary for job in jobs)


def note_failure(folder: Path, error: UserError) -> None:
    """Leaves in a job's folder why it failed, unless that is another's, or cannot be written to, as on a full disk."""
    if not isinstance(error, Busy):
        with suppress(OSError):
            (folder / FAILED).write_text(str(error), encoding="utf-8")
    if current is not None:
        current.has_failed = True


def begin_job(folder: Path) -> None:
    """A job starts, maybe once more: its folder counts among those of this sweep."""
    (folder / FAILED).unlink(missing_ok=True)
    if (about := folder / ".hydra" / "hydra.yaml").exists():
        os.utime(about)


def one_folder(config: DictConfig) -> Path:
    """The folder of all jobs. One that is named after the moment is this sweep's alone."""
    folder = Path(config.hydra.sweep.dir)
    is_of_the_moment = "started_at" in OmegaConf.to_container(config.hydra.sweep, resolve=False)["dir"]
    if not is_of_the_moment or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        return folder
    for number in itertools.count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            continue  # another sweep of the same second
        except OSError:
            return candidate  # _touch says why


def _check_names(config: DictConfig) -> None:
    """
    Raises:
        UserError: folders are named after what jobs were given, without an option that has several values.
    """
    hydra = config.hydra
    subdir = OmegaConf.to_container(hydra.sweep, resolve=False)["subdir"]
    if "override_dirname" not in subdir:
        return
    words = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
    given = {
        word.key_or_group: word for word in OverridesParser.create().parse_overrides([*words, *hydra.overrides.task])
    }
    for key in hydra.job.config.override_dirname.exclude_keys:
        tells_apart = re.search(rf"\$\{{({re.escape(key)}[.}}]|hydra[.:]job\.(num|id)\}})", subdir)
        if key in given and given[key].is_sweep_override() and not tells_apart:
            raise UserError(
                f"{given[key].input_line} would give several jobs one folder, as {key} is not in their names: start a"
                " sweep for each value, with a hydra.sweep.dir=<folder> of its own"
            )


def _touch(folder: Path, key: str) -> float:
    """The time by the clock of this folder's file system; makes the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror}): choose another with {key}=<folder>"
        ) from None


def _direction(config: DictConfig) -> str:
    """Which way a search has to go, by the first metric of the task; Optuna's own default is to minimise."""
    metric, asked = task_from(config).metrics[0], config.hydra.sweeper.direction
    right = "maximize" if metric.higher_is_better else "minimize"
    if isinstance(asked, str) and asked != right:  # the default is no text
        raise UserError(
            f"hydra.sweeper.direction={asked} looks for the worst {metric.title}, which is what a run returns: set"
            f" hydra.sweeper.direction={right}, or leave it out"
        )
    return right


def _told(step: Callable[[], Any]) -> None:
    """Hydra makes a warning of what a callback raises; a mistake is to end the program."""
    try:
        step()
    except UserError as error:
        complain(error)
        sys.exit(1)
