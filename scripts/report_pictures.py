"""The pictures of report.py.

Every method looks the same in all of them. Solid lines are labels_up with one codec or another, a colour each; broken
lines are other exchanges and topologies, a colour and a marker each, dotted without compression, dashed with it; what
is no split learning is black.
"""

from dataclasses import dataclass
from io import BytesIO
from itertools import count
from statistics import fmean
from textwrap import fill

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, ScalarFormatter
from report_cells import Cell, Cells
from report_labels import bits_of

from splitlearn.measure.costs import size

AGAINST_BYTES = "against all bytes"  # of the main table and picture, after the metric
MARKERS = "o^sDvP*X"  # of cuts
# Paul Tol's "muted" scheme, without its palest: all can be told apart by the colour-blind, and on white.
COLORS = ["#332288", "#cc6677", "#117733", "#44aa99", "#882255", "#999933", "#88ccee", "#aa4499", "#ddaa33"]
NONE, ANCHOR = "#666666", "#000000"
CODECS = "oHp"  # markers of codecs: another one where the colours begin again
WAYS = "sD^vPX<>h"  # markers of exchanges
ANCHORS = "*dX8"
WIDTH = 36  # of a legend's lines, in characters
SPREAD = 1.5  # of the results at the end: how much more is shown below them


@dataclass
class Look:
    """How a method is drawn, and which part of the legend it is in."""

    color: str
    dash: str | tuple
    marker: str
    part: str


def looks_of(cells: Cells) -> dict[str, Look]:
    """By method. A codec, and an exchange with its options, has a colour of its own as long as there are enough.

    After that, codecs have another marker.
    """
    colors, markers, anchors = count(), count(), count()
    found, of_way = {}, {}
    for (*_, method), cell in sorted(cells.items(), key=lambda pair: pair[1].runs[0].place()):
        run = cell.runs[0]
        if method in found:
            continue
        if cell.is_anchor:
            found[method] = Look(ANCHOR, (0, (6, 2, 1, 2)), ANCHORS[next(anchors) % len(ANCHORS)], "no split learning")
        elif run.is_base:
            again, place = divmod(0 if run.codec == "none" else next(colors), len(COLORS))
            color = NONE if run.codec == "none" else COLORS[place]
            found[method] = Look(color, "-", CODECS[again % len(CODECS)], "every batch, there and back")
        else:
            key = run.way + run.differs
            if key not in of_way:
                of_way[key] = COLORS[next(colors) % len(COLORS)], WAYS[next(markers) % len(WAYS)]
            dash = (0, (1, 1.2)) if run.codec == "none" else (0, (4, 1.5))
            found[method] = Look(of_way[key][0], dash, of_way[key][1], "other exchanges, defences")
    return found


def pictures(cells: Cells, rates: list[float]) -> dict[str, bytes]:
    """PNG files by title.

    For each setting the first metric against all bytes, against payloads, and error against bits (Fig. 2 of the MS
    paper); for each cut curves (Fig. 3).
    """
    looks, found = looks_of(cells), {}
    for setting in dict.fromkeys(setting for setting, *_ in cells):
        own = {key[1:]: cell for key, cell in cells.items() if key[0] == setting}
        by_cut: dict[str, dict] = {}
        for (cut, name), cell in own.items():
            by_cut.setdefault(cut, {})[name] = cell
        title = next(iter(own.values())).metric.title.capitalize()
        found[f"{title} {AGAINST_BYTES}, {setting}"] = against_bytes(by_cut, looks)
        own = {key: cell for key, cell in own.items() if not cell.is_anchor}
        by_cut = {cut: {one: cell for (at, one), cell in own.items() if at == cut} for cut, _ in own}
        if not own:
            continue
        found[f"{title} against traffic, {setting}"] = traffic(by_cut, looks)
        found[f"Error against bits, {setting}"] = errors(own, looks)
        for cut, cells_of in by_cut.items():
            found[f"Curves, {setting}, {cut}"] = curves(cells_of, looks, rates)
    return found


