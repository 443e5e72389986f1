"""Runs that go on for more epochs, where that is sound."""

from pathlib import Path

import pytest
from simulation import compose

from splitlearn.config import shared
from splitlearn.errors import UserError
from splitlearn.roles import longer

FOLDER = Path("a run")


def check(then: list[str], now: list[str], epoch: int, epoch_step: int = 0) -> None:
    configs = (shared(compose(*overrides)) for overrides in (then, now))
    longer.check(FOLDER, *configs, {"epoch": epoch, "epoch_step": epoch_step, "num_updates": 3})


@pytest.mark.parametrize(
    ("schedule", "epochs", "epoch"),
    [
        (["schedule=constant"], 60, 31),
        (["schedule=step"], 60, 31),
        (["schedule=multistep", "optimizer=adam"], 60, 31),
        (["schedule=constant"], 20, 20),
        (["schedule=constant"], 20, 12),
        (["schedule=constant"], 30, 31),
        (["schedule=cosine"], 60, 1),  # of which nothing is done
        (["schedule=cosine", "schedule.T_max=30"], 60, 31),
    ],
)
def test_the_number_of_epochs_may_change_where_the_rates_until_then_stay(schedule, epochs, epoch):
    check([*schedule, "epochs=30"], [*schedule, f"epochs={epochs}"], epoch)


def test_so_may_a_milestone_that_is_to_come():
    then = ["schedule=multistep", "schedule.milestones=[10,20]", "epochs=30"]
    now = ["schedule=multistep", "schedule.milestones=[10,25]", "epochs=30"]
    check(then, now, 20)
    check(then, now, 21)  # the epoch after which the first one steps is the last that is alike
    with pytest.raises(
        UserError, match=r"other learning rates .*schedule.milestones \(then \[10, 20\], now \[10, 25\]"
    ):
        check(then, now, 21, epoch_step=1)


def test_the_rates_of_a_run_that_has_finished_stay_too():
    check(["schedule=constant", "epochs=1"], ["schedule=cosine", "epochs=1"], 2)  # whose first rate is the same
    with pytest.raises(UserError, match="other learning rates"):
        check(["schedule=constant", "epochs=3"], ["schedule=cosine", "epochs=3"], 4)


def test_along_a_cosine_every_rate_would_have_been_another():
    with pytest.raises(UserError, match=r"other learning rates .*epochs \(then 30, now 60\).*'init_from=a run'$"):
        check(["epochs=30"], ["epochs=60"], 31)


@pytest.mark.parametrize(("epoch", "epoch_step", "done"), [(31, 0, 30), (22, 0, 21), (22, 3, 21)])
def test_epochs_that_are_done_stay(epoch, epoch_step, done):
    with pytest.raises(UserError, match=f"has done {done} of its 30 epochs, and cannot end with epochs=20"):
        check(["schedule=constant", "epochs=30"], ["schedule=constant", "epochs=20"], epoch, epoch_step)


@pytest.mark.parametrize("change", ["seed=1", "optimizer.lr=0.1", "evaluate.every=2", "init_from=elsewhere"])
def test_nothing_else_may_change(change):
    with pytest.raises(UserError, match=f"configured differently: .*{change.split('=')[0]}"):
        check(["schedule=constant", "epochs=30"], ["schedule=constant", "epochs=60", change], 31)


def test_rates_go_over_the_parts_of_a_run_that_have_schedules_of_their_own():
    once = ["exchange=send_once", "exchange.local_epochs=4"]
    check([*once, "epochs=10"], [*once, "epochs=20"], 5)  # the local epochs are four of either
    check([*once, "epochs=10", "schedule=constant"], [*once, "epochs=20", "schedule=constant"], 11)
    for options, epoch in ([], 7), (["schedule.T_max=10 epochs"], 5):  # which is a share of each part
        with pytest.raises(UserError, match="other learning rates"):
            check([*once, *options, "epochs=10"], [*once, *options, "epochs=20"], epoch)
