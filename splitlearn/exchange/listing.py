"""Where the network of a configuration can be cut, for cut=?."""

from __future__ import annotations

from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.table import Table

from splitlearn.console import Console
from splitlearn.exchange.network import of_longest
from splitlearn.segments.cutting import valid_cuts
from splitlearn.segments.shares import work_up_to
from splitlearn.tasks import task_from

NAMES = ("shallow", "medium", "deep")


def print_cuts(cfg: DictConfig) -> None:
    """Prints where the config's network can be cut, with what would cross, and what the client would have to do."""
    task = task_from(cfg)
    model = task.network(cfg, task.default_about(cfg))
    example, longest = task.example(cfg), task.longest(cfg)
    lengths = task.lengths(example)
    points = [of_longest(point, longest) for point in valid_cuts(model, example, lengths)]
    work = work_up_to(model, [point.path for point in points], example, lengths)
    whole = work[""]
    of = "×".join(map(str, example.shape[1:])) if longest is None else f"up to {longest} positions"
    names = {task.cut_path(cfg, name, model): name for name in NAMES}
    table = Table(title=f"cuts of {task.headline(cfg)[0]} for inputs of {of}", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("cut=", overflow="fold")
    table.add_column("also")
    for title in ("map a\nsample", "bytes a\nsample", "weights\nup to it", "compute\nup to it"):
        table.add_column(title, justify="right", no_wrap=True)
    for point in points:
        sizes = "×".join(map(str, point.shape)), f"{point.nbytes:,}"
        shares = f"{work[point.path].weights:,}", f"{work[point.path].flops / max(1, whole.flops):.1%}"
        table.add_row(point.path, names.get(point.path, ""), *sizes, *shares)
    Console().print(table)
    Console().print(
        f"in all {whole.weights:,} weights, and {whole.flops / 1e6:,.1f} MFLOPs a sample in the forward pass"
    )
