"""Tables and figures of all runs below a folder, such as a sweep's: accuracy against bytes, and the paper's Table 1.

    python scripts/report.py multirun/digits                                   writes multirun/digits/report/
    python scripts/report.py multirun/paper --tolerance 0.5 --out paper        half a point less is enough

Needs matplotlib and jinja2: pip install -e '.[plots]'. A row is an exchange with its topology, and a codec; a folder
with anchor.json, as scripts/benchmarks/anchors.py writes it, is one too. What the tables say is in ACCURACY, DEFINITION
and TIME below. The report is there as Markdown, CSV and LaTeX, and as one page for a browser, report.html.
"""

import argparse
import csv
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import fmean, stdev

from report_cells import Cell, Cells, gaps, group
from report_labels import BASE, bits_of
from report_runs import load, unit, varying
from script import start
from tables import markdown

from splitlearn.measure.costs import size
from splitlearn.measure.summary import saving_both_ways

try:
    from report_leaks import LEAKS, leak_pictures, leak_rows
    from report_page import page
    from report_pictures import AGAINST_BYTES, pictures
except ImportError as error:
    sys.exit(f"{error.name} is missing: pip install -e '.[plots]'")

ACCURACY = """\
Bytes are all that crossed in training, both ways, as measured: payloads, headers included, labels, weights of client \
segments, a bottleneck's start; not evaluations. "A sample" is that, of the whole training, for each training sample \
of an epoch; "less" how many times less it is than without compression at the same cut, where each batch's map goes up \
and its gradient comes down. Means over the seeds, with their standard deviation."""
DEFINITION = """\
Table 1 is the traffic that a compressor saves until it is as good as none. The {title} to reach is the {which} test \
{title} of no compression at the same cut with the same seed{less}. A run's traffic is what it has sent in training \
until the first evaluation that reaches it: measured payloads, headers included, without labels, weights \
and evaluations; or, in the table of all bytes, all but evaluations. The saving is the traffic of no compression until \
it first reaches it, over the compressor's; INF: never reached. With several seeds it is the mean over those that \
reach it, with the least and the greatest, and INF unless most of them do."""
TIME = """\
Minutes until that is reached, over links of so many Mbit/s both ways, a link a client: an estimate, of the \
seconds that the run took where it was run and the time that all bytes of one client's link take at that rate."""
ALL_RUNS = """\
Means over the seeds; bits an element and error: uplink. With a bottleneck, which makes another network, elements and \
savings are of the maps of the unmodified one, and the error is the compressor's, of what it was given."""
LONGEST = 150  # of a picture's file name, which systems take up to 255 bytes of
LINKS = {
    "up": "uplink",
    "both": "both ways",
    "all": "all bytes both ways",
}  # Point's field with the bytes, and what it is called


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a sweep, or of several")
    parser.add_argument("--out", type=Path, help="default: report/ in that folder")
    parser.add_argument(
        "--baseline",
        choices=["final", "best"],
        default="final",
        help="which accuracy, or other result",
    )
    parser.add_argument("--tolerance", type=float, default=0.0, metavar="POINTS", help="worse than the baseline's")
    parser.add_argument("--rates", type=float, nargs="+", default=[100, 20, 5], metavar="MBITS", help="of the links")
    arguments = parser.parse_args()
    for rate in arguments.rates:
        if not 0 < rate < math.inf:
            parser.error(f"--rates {rate:g} must be a number above 0")

    runs, troubles = load(arguments.folder)
    finished = [run for run in runs if run.is_finished]
    if not finished:
        sys.exit("\n".join([f"there is no finished run in {arguments.folder}", *troubles]))
    varied = varying(finished)
    cells, twice = group(finished, varied)
    for (setting, cut, _), cell in cells.items():
        if none := cells.get((setting, cut, "none")):
            cell.compare(none, arguments.baseline == "best", arguments.tolerance)
    troubles += twice + gaps(runs, varied)

    less = f", or worse by {arguments.tolerance:g} points" if arguments.tolerance else ""
    definition = partial(DEFINITION.format, which=arguments.baseline, less=less)
    out = arguments.out or arguments.folder / "report"
    out.mkdir(parents=True, exist_ok=True)
    print(write(out, cells, definition, arguments.rates, troubles))
    print(f"written to {out / 'report.html'}")