def against_bytes(by_cut: dict[str, dict[str, Cell]], looks: dict[str, Look]) -> bytes:
    """The main picture: the first metric against all that crossed, a line a method, from evaluation to evaluation.

    A column for each cut. Lines are means over the seeds, with all seeds between the edges of the band; the marker is
    where a training ends, be it early. What is far below all ends is left out.
    """
    figure = Figure(figsize=(5.6 if len(by_cut) == 1 else 4.0 * len(by_cut), 5.2), layout="constrained")
    row = figure.subplots(1, len(by_cut), sharey=True, squeeze=False)[0]
    low, high = shown([cell for cells in by_cut.values() for cell in cells.values()])
    for axes, (cut, cells) in zip(row, by_cut.items(), strict=True):
        inside = []
        for method, cell in cells.items():
            course = cell.course()
            x = [fmean(point.all for point in points) for points in course]
            y = [fmean(point.result for point in points) for points in course]
            inside += [one for one, result in zip(x, y, strict=True) if low <= result <= high]
            look = looks[method]
            style = {"color": look.color, "zorder": 4 if cell.is_anchor else 3}
            axes.plot(x, y, ls=look.dash, lw=1.6, alpha=0.9, **style)
            axes.plot(x[-1], y[-1], look.marker, ms=12 if look.marker == "*" else 9, mec="white", mew=0.8, **style)
            if len(cell.runs) > 1:
                edges = [[edge(point.result for point in points) for points in course] for edge in (min, max)]
                axes.fill_between(x, *edges, alpha=0.12, **style)
        if none := cells.get("none"):
            axes.axhline(sum(none.finals) / len(none.finals), color="#bbbbbb", lw=0.8, zorder=1)
        axes.set(title=f"cut={cut}", xlim=(min(inside) / 1.5, max(inside) * 1.5), ylim=(low, high))
        finish(axes, "sent in training, both ways", label(cells) if axes is row[0] else None, "bytes")
        axes.spines[["top", "right"]].set_visible(False)
    parts: dict[str, list[Line2D]] = {}
    for method, look in looks.items():
        if any(method in cells for cells in by_cut.values()):
            parts.setdefault(look.part, []).append(line(method, look, look.marker))
    handles = [handle for part, lines in parts.items() for handle in (Line2D([], [], lw=0, label=part), *lines)]
    for text in legend(figure, handles, handlelength=3.2).get_texts():
        if text.get_text() in parts:
            text.set(fontweight="bold", color="#444444")
    return drawn(figure, dpi=160)


def shown(cells: list[Cell]) -> tuple[float, float]:
    """Which results to show: all ends, and of the way there as much as leaves these apart."""
    ends = [result for cell in cells for result in cell.finals]
    all_of_them = [result for cell in cells for run in cell.of_runs("result") for result in run]
    span = max(max(ends) - min(ends), 0.02 * abs(max(ends)), 1e-6)
    low, high = min(all_of_them), max(all_of_them)
    if cells[0].metric.higher_is_better:
        low = max(low, min(ends) - SPREAD * span)
    else:
        high = min(high, max(ends) + SPREAD * span)
    return low - 0.04 * (high - low + span), high + 0.04 * (high - low + span)


def traffic(by_cut: dict[str, dict], looks: dict) -> bytes:
    """The first metric against bytes: a column for each cut; the uplink above, both ways below."""
    figure = Figure(figsize=(1 + 4 * len(by_cut), 6.4), layout="constrained")
    rows = figure.subplots(2, len(by_cut), sharey=True, squeeze=False)
    ways = [
        ("sent up", lambda point: (point.up, point.result)),
        ("sent both ways", lambda point: (point.both, point.result)),
    ]
    for row, (x, value) in zip(rows, ways, strict=True):
        for axes, cells in zip(row, by_cut.values(), strict=True):
            draw(axes, cells, looks, value)
            finish(axes, x, label(cells) if axes is row[0] else None, "bytes")
    for axes, cut in zip(rows[0], by_cut, strict=True):
        axes.set_title(cut)
    methods = {method for cells in by_cut.values() for method in cells}
    legend(figure, [line(method, look) for method, look in looks.items() if method in methods])
    return drawn(figure)


