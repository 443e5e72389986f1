"""What of finished runs to keep where weights and steps are too much, as in a repository: some 30 kB for 30 epochs.

    python scripts/keep_runs.py multirun/digits kept/digits

scripts/report.py makes of the kept runs what it makes of the runs themselves. A run's folder keeps its summary, what
attacks came to, and its configuration, without what is each machine's own (paths, ports, devices, threads);
metrics.jsonl keeps evaluations and epochs, and instead of the steps the sum of their bytes in each epoch. Runs that
were kept before stay there, unless they are in the new folder too.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from report_runs import run_folders
from script import start

from splitlearn.config import OWN_KEYS
from splitlearn.errors import UserError
from splitlearn.saved import metrics

WHOLE = ("summary.json", "anchor.json", "attacks/*.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a sweep, or of several")
    parser.add_argument("kept", type=Path, help="where they are kept, each in a folder of the same name")
    arguments = parser.parse_args()

    given, kept, num_kept = arguments.folder.resolve(), arguments.kept.resolve(), 0
    if kept.is_relative_to(given) or given.is_relative_to(kept):
        raise UserError(
            f"{arguments.kept} is {arguments.folder}, in it or above it: keep the runs in a folder beside it"
        )
    for folder in run_folders(arguments.folder):
        if (folder / "summary.json").exists():
            name = given.name if folder == arguments.folder else folder.relative_to(arguments.folder)
            keep(folder, arguments.kept / name)
            num_kept += 1
        else:
            print(f"{folder} is not finished, and not kept", file=sys.stderr)
    if not num_kept:
        sys.exit(f"there is no finished run in {arguments.folder}")
    print(f"kept in {arguments.kept}: {num_kept} run{'s' * (num_kept > 1)}")


def keep(folder: Path, to: Path) -> None:
    """Keeps one run in `to`."""
    for path in [path for pattern in WHOLE for path in to.glob(pattern)]:
        path.unlink()  # of an earlier time; the run may not have it any more
    to.mkdir(parents=True, exist_ok=True)
    for path in sorted(path for pattern in WHOLE for path in folder.glob(pattern)):
        (to / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to / path.relative_to(folder))
    cfg = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    for key in OWN_KEYS:
        *above, name = key.split(".")
        node = cfg
        for one in above:
            node = node.get(one) or {}
        node.pop(name, None)
    OmegaConf.save(OmegaConf.create(cfg), to / "config.yaml")
    (to / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in added_up(metrics(folder))))


def added_up(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, with one for all steps of an epoch that have the same clients."""
    found, sums = [], {}
    for line in lines:
        if line["kind"] != "step":
            found.append(line)
            continue
        key = line["epoch"], *line["clients"]
        if key not in sums:
            sums[key] = {name: line[name] for name in ("kind", "epoch", "clients")}
            found.append(sums[key])
        for name, value in line.items():
            if name.endswith("_bytes"):
                sums[key][name] = sums[key].get(name, 0) + value
    return found


if __name__ == "__main__":
    start(main)
