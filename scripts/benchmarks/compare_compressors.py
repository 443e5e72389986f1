"""Trains with every compressor and prints accuracy, or the task's first metric, beside bytes, as a Markdown table.

    python scripts/benchmarks/compare_compressors.py                     the digits, a few minutes
    python scripts/benchmarks/compare_compressors.py --seeds 0 1 2 --compressors none ms sp -- epochs=10 cut=shallow
    python scripts/benchmarks/compare_compressors.py --compressors none ms_best+ms_best      up and down

A name is the uplink's compressor, or two with a + between them: the uplink's and the downlink's. Arguments after --
are overrides as for launch.py. Each run's folder stays below --folder.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

from common import markdown, saving_both_ways, start

from splitlearn.compose import compose
from splitlearn.tasks import Metric, task_from

COMPRESSORS = ["none", "ms", "qu", "sp", "rt"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compressors", nargs="+", default=COMPRESSORS, metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--folder", type=Path, default=Path("outputs/compare"))
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()

    from splitlearn import local

    rows = []
    for name in arguments.compressors:
        up, *down = name.split("+")
        both = [f"compressor={up}", *(f"compressor@downlink={one}" for one in down)]
        summaries = []
        for seed in arguments.seeds:
            folder = arguments.folder / f"{name}-seed{seed}"
            cfg = compose(*both, f"seed={seed}", *arguments.overrides)
            metric = task_from(cfg).metrics[0]
            local.run(cfg, folder)
            summaries.append(json.loads((folder / "summary.json").read_text()))
        rows.append(row(name, summaries, metric))
    header = ["uplink", f"test {metric.title}", "from … to", "bytes a batch", "saving", "both ways", "relative error"]
    print("\n" + markdown(header, rows))


def row(name: str, summaries: list[dict], metric: Metric) -> list[str]:
    """One compressor's cells: the mean over its seeds, and the ends of the metric."""
    results = [summary[f"test_{metric.name}"] * (100 if metric.is_share else 1) for summary in summaries]
    uplinks = [summary["uplink"] for summary in summaries]
    return [
        name if "+" in name else uplinks[0]["compressor"],
        f"{fmean(results):.2f}" + " %" * metric.is_share,
        f"{min(results):.2f} … {max(results):.2f}",
        f"{fmean(uplink['bytes_per_batch'] for uplink in uplinks):,.0f}",
        f"{fmean(uplink['saving'] for uplink in uplinks):.2f} ×",
        f"{fmean(saving_both_ways(summary) for summary in summaries):.2f} ×",
        f"{fmean(uplink['relative_error'] for uplink in uplinks):.3f}",
    ]


if __name__ == "__main__":
    start(main)
