"""Where the network of a configuration can be cut, for cut=?."""

from __future__ import annotations

from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.table import Table

from splitlearn.console import Console
from splitlearn.exchange.network import of_longest
from splitlearn.segments.cutting import valid_cuts
from splitlearn.tasks import task_from

NAMES = ("shallow", "medium", "deep")


def print_cuts(cfg: DictConfig) -> None:
    """Prints where the config's network can be cut."""
    task = task_from(cfg)
    model = task.network(cfg, task.default_about(cfg))
    example, longest = task.example(cfg), task.longest(cfg)
    of = "×".join(map(str, example.shape[1:])) if longest is None else f"up to {longest} positions"
    names = {task.cut_path(cfg, name, model): name for name in NAMES}
    table = Table(
        title=f"cuts of {task.headline(cfg)[0]} for inputs of {of}",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("cut=")
    table.add_column("also")
    table.add_column("map a sample", justify="right")
    table.add_column("bytes a sample", justify="right")
    for point in (of_longest(one, longest) for one in valid_cuts(model, example, task.lengths(example))):
        table.add_row(point.path, names.get(point.path, ""), "×".join(map(str, point.shape)), f"{point.nbytes:,}")
    Console().print(table)
