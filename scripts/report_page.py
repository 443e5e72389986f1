"""The pictures and the browser page of report.py."""

from base64 import b64encode
from io import BytesIO

import jinja2
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter

MARKERS = "o^sDvP*X"
TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>splitlearn: report</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
  p { max-width: 50rem; color: #57606a; font-size: .9rem; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
  th, td { padding: .35rem .9rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #d8dee4; }
  th { border-bottom: 2px solid #8c959f; } th:first-child, td:first-child { text-align: left; }
  tr:hover td { background: #f6f8fa; } td.never { color: #a40e26; }
  img { max-width: 100%; height: auto; }
</style>
<h1>splitlearn: report</h1>
{% for title, text, header, rows in tables %}
<h2>{{ title }}</h2>
{% if text %}<p>{{ text }}</p>{% endif %}
<div class="wide"><table>
  <tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows %}
  <tr>{% for cell in row %}<td{% if cell == "INF" %} class="never"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endfor %}
{% for name, image in images.items() %}
<h2>{{ name }}</h2>
<img alt="{{ name }}" src="data:image/png;base64,{{ image }}">
{% endfor %}
{% if troubles %}
<h2>Not in the tables</h2>
<ul>{% for trouble in troubles %}<li>{{ trouble }}</li>{% endfor %}</ul>
{% endif %}
</html>
"""


def page(tables: list, images: dict[str, bytes], troubles: list[str]) -> str:
    """One HTML page that needs nothing beside itself."""
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE)
    encoded = {name: b64encode(content).decode() for name, content in images.items()}
    return template.render(tables=tables, images=encoded, troubles=troubles)


def pictures(cells: dict, rates: list[float]) -> dict[str, bytes]:
    """PNG files by title.

    For each setting the first metric against bytes, and error against bits (Fig. 2 of the MS paper); for each cut
    curves (Fig. 3).
    """
    names = list(dict.fromkeys(compressor for *_, compressor in cells))
    colors = dict(zip(names, color_sequences["tab10"] * 4, strict=False))
    found = {}
    for setting in dict.fromkeys(setting for setting, *_ in cells):
        own = {key[1:]: cell for key, cell in cells.items() if key[0] == setting}
        by_cut: dict[str, dict] = {}
        for (cut, name), cell in own.items():
            by_cut.setdefault(cut, {})[name] = cell
        metric = next(iter(own.values())).metric
        found[f"{metric.title.capitalize()} against traffic, {setting}"] = traffic(by_cut, colors)
        found[f"Error against bits, {setting}"] = errors(own, colors)
        for cut, cells_of in by_cut.items():
            found[f"Curves, {setting}, {cut}"] = curves(cells_of, colors, rates)
    return found


def traffic(by_cut: dict[str, dict], colors: dict) -> bytes:
    """The first metric against bytes: a column for each cut; the uplink above, both ways below."""
    figure = Figure(figsize=(1 + 4 * len(by_cut), 6.4), layout="constrained")
    rows = figure.subplots(2, len(by_cut), sharey=True, squeeze=False)
    ways = [("MB sent up", lambda point: point.up), ("MB sent both ways", lambda point: point.both)]
    for row, (x, nbytes) in zip(rows, ways, strict=True):
        for axes, cells in zip(row, by_cut.values(), strict=True):
            draw(axes, cells, colors, lambda point, nbytes=nbytes: (nbytes(point) / 1e6, point.result))
            finish(axes, x, label(cells) if axes is row[0] else None, "log")
    for axes, cut in zip(rows[0], by_cut, strict=True):
        axes.set_title(cut)
    legend(figure, rows[0, 0])
    return drawn(figure)


def errors(cells: dict, colors: dict) -> bytes:
    """Relative error of the uplink against measured bits an element; a marker for each cut."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    cuts = list(dict.fromkeys(cut for cut, _ in cells))
    for (cut, name), cell in cells.items():
        uplinks = [run.summary["uplink"] for run in cell.runs]
        if name == "none" or "bottleneck" in name or None in (link["relative_error"] for link in uplinks):
            continue
        bits = [32 * link["bytes"] / link["uncompressed_bytes"] for link in uplinks]
        error = [link["relative_error"] for link in uplinks]
        axes.scatter(bits, error, color=colors[name], marker=MARKERS[cuts.index(cut) % len(MARKERS)], s=40)
    for name in dict.fromkeys(name for _, name in cells if name != "none" and "bottleneck" not in name):
        axes.scatter([], [], color=colors[name], label=name)
    for cut, marker in zip(cuts, MARKERS, strict=False):
        axes.scatter([], [], color="gray", marker=marker, label=cut)
    axes.set(
        xlabel="bits for each value of 32 bits, measured", ylabel="relative ℓ2 error", xlim=(0, None), ylim=(0, None)
    )
    axes.legend(fontsize="small")
    return drawn(figure)


def curves(cells: dict, colors: dict, rates: list[float]) -> bytes:
    """Loss against epochs, and the first metric against epochs, bytes sent, and time over links of these rates."""
    number = 4 + len(rates)
    figure = Figure(figsize=(13, 3.6 * -(-number // 3)), layout="constrained")
    axes = figure.subplots(-(-number // 3), 3).flat
    shown = label(cells)
    panels = [
        ("epoch", "training loss", lambda point: (point.epoch, point.loss), "linear"),
        ("epoch", shown, lambda point: (point.epoch, point.result), "linear"),
        ("MB sent up", shown, lambda point: (point.up / 1e6, point.result), "log"),
        ("minutes as run", shown, lambda point: (point.seconds / 60, point.result), "linear"),
    ]
    for rate in rates:
        time = f"minutes at {rate:g} Mbit/s, estimated"
        panels.append((time, shown, lambda point, r=rate: (point.minutes(r), point.result), "log"))
    for one, (x, y, value, scale) in zip(axes, panels, strict=False):
        draw(one, cells, colors, value)
        finish(one, x, y, scale)
    legend(figure, axes[0])
    for one in axes[number:]:
        one.axis("off")
    return drawn(figure)


def label(cells: dict) -> str:
    """Of an axis with the results of cells."""
    metric = next(iter(cells.values())).metric
    return f"test {metric.title}" + ", %" * metric.is_share


def legend(figure: Figure, axes: Axes) -> None:
    """Below all panels, where it hides none of a curve."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)


def finish(axes: Axes, x: str, y: str | None, scale: str) -> None:
    axes.set(xlabel=x, ylabel=y, xscale=scale)
    axes.grid(alpha=0.3)
    if scale == "log":
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter("")


def draw(axes: Axes, cells: dict, colors: dict, value) -> None:
    """A line a run; runs of the same compressor look alike."""
    for name, cell in cells.items():
        for index, run in enumerate(cell.runs):
            label = name if index == 0 else None
            axes.plot(*zip(*map(value, run.points), strict=True), color=colors[name], label=label, lw=1.2, alpha=0.85)


def drawn(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
