"""What the user sees of a run: a headline, one live line, a line an epoch, and a table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from splitlearn.console import Console
from splitlearn.measure import costs
from splitlearn.measure.costs import size
from splitlearn.measure.evaluation import over_in_words, parts_in_words
from splitlearn.measure.stopwatch import Speed

if TYPE_CHECKING:
    from splitlearn.exchange.channel import ChannelSpec
    from splitlearn.tasks import Task


class Display:
    """Draws on the server's console. Where that is no terminal, the live line is left out."""

    def __init__(self):
        self.console = Console(highlight=False)
        self._progress: Progress | None = None
        self._speed = Speed()

    def headline(self, text: str, data: str, folder: str) -> None:
        self.console.print(f"[bold]splitlearn[/] {text}")
        if data:
            self.console.print(f"[dim]data:[/] {escape(data)}", soft_wrap=True)
        self.console.print(f"[dim]writing to[/] {escape(folder)}", soft_wrap=True)

    def note(self, text: str) -> None:
        self.console.print(f"[yellow]{text}[/]", soft_wrap=True)

    def tell(self, text: str) -> None:
        """A line as it is, from any thread."""
        self.console.print(text, style="yellow", markup=False, soft_wrap=True)

    def show(self, text: str) -> None:
        """What the trained network gives, as it is."""
        self.console.print(text, markup=False, soft_wrap=True)

    def start(self, num_epochs: int, num_steps: int, done: int, num_clients: int) -> None:
        """Shows progress, after `done` steps, through epochs of `num_steps` steps of up to `num_clients` clients."""
        self.num_epochs, self.num_steps, self.num_clients = num_epochs, num_steps, num_clients
        if self.console.is_terminal:
            columns = (
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(bar_width=20),
                TextColumn("{task.completed:.0f}/{task.total:.0f} steps · {task.fields[figures]}"),
                TimeRemainingColumn(compact=True),
            )
            self._progress = Progress(*columns, console=self.console, transient=True)
            self._task = self._progress.add_task(
                "", total=num_epochs * num_steps, completed=done, epoch=done // num_steps + 1, figures=""
            )
            self._progress.start()

    def step(self, line: dict[str, Any], task: Task, num_samples: int, up_bytes: int, down_bytes: int) -> None:
        """A step of so many samples in all: `line` has its loss and metrics."""
        if self._progress:
            self._speed.add(task.units(num_samples))
            first = task.metrics[0]
            shown = f" · {first.title} {first.form(line[first.name])}" if first.name in line else ""
            figures = f"loss {line['loss']:.3f}{shown} · {self._speed.now():,.0f} {task.unit}/s"
            figures += f" · up {size(up_bytes)} · down {size(down_bytes)}"
            done = self._progress.tasks[0].completed
            self._progress.update(self._task, advance=1, epoch=int(done // self.num_steps) + 1, figures=figures)

    def epoch(
        self,
        epoch: int,
        line: dict[str, Any],
        evaluation: dict[str, float] | None,
        task: Task,
        up_bytes: int,
        down_bytes: int,
    ) -> None:
        if self._progress:  # where clients come and go, an epoch had more steps or fewer
            self._progress.update(self._task, completed=epoch * self.num_steps)
        first = task.metrics[0]
        test = f" test {first.form(evaluation[first.name]):>6}" if evaluation else ""
        if evaluation and evaluation["samples"] != evaluation["samples_in_all"]:
            test += f" {over_in_words(evaluation, self.num_clients)}"
        text = epoch_line(epoch, self.num_epochs, line, task, up_bytes, down_bytes, test)
        self.console.print(text, soft_wrap=True)

    def stop(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None

    def summary(self, summary: dict[str, Any], task: Task, channels: Sequence[ChannelSpec]) -> None:
        """A table of the channels, and what the run came to."""
        self.console.print(costs.table(summary, channels))
        self.console.print(costs.in_all(summary), soft_wrap=True)
        first, *others = task.metrics
        beside = [f"best {first.form(summary[f'best_test_{first.name}'])}"]
        others += [metric for metric in task.confusion_metrics if f"test_{metric.name}" in summary]
        beside += [f"{metric.title} {metric.form(summary[f'test_{metric.name}'])}" for metric in others]
        over = over_in_words(summary["tested"], self.num_clients)
        self.console.print(
            f"[bold]test {first.title} {first.form(summary[f'test_{first.name}'])}[/] ({', '.join(beside)},"
            f" loss {summary['test_loss']:.4f}) {over} after {summary['epochs']} epoch{'s' * (summary['epochs'] > 1)},"
            f" {summary['steps']:,} steps, {summary['seconds']:.1f} s",
            soft_wrap=True,
        )
        for line in parts_in_words(summary, first):
            self.console.print(escape(line), soft_wrap=True)
        if summary["stopped_early"]:
            self.note(summary["stopped_early"])
        if kept := summary["best_weights"]:
            self.console.print(
                f"kept beside the last weights: those after epoch {kept['epoch']}, with {first.title}"
                f" {first.form(kept[first.name])} (--best)",
                soft_wrap=True,
            )
        if "seconds_over_link" in summary:
            self.console.print(
                f"over each client's link: about {summary['seconds_over_link']:.1f} s (estimated from the bytes)",
                soft_wrap=True,
            )
        if claims := summary["claims"]:
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in claims.items())
            of = "of each training sample's tensor, not of labels, weights and test samples"
            self.console.print(f"differential privacy {of}: {numbers}", soft_wrap=True)
        if summary["skipped"]:
            self.note(f"{summary['skipped']} batches were left out: their loss or smashed data were not finite")
        if summary["unreadable"]:
            whose = ", ".join(f"{number} of {who}" for who, number in summary["unreadable"].items())
            self.note(f"samples that could not be read were left out: {whose}")
        if summary["refused"]:
            kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(summary["refused"].items()))
            self.note(f"refused from outside, as the log says in detail: {kinds}")
        phases = summary["seconds_per_batch"]
        self.console.print(
            f"a client's batch takes {1e3 * sum(phases.values()):.1f} ms"
            + (", partly while another is on the wire: " if summary["pipeline_depth"] > 1 else ": ")
            + " · ".join(f"{phase} {1e3 * seconds:.1f}" for phase, seconds in phases.items()),
            soft_wrap=True,
        )


def epoch_line(
    epoch: int, num_epochs: int, line: dict[str, Any], task: Task, up_bytes: int, down_bytes: int, test: str = ""
) -> str:
    """What an epoch came to: `line` has its seconds and, where there were any batches, its loss and metrics."""
    said, first = [], task.metrics[0]
    for prefix, title in (("", "train"), ("local_", "on clients")):
        if f"{prefix}loss" in line:
            name = prefix + first.name
            shown = f" {title} {first.form(line[name]):>6}" if name in line else f" {title}" * bool(prefix)
            said.append(f"loss {line[f'{prefix}loss']:.4f}{shown}")
    train = " · ".join(said) or "no batch was finite"
    train += "".join(f" ε {value:.4g}" for name, value in line.items() if name.endswith("_epsilon"))
    return (
        f"epoch {epoch:{len(str(num_epochs))}}/{num_epochs} {train}{test} up {size(up_bytes)} down {size(down_bytes)}"
        f" {line['seconds']:.1f} s"
    )
