"""The learning rate in the course of a run: the schedule and the warm-up before it, as one clock, which the server has.

How it works: the schedule drives an optimizer of its own, configured as those of the segments, over one weight that
nothing trains, and `at` reads off what it has set by a place in the run. The server steps with that and tells it to the
clients with its answers. So all step with the same rate, whoever has fewer batches or comes in the middle, and a run
that goes on needs no more than its place.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch.optim.lr_scheduler import ReduceLROnPlateau

from splitlearn.config import made_from
from splitlearn.errors import UserError
from splitlearn.hydras import instantiate
from splitlearn.kinds import EPOCHS
from splitlearn.targets import imported

SCHEDULED = ("lr", "momentum", "betas")  # what schedules set


class Rates:
    """What the optimizers step with, by the place in the run.

    A schedule moves on once an epoch, or with schedule.per=step after each optimizer step of the server, of which an
    epoch has `num_steps`. "10 epochs" as an option of it is so many of these. During the warm-up, the learning rate is
    the schedule's times what rises from warmup.from to 1, step by step.

    Args:
        cfg: of the run.
        num_steps: of the server's optimizer, in an epoch.
        num_epochs: of the part of the run that this is for; None for all of it. "10 epochs" then is as much of the part
            as it is of the run.

    Raises:
        UserError: optimizer or schedule cannot be made of their options.
    """

    def __init__(self, cfg: DictConfig, num_steps: int, num_epochs: int | None = None):
        self.num_steps, self._place = num_steps, 0
        num_epochs = cfg.epochs if num_epochs is None else num_epochs
        self._scale = num_epochs / cfg.epochs
        node = OmegaConf.to_container(cfg.schedule, resolve=True)
        self.is_per_step = node.pop("per", "epoch") == "step"
        self._optimizer = made_from(cfg, "optimizer", [torch.nn.Parameter(torch.zeros(1))])
        self._in_words = _in_words(node)
        options = {name: self._length(name, value) for name, value in node.items()}
        self._schedule = _made(options, self._optimizer)
        if isinstance(self._schedule, ReduceLROnPlateau):
            raise UserError("schedule=ReduceLROnPlateau waits for a figure: choose one that goes by epochs or steps")
        total = num_epochs * num_steps if self.is_per_step else num_epochs
        if (ends := getattr(self._schedule, "total_steps", total)) < total:
            raise UserError(
                f"schedule.total_steps={ends} is less than the run's {total}: '{cfg.epochs} epochs' is all of it"
            )
        self._optimizer.step()  # of no gradient, so that torch does not warn that the schedule comes first
        warmup = cfg.get("warmup") or {"epochs": 0, "steps": None, "from": 0}
        self._start = warmup["from"]
        self._warmup = warmup["steps"] or round(warmup["epochs"] * num_steps)

    def at(self, epoch: int, step: int) -> dict[str, Any]:
        """What an optimizer's group is to have; places do not go back.

        Args:
            epoch: of the run, from 1.
            step: optimizer steps of it that are done. An epoch that has more than num_steps stays at its last.

        Raises:
            UserError: the schedule cannot go on, or gives no learning rate.
        """
        step = (epoch - 1) * self.num_steps + min(step, self.num_steps - 1)
        place = step if self.is_per_step else epoch - 1
        while self._place < place:
            try:
                self._schedule.step()
            except Exception as error:  # of any schedule that there is
                raise UserError(f"{self._in_words} does not go on in epoch {epoch}: {_line(error)}") from None
            self._place += 1
        group = self._optimizer.param_groups[0]
        rates = {name: group[name] for name in SCHEDULED if name in group}
        if not (isinstance(rates["lr"], (int, float)) and 0 <= rates["lr"] < math.inf):
            raise UserError(f"the learning rate is {rates['lr']} in epoch {epoch}: change optimizer.lr or schedule")
        if step < self._warmup:
            rates["lr"] *= self._start + (1 - self._start) * step / self._warmup
        return rates

    def _length(self, name: str, value: Any, least: int = 1) -> Any:
        """A schedule's option, in which "10 epochs" is a number of what it counts; of part of a step, at least one."""
        if isinstance(value, list):
            return [self._length(name, one, least=0) for one in value]  # places, of which the start is one
        if not isinstance(value, str) or not (match := EPOCHS.fullmatch(value.strip())):
            return value
        number = float(match[1]) * (self.num_steps if self.is_per_step else 1)
        if not self.is_per_step and number != int(number):
            raise UserError(f"schedule.{name}={value}: parts of epochs need schedule.per=step")
        length = round(number * self._scale)
        return max(least, length) if number else length


class Clock:
    """The rates of a run whose parts, of some epochs each, have a schedule of their own; mostly there is but one.

    Args:
        cfg: of the run.
        num_steps: of an epoch, as for Rates.
    """

    def __init__(self, cfg: DictConfig, num_steps: int):
        self.cfg, self.num_steps = cfg, num_steps
        self._parts: dict[tuple[int, int | None], Rates] = {}

    def at(self, part: tuple[int, int | None], epoch: int, step: int) -> dict[str, Any]:
        """As Rates.at, of a part that has this first epoch and so many; None for all that are left."""
        first, number = part
        if part not in self._parts:
            number = self.cfg.epochs + 1 - first if number is None else number
            self._parts[part] = Rates(self.cfg, self.num_steps, number)
        return self._parts[part].at(epoch + 1 - first, step)


def check(cfg: DictConfig) -> None:
    """Raises UserError where the rates of a run cannot be found, as far as can be seen before its steps are known."""
    for key, highest in (("from", 1), ("epochs", 10**6)):
        value = cfg.warmup[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= highest:
            raise UserError(f"warmup.{key}={value} must be a number from 0{' to 1' if highest == 1 else ''}")
    if cfg.warmup.epochs and cfg.warmup.steps:
        raise UserError(f"warmup.epochs={cfg.warmup.epochs} and warmup.steps={cfg.warmup.steps}: give one of them")
    rates = Rates(cfg, num_steps=1)
    for epoch in range(1, min(cfg.epochs, 1000) + 1):
        rates.at(epoch, 0)


def _made(options: dict[str, Any], optimizer: torch.optim.Optimizer) -> Any:
    """The schedule of these options, whose lengths are counted."""
    imported(options.get("_target_"), "schedule._target_")
    try:
        return instantiate(options, optimizer, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"{_in_words(options)} cannot be made: {_line(error.__cause__ or error)}") from None


def _in_words(node: dict[str, Any]) -> str:
    options = ", ".join(f"{name}={value}" for name, value in node.items() if name not in ("_target_", "per"))
    return f"schedule {str(node.get('_target_')).rpartition('.')[2]} ({options})"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