def errors(cells: dict, looks: dict) -> bytes:
    """Relative error of the uplink against measured bits an element; a marker a cut, hollow where lines are broken."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    cuts = list(dict.fromkeys(cut for cut, _ in cells))
    for (cut, name), cell in cells.items():
        uplinks = [run.summary["uplink"] for run in cell.runs]
        if name == "none" or "bottleneck" in name or None in (link["relative_error"] for link in uplinks):
            continue
        bits = [bits_of(run) for run in cell.runs]
        error = [link["relative_error"] for link in uplinks]
        axes.scatter(bits, error, marker=MARKERS[cuts.index(cut) % len(MARKERS)], s=40, **filled(looks[name]))
    for name in dict.fromkeys(name for _, name in cells if name != "none" and "bottleneck" not in name):
        axes.scatter([], [], label=fill(name, WIDTH), **filled(looks[name]))
    for cut, marker in zip(cuts, MARKERS, strict=False):
        axes.scatter([], [], color="gray", marker=marker, label=cut)
    axes.set(xlabel="bits for each value, measured", ylabel="relative ℓ2 error", xlim=(0, None), ylim=(0, None))
    legend(figure, axes.get_legend_handles_labels()[0])
    return drawn(figure)


def filled(look: Look) -> dict[str, str]:
    return {"edgecolors": look.color, "facecolors": look.color if look.dash == "-" else "none"}


def curves(cells: dict, looks: dict, rates: list[float]) -> bytes:
    """Loss against epochs, and the first metric against epochs, bytes sent, and time over links of these rates."""
    number = 4 + len(rates)
    figure = Figure(figsize=(13, 3.6 * -(-number // 3)), layout="constrained")
    axes = figure.subplots(-(-number // 3), 3).flat
    shown = label(cells)
    panels = [
        ("epoch", "training loss", lambda point: (point.epoch, point.loss), "linear"),
        ("epoch", shown, lambda point: (point.epoch, point.result), "linear"),
        ("sent up", shown, lambda point: (point.up, point.result), "bytes"),
        ("minutes as run", shown, lambda point: (point.seconds / 60, point.result), "linear"),
    ]
    for rate in rates:
        time = f"minutes at {rate:g} Mbit/s, estimated"
        panels.append((time, shown, lambda point, r=rate: (point.minutes(r), point.result), "log"))
    for one, (x, y, value, scale) in zip(axes, panels, strict=False):
        draw(one, cells, looks, value)
        finish(one, x, y, scale)
    legend(figure, [line(method, look) for method, look in looks.items() if method in cells])
    for one in axes[number:]:
        one.axis("off")
    return drawn(figure)


def label(cells: dict) -> str:
    """Of an axis with the results of cells."""
    metric = next(iter(cells.values())).metric
    return f"test {metric.title}" + ", %" * metric.is_share


def line(method: str, look: Look, marker: str = "") -> Line2D:
    """Of a method, for a legend."""
    style = {"color": look.color, "ls": look.dash, "lw": 1.6, "marker": marker, "ms": 7, "mec": "white", "mew": 0.6}
    return Line2D([], [], label=fill(method, WIDTH), **style)


def legend(figure: Figure, handles: list[Artist], **options: object) -> Legend:
    """Beside all panels, where it hides none of a curve: the figure grows by its width, and to its height."""
    found = figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9, **options)
    figure.draw_without_rendering()
    width, height = found.get_window_extent().size / figure.dpi
    figure.set_size_inches(figure.get_figwidth() + width, max(figure.get_figheight(), height + 0.2))
    return found


def finish(axes: Axes, x: str, y: str | None, scale: str) -> None:
    """Names of the axes, and the ticks of the lower one: linear, log, or bytes, which is log too."""
    axes.set(xlabel=x, ylabel=y, xscale="log" if scale == "bytes" else scale)
    axes.grid(alpha=0.3)
    if scale != "linear":
        (low, high), room = axes.get_xlim(), 30 if scale == "bytes" else 100  # of labels, which have a unit or not
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < room * low else (1,)))
        in_units = FuncFormatter(lambda value, _: size(value).replace(".00", ""))
        axes.xaxis.set_major_formatter(in_units if scale == "bytes" else ScalarFormatter())
        axes.xaxis.set_minor_formatter("")


def draw(axes: Axes, cells: dict, looks: dict, value) -> None:
    """A line a run; runs of the same method look alike."""
    for name, cell in cells.items():
        for run in cell.runs:
            style = {"color": looks[name].color, "ls": looks[name].dash}
            axes.plot(*zip(*map(value, run.points), strict=True), **style, lw=1.2, alpha=0.85)


def drawn(figure: Figure, dpi: int = 130) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
