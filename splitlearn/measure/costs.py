"""What a run has sent, as the table at its end: by channel, what crosses beside channels, and all of it in a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from splitlearn.exchange.channel import ChannelSpec


def table(summary: dict[str, Any], channels: Sequence[ChannelSpec]) -> Table:
    """Of a summary.json: a column for each of two channels, one up and one down; else a row for each."""
    return (_columns if sorted(spec.way for spec in channels) == ["down", "up"] else _rows)(summary, channels)


def in_all(summary: dict[str, Any]) -> str:
    """What crossed, but for evaluations; and what that is for each sample, as often as it was trained on."""
    up, down = summary["all_bytes"]["up"], summary["all_bytes"]["down"]
    each = f" · {size((up + down) / summary['samples'])} a training sample" if summary["samples"] else ""
    return f"all in training: {size(up + down)} · up {size(up)} · down {size(down)}{each}"


def size(num_bytes: float) -> str:
    """Bytes with a decimal unit, as networks count."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000 or unit == "GB":
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.2f} {unit}"
        num_bytes /= 1000
    raise AssertionError


def _size_if_any(num_bytes: int) -> str:
    return size(num_bytes) if num_bytes else "–"


def _times(value: float) -> str:
    return f"{value:.2f} ×"


def _of_channels(channels: list[int] | None) -> str:
    return "{} of {} channels".format(*channels) if channels else "–"


def _error(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


UNMODIFIED = "unmodified network"  # what it would send without compression; of a run with a bottleneck
OTHERS = {  # what crosses beside channels
    "labels": "labels",
    "client weights": "weights",
    "evaluation": "evaluation",
    "bottleneck's start": "bottleneck",
}


def _columns(summary: dict[str, Any], channels: Sequence[ChannelSpec]) -> Table:
    """A column for each way."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for spec in channels:
        table.add_column(f"{spec.way}: {spec.title}", justify="right")
    rows = {
        "compressor": ("compressor", str),
        "bottleneck": ("channels", _of_channels),
        "payload a batch": ("bytes_per_batch", size),
        "payload in all": ("bytes", size),
        "of that bases": ("basis_bytes", _size_if_any),
        UNMODIFIED if summary["bottleneck"] else "without compression": ("uncompressed_bytes", size),
        "saving, measured": ("saving", _times),
        "saving, by formula": ("saving_by_formula", _times),
        "relative error": ("relative_error", _error),
    }
    if not any(summary[spec.key]["basis_bytes"] for spec in channels):
        del rows["of that bases"]
    for name, (key, form) in rows.items():
        if name != "bottleneck" or summary["bottleneck"]:
            table.add_row(name, *(form(summary[spec.key][key]) for spec in channels))
    for name, what in OTHERS.items():
        figures = [_other(summary, what, spec.way) for spec in channels]
        if what != "bottleneck" or any(figure != "–" for figure in figures):
            table.add_row(name, *figures)
    return table


def _rows(summary: dict[str, Any], channels: Sequence[ChannelSpec]) -> Table:
    """A row for each channel, and for what crosses beside them."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("compressor")
    for name in ("a batch", "in all", "saving", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for spec in channels:
        one = summary[spec.key]
        table.add_row(
            f"{spec.way}: {spec.title}",
            one["compressor"] + (", bottleneck {} of {}".format(*one["channels"]) if one["channels"] else ""),
            size(one["bytes_per_batch"]),
            size(one["bytes"]),
            _times(one["saving"]),
            _error(one["relative_error"]),
        )
    for name, what in OTHERS.items():
        for way in ("up", "down"):
            if (figure := _other(summary, what, way)) != "–":
                table.add_row(f"{way}: {name}", "", "", figure)
    return table


def _other(summary: dict[str, Any], what: str, way: str) -> str:
    return _size_if_any(summary["other_bytes"].get(f"{what}_{way}", 0))
