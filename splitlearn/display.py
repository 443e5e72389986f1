"""What the user sees of a run: a headline, one live line, a line an epoch, and a table at the end."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class Display:
    """Draws on the server's console. Where that is no terminal, the live line is left out."""

    def __init__(self):
        self.console = Console(highlight=False)
        self._progress: Progress | None = None

    def headline(self, text: str, folder: str) -> None:
        self.console.print(f"[bold]splitlearn[/] {text}")
        self.console.print(f"[dim]writing to[/] {folder}", soft_wrap=True)

    def note(self, text: str) -> None:
        self.console.print(f"[yellow]{text}[/]", soft_wrap=True)

    def start(self, num_epochs: int, num_steps: int, done: int) -> None:
        """Shows progress, after `done` steps, through epochs of `num_steps` steps."""
        self.num_epochs, self.num_steps = num_epochs, num_steps
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

    def step(self, loss: float, top1: float, uplink_bytes: int, downlink_bytes: int) -> None:
        if self._progress:
            figures = f"loss {loss:.3f} · up {size(uplink_bytes)} · down {size(downlink_bytes)}"
            done = self._progress.tasks[0].completed
            self._progress.update(self._task, advance=1, epoch=int(done // self.num_steps) + 1, figures=figures)

    def epoch(self, epoch: int, line: dict[str, Any], evaluation: dict[str, float] | None) -> None:
        if self._progress:  # where clients come and go, an epoch had more steps or fewer
            self._progress.update(self._task, completed=epoch * self.num_steps)
        width = len(str(self.num_epochs))
        train = f"loss {line['loss']:.4f} train {line['top1']:6.2%}" if "loss" in line else "no batch was finite"
        test = f" test {evaluation['top1']:6.2%}" if evaluation else ""
        up, down = (size(line.get(f"{name}_bytes", 0)) for name in ("smashed_up", "gradient_down"))
        self.console.print(
            f"epoch {epoch:{width}}/{self.num_epochs} {train}{test} up {up} down {down} {line['seconds']:.1f} s",
            soft_wrap=True,
        )

    def stop(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None

    def summary(self, summary: dict[str, Any]) -> None:
        up, down, other = summary["uplink"], summary["downlink"], summary["other_bytes"]
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("")
        table.add_column("up: smashed data", justify="right")
        table.add_column("down: cut gradient", justify="right")
        table.add_row("compressor", up["compressor"], down["compressor"])
        rows = {
            "payload a batch": ("bytes_per_batch", size),
            "payload in all": ("bytes", size),
            "without compression": ("uncompressed_bytes", size),
            "saving, measured": ("saving", lambda value: f"{value:.2f} ×"),
            "saving, by formula": ("saving_by_formula", lambda value: f"{value:.2f} ×"),
            "relative error": ("relative_error", lambda value: "–" if value is None else f"{value:.3f}"),
        }
        for name, (key, form) in rows.items():
            table.add_row(name, form(up[key]), form(down[key]))
        table.add_row("labels", size(other["labels_up"]), "–")
        table.add_row("client weights", size(other["weights_up"]), size(other["weights_down"]))
        table.add_row("evaluation", size(other["evaluation_up"]), "–")
        self.console.print(table)
        self.console.print(
            f"[bold]test accuracy {summary['test_top1']:.2%}[/] (best {summary['best_test_top1']:.2%}, top-5"
            f" {summary['test_top5']:.2%}, loss {summary['test_loss']:.4f}) after {summary['epochs']} epochs,"
            f" {summary['steps']:,} steps, {summary['seconds']:.1f} s"
        )
        if "seconds_over_link" in summary:
            self.console.print(
                f"over each client's link: about {summary['seconds_over_link']:.1f} s (estimated from the bytes)",
                soft_wrap=True,
            )
        if summary["skipped"]:
            self.note(f"{summary['skipped']} batches were left out: their loss or smashed data were not finite")
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


def size(num_bytes: float) -> str:
    """Bytes with a decimal unit, as networks count."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000 or unit == "GB":
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.2f} {unit}"
        num_bytes /= 1000
    raise AssertionError