def write(out: Path, cells: Cells, definition: Callable[..., str], rates: list[float], troubles: list[str]) -> str:
    """Writes all files; returns the Markdown. `definition` is DEFINITION, of which the metric's title is not said."""
    tables, said = [], set()
    for setting in dict.fromkeys(setting for setting, *_ in cells):
        own = {key: cell for key, cell in cells.items() if key[0] == setting}
        of_runs = {key: cell for key, cell in own.items() if not cell.is_anchor}
        columns = list(dict.fromkeys((one, cut) for one, cut, _ in own))
        cuts = [cut for _, cut in columns]
        metric = next(iter(own.values())).metric
        tables.append((f"{metric.title.capitalize()} {AGAINST_BYTES}: {setting}", ACCURACY, *accuracy_rows(own)))
        for link, name in LINKS.items():
            if rows := table1(own if link == "all" else of_runs, columns, link):
                text = definition(title=metric.title)
                tables.append((f"Table 1, {name}: {setting}", text * (text not in said), ["", *cuts], rows))
                said.add(text)  # once is enough
        header, rows = leak_rows(of_runs)
        if rows:
            tables.append((f"What leaks: {setting}", LEAKS, header, rows))
        if of_runs:
            header = ["Mbit/s", *(f"{cut}, {rate:g}" for cut in cuts for rate in rates)]
            tables.append((f"Time to {metric.title}: {setting}", TIME, header, times(of_runs, columns, rates)))
            tables.append((f"All runs: {setting}", ALL_RUNS, *summary_rows(of_runs)))
    images = pictures(cells, rates) | leak_pictures(cells)
    files = file_names(images)
    for title, content in images.items():
        (out / files[title]).write_bytes(content)
    parts = [
        "\n\n".join(filter(None, [f"## {title}", text, markdown(header, rows)])) + "\n"
        for title, text, header, rows in tables
    ]
    parts += [f"![{title}]({files[title]})\n" for title in images]
    if troubles:
        parts.append("## Not in the tables\n\n" + "".join(f"- {trouble}\n" for trouble in troubles))
    text = "\n".join(parts)
    (out / "report.md").write_text(text, encoding="utf-8")
    (out / "report.html").write_text(page(tables, images, troubles), encoding="utf-8")
    for name, words in (("table1", "Table 1"), ("accuracy", AGAINST_BYTES)):
        text_of = "\n".join(latex(*table) for table in tables if words in table[0])
        (out / f"{name}.tex").write_text(text_of, encoding="utf-8")
    write_csv(out / "accuracy.csv", accuracy_csv(cells))
    write_csv(out / "table1.csv", table1_csv(cells))
    write_csv(out / "summary.csv", summary_csv({key: cell for key, cell in cells.items() if not cell.is_anchor}))
    return text


