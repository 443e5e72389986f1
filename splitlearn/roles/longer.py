"""Which changes of its configuration a run can go on with: other epochs and rates, as long as those behind it stay.

A run that goes on ends like one that was never interrupted. One that goes on for more epochs than it was started for
ends like one of so many epochs, if its learning rates were the same until here. With a constant rate they are, and with
steps; along a cosine to zero at the end, each of them is another. An evaluation after the epoch that was its last,
where evaluate.every would have had none, counts for early stopping and the best weights like any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from splitlearn.config import differences
from splitlearn.errors import UserError, typed
from splitlearn.exchange.exchange import exchange_from
from splitlearn.rates import Clock

LATER = ("epochs", "schedule", "warmup")  # what these say of epochs to come may change


def check(folder: Path, then: dict[str, Any], now: dict[str, Any], progress: dict[str, Any]) -> None:
    """
    Args:
        folder: of the run.
        then: all keys that it was started with (see config.shared).
        now: those that it is to go on with.
        progress: where it is.

    Raises:
        UserError: the run would not be the same.
    """
    difference = differences(then, now, "then", "now")
    if not difference:
        return
    changed = {key for key in then.keys() | now.keys() if then.get(key) != now.get(key)}
    if any(key.split(".")[0] not in LATER for key in changed):
        raise UserError(
            f"{folder} holds a run that was configured differently: {difference}; go on as it was, choose another"
            " folder with hydra.run.dir, or start over in it with resume=never"
        )
    if now["epochs"] < progress["epoch"] and "epochs" in changed:
        raise UserError(
            f"{folder} holds a run that has done {progress['epoch'] - 1} of its {then['epochs']} epochs, and cannot end"
            f" with epochs={now['epochs']} any more: leave epochs out, or choose another folder with hydra.run.dir"
        )
    num_begun = progress["epoch"] - (progress["epoch_step"] == 0)
    num_steps = progress["num_updates"]
    if rates(then, num_begun, num_steps) != rates(now, num_begun, num_steps):
        raise UserError(
            f"{folder} holds a run whose {num_begun} epochs had other learning rates than they would have had with"
            f" {difference}: go on as it was, or start another run from its weights with {typed('init_from', folder)}"
        )


def rates(config: dict[str, Any], num_epochs: int, num_steps: int) -> list[dict[str, Any]]:
    """What optimizers step with in each of the `num_steps` steps of each of the first epochs."""
    cfg = OmegaConf.create()
    for key, value in config.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    clock, exchange = Clock(cfg, num_steps), exchange_from(cfg)
    parts = {epoch: exchange.plan(epoch).part for epoch in range(1, num_epochs + 1)}
    return [clock.at(part, epoch, step) for epoch, part in parts.items() for step in range(num_steps)]
