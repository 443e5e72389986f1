"""The live line of a run, on a terminal."""

import io
import re

import pytest
from rich.console import Console
from simulation import compose

from splitlearn.measure.display import Display
from splitlearn.tasks import task_from


@pytest.mark.parametrize(
    "overrides, line, expected",
    [
        (
            [],
            {"loss": 0.5, "top1": 0.875},
            r"loss 0.500 · accuracy 87.50% · [\d,]+ images/s · up 1.00 kB · down 2.00 kB",
        ),
        (
            ["task=causal_lm"],
            {"loss": 2.0, "perplexity": 7.5},
            r"loss 2.000 · perplexity 7.5000 · [\d,]+ tokens/s · up",
        ),
        ([], {"loss": 0.5}, r"loss 0.500 · [\d,]+ images/s"),
    ],
)
def test_the_live_line_has_the_first_metric_and_the_speed_in_the_tasks_unit(overrides, line, expected):
    task, display, screen = task_from(compose(*overrides)), Display(), io.StringIO()
    display.console = Console(file=screen, force_terminal=True, width=200)
    display.start(2, 10, 0, 2)
    for _ in range(3):
        display.step(line, task, 64, 1000, 2000)
    display.stop()
    assert re.search(expected, re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue()))