def file_names(titles: Iterable[str]) -> dict[str, str]:
    """Of pictures, by title; one that is too long, or another's too, ends in what is the title's own."""
    words = {title: re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_") for title in titles}
    often, names = Counter(words.values()), {}
    for title, name in words.items():
        if len(name) > LONGEST or often[name] > 1:
            name = f"{name[:LONGEST]}_{sha256(title.encode()).hexdigest()[:8]}"
        names[title] = f"{name}.png"
    return names


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def latex(title: str, text: str, header: list[str], rows: list[list[str]]) -> str:
    """A table for a paper, with booktabs."""

    def line(cells: list[str]) -> str:
        return " & ".join(map(escaped, cells)) + r" \\"

    rules = "l" + "r" * (len(header) - 1)
    body = [line(header), r"\midrule", *map(line, rows)]
    begin = [r"\begin{table}", r"\centering", rf"\caption{{{escaped(title)}}}", rf"\begin{{tabular}}{{{rules}}}"]
    return "\n".join([*begin, r"\toprule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def escaped(text: str) -> str:
    for character in "&%_#$":
        text = text.replace(character, f"\\{character}")
    return text.replace("…", r"\dots{}").replace("–", "--").replace("×", r"$\times$")


def accuracy_csv(cells: Cells) -> list[dict[str, object]]:
    """What each cell ended with, and all that crossed until then, for programs. Means over the seeds."""
    rows = []
    for (setting, cut, method), cell in cells.items():
        finals, none, each = cell.finals, cells.get((setting, cut, "none")), cell.crossed_each
        row = {"setting": setting, "cut": cut, "method": method, "seeds": len(finals), "metric": cell.metric.title}
        row |= {"result": fmean(finals), "result_std": stdev(finals) if len(finals) > 1 else ""}
        row |= {f"{name}_bytes": cell.crossed(name) for name in ("all", "all_up", "all_down")}
        row |= {"bytes_a_sample": "" if each is None else each}
        rows.append(row | {"less_than_none": none.crossed() / cell.crossed() if none else ""})
    return rows


def accuracy_rows(cells: Cells) -> tuple[list[str], list[list[str]]]:
    """The same, in a table's words, of the cells of one setting."""
    rows, metric = [], next(iter(cells.values())).metric
    for row in accuracy_csv(cells):
        deviation = f" ± {row['result_std']:.2f}" if row["result_std"] != "" else ""
        figures = [size(row[f"{name}_bytes"]) for name in ("all", "all_up", "all_down")]
        figures.append(size(row["bytes_a_sample"]) if row["bytes_a_sample"] != "" else "–")
        figures.append(f"{row['less_than_none']:.1f} ×" if row["less_than_none"] != "" else "–")
        result = f"{row['result']:.2f}{deviation}{unit(metric)}"
        rows.append([row["cut"], row["method"], str(row["seeds"]), result, *figures])
    return ["cut", "method", "seeds", f"test {metric.title}", "all bytes", "up", "down", "a sample", "less"], rows


def table1(cells: Cells, columns: list[tuple[str, str]], link: str) -> list[list[str]]:
    """Rows of the paper's Table 1, a column for each setting and cut, of the traffic of one link."""
    if not cells:
        return []
    baselines = [cells.get((*column, "none")) for column in columns]
    compressors = dict.fromkeys(name for *_, name in cells if name != "none")
    metric = next(iter(cells.values())).metric
    rows = [[f"{metric.title} to reach", *(f"{none.target:.2f}{unit(metric)}" if none else "–" for none in baselines)]]
    rows += [["none sends until then", *(size(none.sent_by_none(link)) if none else "–" for none in baselines)]]
    for compressor in compressors:
        found = [cells.get((*column, compressor)) for column in columns]
        rows.append([compressor, *(cell.saving(link) if cell else "–" for cell in found)])
    return rows


def times(cells: Cells, columns: list[tuple[str, str]], rates: list[float]) -> list[list[str]]:
    """Minutes to the result to reach, a row a method, a column a cut and rate."""
    rows = []
    for compressor in dict.fromkeys(name for *_, name in cells):
        found = [cells.get((*column, compressor)) for column in columns]
        rows.append([compressor, *(cell.minutes(rate) if cell else "–" for cell in found for rate in rates)])
    return rows


def summary_rows(cells: Cells) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what the runs of one setting ended with."""
    rows, metric = [], next(iter(cells.values())).metric
    for row, (*_, method) in zip(summary_csv(cells), cells, strict=True):
        deviation = f" ± {row['result_std']:.2f}" if row["result_std"] != "" else ""
        error = f"{row['relative_error']:.3f}" if row["relative_error"] != "" else "–"
        savings = [f"{row[name]:.2f} ×" for name in ("saving", "saving_both_ways")]
        result = f"{row['result']:.2f}{deviation}{unit(metric)}"
        rows.append([row["cut"], method, result, f"{row['bits_per_element']:.2f}", *savings, error])
    return ["cut", "method", f"test {metric.title}", "bits an element", "saving", "both ways", "error"], rows


def table1_csv(cells: Cells) -> list[dict[str, object]]:
    """One row a cell, for programs."""
    rows = []
    for (setting, cut, _), cell in cells.items():
        if not cell.races:
            continue
        row = {"setting": setting, "cut": cut, **names(cell), "metric": cell.metric.title}
        row |= {"to_reach": cell.target, "runs": len(cell.runs), "reached": len(cell.won)}
        for link, name in LINKS.items():
            if cell.is_anchor and link != "all":
                continue  # nothing crosses a cut
            name, savings = name.replace(" ", "_"), cell.savings(link)
            row[f"{name}_saving"] = "INF" if cell.is_never() else fmean(savings)
            row[f"{name}_saving_min"], row[f"{name}_saving_max"] = min(savings, default=""), max(savings, default="")
            row[f"{name}_bytes_of_none"] = cell.sent_by_none(link)
        rows.append(row)
    return rows


def summary_csv(cells: Cells) -> list[dict[str, object]]:
    """What the runs of each cell ended with. Means over the seeds."""
    rows = []
    for (setting, cut, _), cell in cells.items():
        best = max if cell.metric.higher_is_better else min
        finals = cell.finals
        error = [run.summary["uplink"]["relative_error"] for run in cell.runs]
        rows.append(
            {
                "setting": setting,
                "cut": cut,
                **names(cell),
                "runs": len(cell.runs),
                "metric": cell.metric.title,
                "result": fmean(finals),
                "result_std": stdev(finals) if len(finals) > 1 else "",
                "best_result": best(map(best, cell.of_runs("result"))),
                "bytes_per_batch": cell.mean(lambda summary: summary["uplink"]["bytes_per_batch"]),
                "bits_per_element": bits_per_element(cell),
                "saving": cell.mean(lambda summary: summary["uplink"]["saving"]),
                "saving_both_ways": cell.mean(saving_both_ways),
                "relative_error": "" if None in error else fmean(error),
                "seconds": cell.mean(lambda summary: summary["seconds"]),
            }
        )
    return rows


def names(cell: Cell) -> dict[str, str]:
    """What a row of a CSV file says of the method."""
    run = cell.runs[0]
    return {"exchange": run.anchor or (run.way or BASE) + run.differs, "compressor": run.codec}


def bits_per_element(cell: Cell) -> float:
    """Measured, of the uplink."""
    return fmean(map(bits_of, cell.runs))


if __name__ == "__main__":
    start(main)
