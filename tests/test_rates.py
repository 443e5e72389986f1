"""What the optimizers step with, by the place in the run."""

import pytest
import torch
from simulation import compose

from splitlearn import checks
from splitlearn.errors import UserError
from splitlearn.rates import Rates

EPOCHS, STEPS = 4, 5
PLACES = [(epoch, step) for epoch in range(1, EPOCHS + 1) for step in range(STEPS)]


def rates(*options: str) -> Rates:
    return Rates(compose(f"epochs={EPOCHS}", *options), STEPS)


def of_all(*options: str, key: str = "lr") -> list:
    found = rates(*options)
    return [found.at(*place)[key] for place in PLACES]


def torchs(make, every: int = 1, key: str = "lr", **options) -> list:
    """The same of a schedule as a plain PyTorch program uses it, which moves on after every so many steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.05, momentum=0.9)
    schedule, found = make(optimizer, **options), []
    for step in range(1, EPOCHS * STEPS + 1):
        found.append(optimizer.param_groups[0][key])
        optimizer.step()
        if step % every == 0:
            schedule.step()
    return found


TORCH = torch.optim.lr_scheduler
RESTARTS = "torch.optim.lr_scheduler.CosineAnnealingWarmRestarts"


@pytest.mark.parametrize(
    "options, expected",
    [
        (["schedule=cosine"], torchs(TORCH.CosineAnnealingLR, STEPS, T_max=EPOCHS)),
        (["schedule=cosine", "schedule.per=step"], torchs(TORCH.CosineAnnealingLR, T_max=EPOCHS * STEPS)),
        (["schedule=cosine_steps"], torchs(TORCH.CosineAnnealingLR, T_max=EPOCHS * STEPS)),
        (["schedule=cosine_steps", "schedule.T_max=7"], torchs(TORCH.CosineAnnealingLR, T_max=7)),
        (["schedule=exponential"], torchs(TORCH.ExponentialLR, STEPS, gamma=0.95)),
        (["schedule=polynomial"], torchs(TORCH.PolynomialLR, total_iters=EPOCHS * STEPS)),
        (["schedule=step", "schedule.step_size=2"], torchs(TORCH.StepLR, STEPS, step_size=2)),
        (
            ["schedule=step", "schedule.per=step", "schedule.step_size=0.8 epochs"],
            torchs(TORCH.StepLR, step_size=4, gamma=0.1),
        ),
        (
            ["schedule=step", "schedule.per=step", "schedule.step_size=0.4 epochs"],
            torchs(TORCH.StepLR, step_size=2, gamma=0.1),
        ),
        (
            ["schedule=multistep", "schedule.per=step", "schedule.milestones=[1 epoch,12,3 epochs]"],
            torchs(TORCH.MultiStepLR, milestones=[5, 12, 15], gamma=0.2),
        ),
        (["schedule=one_cycle"], torchs(TORCH.OneCycleLR, max_lr=0.05, total_steps=EPOCHS * STEPS)),
        (
            [f"schedule._target_={RESTARTS}", "~schedule.T_max", "+schedule.T_0=1 epoch", "schedule.per=step"],
            torchs(TORCH.CosineAnnealingWarmRestarts, T_0=STEPS),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) else "",
)
def test_they_are_what_torchs_schedule_gives_in_a_plain_program(options, expected):
    checks.check(compose(f"epochs={EPOCHS}", *options))
    assert of_all(*options) == expected


def test_a_cycle_moves_the_momentum_too():
    options = {"max_lr": 0.05, "total_steps": EPOCHS * STEPS}
    assert of_all("schedule=one_cycle", key="momentum") == torchs(TORCH.OneCycleLR, key="momentum", **options)
    betas = of_all("schedule=one_cycle", "optimizer=adam", key="betas")
    assert len(set(betas)) > 5 and all(0.85 - 1e-9 <= one <= 0.95 and other == 0.999 for one, other in betas)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
@pytest.mark.parametrize("length, number", [("epochs=1.4", 7), ("steps=7", 7), ("epochs=0", 0)])
def test_a_warm_up_multiplies_the_schedule_and_ends(schedule, length, number):
    plain = of_all(f"schedule={schedule}")
    warm = of_all(f"schedule={schedule}", f"warmup.{length}", "warmup.from=0.3")
    factors = [0.3 + 0.7 * step / number for step in range(number)]
    assert warm[:number] == pytest.approx([rate * factor for rate, factor in zip(plain, factors, strict=False)])
    assert warm[number:] == plain[number:]
    if number:
        assert warm[0] == pytest.approx(0.3 * plain[0])


@pytest.mark.parametrize("options", [["schedule=one_cycle"], ["schedule=cosine_steps", "warmup.epochs=2"]])
def test_a_clock_that_starts_anywhere_is_the_same_bit_for_bit(options):
    whole = of_all(*options)
    for number, place in enumerate(PLACES):
        assert rates(*options).at(*place)["lr"] == whole[number]


def test_a_length_of_part_of_a_step_is_one_and_a_milestone_there_is_the_start():
    step = ["schedule=step", "schedule.per=step"]
    assert of_all(*step, "schedule.step_size=0.05 epochs") == of_all(*step, "schedule.step_size=1")
    milestones = ["schedule=multistep", "schedule.per=step"]
    assert of_all(*milestones, "schedule.milestones=[0.05 epochs]") == of_all(*milestones, "schedule.milestones=[0]")


def test_an_epoch_that_is_longer_than_thought_stays_at_its_last_step():
    one, other = rates("schedule=one_cycle"), rates("schedule=one_cycle")
    assert one.at(EPOCHS, STEPS - 1) == other.at(EPOCHS, STEPS + 10)


@pytest.mark.parametrize(
    "options, wrong",
    [
        (["schedule.T_max=0"], "schedule.T_max=0 must be a whole number, at least 1"),
        (["optimizer.lr=abc"], "optimizer.lr=abc must be a number"),
        (["optimizer.lr=-1"], "optimizer.lr=-1 must be a number, at least 0"),
        (["optimizer.lr=inf"], "optimizer.lr=inf must be a number"),
        (["schedule=exponential", "schedule.gamma=-1"], "schedule.gamma=-1 must be a number, at least 0"),
        (["schedule.per=batch"], "schedule.per=batch is unknown"),
        (["schedule.T_max=0.5 epochs"], "schedule.T_max=0.5 epochs: parts of epochs need schedule.per=step"),
        (["+schedule.x=3"], "unexpected keyword"),
        (["schedule._target_=torch.optim.lr_scheduler.Foo"], "Foo"),
        (["schedule._target_=torch.optim.lr_scheduler.ReduceLROnPlateau", "~schedule.T_max"], "waits for a figure"),
        (["warmup.from=2"], "warmup.from=2 must be a number from 0 to 1"),
        (["warmup.epochs=-1"], "warmup.epochs=-1 must be a number from 0"),
        (["warmup.epochs=long"], "warmup.epochs=long must be a number from 0"),
        (["warmup.steps=0"], "warmup.steps=0 must be a whole number"),
        (["warmup.steps=3", "warmup.epochs=1"], "give one of them"),
        (["clip_norm=0"], "clip_norm=0 must be a number above 0, or null"),
        (["accumulate=0"], "accumulate=0 must be a whole number, at least 1"),
        (["accumulate=2", "topology.average=step"], "accumulate does not go with topology.average=step"),
        (["task.label_smoothing=1"], "task.label_smoothing=1 must be a number from 0, and below 1"),
        (["task.class_weights=often"], "task.class_weights=often must be null, balanced, or a number above 0"),
        (["task.class_weights=[1,-1]"], r"task.class_weights=\[1, -1\] must be null"),
        (["task.class_weights=balanced", "membership.open=true"], "does not go with membership.open=true"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_sentence_before_anything_is_started(options, wrong):
    with pytest.raises(UserError, match=wrong) as error:
        checks.check(compose(*options))
    assert "\n" not in str(error.value)


def test_a_cycle_that_is_shorter_than_the_run_is_told_at_its_start():
    with pytest.raises(UserError, match=r"schedule.total_steps=19 is less than the run's 20: '4 epochs' is all of it"):
        rates("schedule=one_cycle", "schedule.total_steps=19")
