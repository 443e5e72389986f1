"""What attacks made of what the servers saw, for report.py: tables and pictures of the files that attack.py leaves."""

from io import BytesIO
from itertools import cycle
from statistics import fmean

import matplotlib.image
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from report_cells import Cell, Cells
from report_pictures import COLORS, MARKERS, NONE, drawn, finish, label, legend
from report_runs import Run

LEAKS = """\
What a server that is curious makes of what it sees, by the attacks that were run (docs/privacy.md). "A guess" sees \
nothing: the mean image, the most frequent token, labels in another order. Higher is worse for the clients. Means over \
the seeds of the runs."""
MAIN = ("ssim", "clusters", "tokens")  # of the figures of an attack, what is drawn


def leaks(cell: Cell) -> dict[tuple[str, str], tuple[float, float]]:
    """By attack and figure, what it came to, and the guess; means over the runs, where all have been attacked."""
    common = [key for key in cell.runs[0].leaks if all(key in run.leaks for run in cell.runs)]
    pairs = {key: zip(*(run.leaks[key] for run in cell.runs), strict=True) for key in common}
    return {key: tuple(map(fmean, found)) for key, found in pairs.items()}


def leak_rows(cells: Cells) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the cells of one setting; no rows where nothing was attacked."""
    found = {key: leaks(cell) for key, cell in cells.items()}
    figures = list(dict.fromkeys(figure for own in found.values() for figure in own))
    if not figures:
        return [], []
    metric = next(iter(cells.values())).metric
    guesses = [fmean(own[figure][1] for own in found.values() if figure in own) for figure in figures]
    rows = [["", "a guess", "–", "–", *(f"{guess:.2f}" for guess in guesses)]]
    for key, own in found.items():
        if own:
            _, cut, method = key
            cell, none = cells[key], cells.get((*key[:2], "none"))
            less = f"{none.crossed() / cell.crossed():.1f} ×" if none else "–"
            values = [f"{own[figure][0]:.2f}" if figure in own else "–" for figure in figures]
            rows.append([cut, method, f"{fmean(cell.finals):.2f}" + " %" * metric.is_share, less, *values])
    return ["cut", "method", f"test {metric.title}", "less", *(" ".join(figure) for figure in figures)], rows


def leak_pictures(cells: Cells) -> dict[str, bytes]:
    """PNG files by title.

    For each setting and attack the first metric against what leaks, and what leaks against bytes; and, of images, what
    was made of them.
    """
    found: dict[str, bytes] = {}
    for setting in dict.fromkeys(setting for setting, *_ in cells):
        by_cut: dict[str, dict[str, Cell]] = {}
        for (own, cut, method), cell in cells.items():
            if own == setting and leaks(cell):
                by_cut.setdefault(cut, {})[method] = cell
        figures = dict.fromkeys(figure for at in by_cut.values() for cell in at.values() for figure in leaks(cell))
        for attack, figure in figures:
            if figure in MAIN:
                found[f"Leakage by {attack}, {setting}"] = against_leaks(by_cut, (attack, figure))
                if picture := reconstructions(by_cut, attack):
                    found[f"What {attack} sees, {setting}"] = picture
    return found


def against_leaks(by_cut: dict[str, dict[str, Cell]], figure: tuple[str, str]) -> bytes:
    """A column for each cut: above, the metric against the leak; below, the leak against all bytes.

    A mark a method: a colour for each codec, and a marker for each defence, exchange and topology.
    """
    sheet = Figure(figsize=(1 + 3.6 * len(by_cut), 6.4), layout="constrained")
    axes = sheet.subplots(2, len(by_cut), squeeze=False, sharey="row")
    runs = sorted((cell.runs[0] for cells in by_cut.values() for cell in cells.values()), key=Run.place)
    codecs, ways = (list(dict.fromkeys(getattr(run, field) for run in runs)) for field in ("codec", "way"))
    colors = dict(zip(codecs, cycle([NONE, *COLORS] if codecs[0] == "none" else COLORS), strict=False))
    markers = dict(zip(ways, cycle(MARKERS), strict=False))
    name = " ".join(figure)
    for column, (cut, cells) in enumerate(by_cut.items()):
        above, below = axes[:, column]
        for cell in cells.values():
            if figure not in (own := leaks(cell)):
                continue
            leak, guess = own[figure]
            style = {"color": colors[cell.runs[0].codec], "ms": 8, "mec": "white", "mew": 0.6, "zorder": 3}
            above.plot(leak, fmean(cell.finals), markers[cell.runs[0].way], **style)
            below.plot(cell.crossed(), leak, markers[cell.runs[0].way], **style)
            for line in (above.axvline, below.axhline):
                line(guess, color="#bbbbbb", lw=0.8, zorder=1)
        finish(above, f"{name} (line: a guess)", label(cells) if column == 0 else None, "linear")
        finish(below, "sent in training, both ways", name if column == 0 else None, "bytes")
        above.set_title(f"cut={cut}")
    handles = [Line2D([], [], lw=5, color=color, label=codec) for codec, color in colors.items()]
    handles += [Line2D([], [], lw=0, color=NONE, marker=markers[way], label=way or "no defence") for way in ways]
    legend(sheet, handles)
    return drawn(sheet)


def reconstructions(by_cut: dict[str, dict[str, Cell]], attack: str) -> bytes | None:
    """A column for each cut: the originals, and below them what was made of them, a row a method."""
    found = {}
    for cut, cells in by_cut.items():
        for method, cell in cells.items():
            path = cell.runs[0].folder / "attacks" / f"{attack}.png"
            if path.exists():
                found[cut, method] = np.split(_even(matplotlib.image.imread(path)), 2)
    if not found:
        return None
    methods = list(dict.fromkeys(method for _, method in found))
    cuts = list(dict.fromkeys(cut for cut, _ in found))
    height, width = next(iter(found.values()))[0].shape[:2]
    sheet = Figure(
        figsize=(2.2 + 4.4 * len(cuts), 0.5 + 4.4 * height / width * (1 + len(methods))), layout="constrained"
    )
    axes = sheet.subplots(1 + len(methods), len(cuts), squeeze=False)
    for one in axes.flat:
        one.axis("off")
    for column, cut in enumerate(cuts):
        for row, method in enumerate(("originals", *methods)):
            pairs = [pair for (at, name), pair in found.items() if at == cut and method in ("originals", name)]
            if pairs:
                axes[row, column].imshow(pairs[0][method != "originals"])
            if column == 0:
                beside = {"ha": "right", "va": "center", "transform": axes[row, 0].transAxes}
                axes[row, 0].text(-0.02, 0.5, method, fontsize=8, **beside)
        axes[0, column].set_title(f"cut={cut}", fontsize=9)
    buffer = BytesIO()
    sheet.savefig(buffer, format="png", dpi=160, bbox_inches="tight")
    return buffer.getvalue()


def _even(image: np.ndarray) -> np.ndarray:
    return image[: len(image) // 2 * 2]
